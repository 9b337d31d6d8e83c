"""One prompt over many rows: fields into a template, answers into an `Output`, failures told and tried again.

Which requests run side by side is the engine's affair (`types.Answers`).
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from localllm.errors import ContextOverflow, LocalLLMError, UsageError
from localllm.jobs.embed_rows import Vector
from localllm.jobs.rows import Errors, Output, Row, key_of, pending
from localllm.protocols import Answers
from localllm.types import Chunk, Constraint, Kind, Limits, Message, Reasoning, Request, Sampling

_FIELD = re.compile(r"\{\{([^{}\n]+)\}\}|\{([^{}\n\"']+)\}")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows with a result or without hope, and the tokens of the answers, or of the texts that were embedded."""

    rows: int = 0
    tokens: int = 0


Vectors = Callable[["Iterable[tuple[_Task, Request]]"], "Iterable[tuple[_Task, Vector | LocalLLMError]]"]
Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a row becomes a request. Without a `prompt`, a row has `messages`, `prompt` or `text`.

    In `prompt` and `system`, `{name}` stands for a field and `{{name}}` for the braces themselves. `model` is whatever
    identifies the model; with the rest it makes the rows' keys.
    """

    model: str
    prompt: str | None
    system: str | None
    sampling: Sampling
    limits: Limits
    constraint: Constraint | None = None
    reasoning: Reasoning = field(default_factory=Reasoning)
    _made_with: str = field(init=False)  # what the rows' keys have in common

    def __post_init__(self) -> None:
        form = asdict(self.constraint) if self.constraint is not None else None
        options = [asdict(self.sampling), asdict(self.limits), form, asdict(self.reasoning)]
        object.__setattr__(self, "_made_with", key_of(self.model, self.prompt, self.system, options))

    def request(self, row: Row) -> Request:
        """Raises LocalLLMError where the row lacks something."""
        messages = self._messages(row.fields)
        if self.system:
            messages = (Message("system", fill(self.system, row.fields)), *messages)
        return Request(messages, self.sampling, self.limits, self.constraint, reasoning=self.reasoning)

    def key(self, row: Row) -> str:
        return key_of(self._made_with, dict(row.fields))

    def _messages(self, fields: Mapping[str, Any]) -> tuple[Message, ...]:
        if self.prompt is not None:
            return (Message("user", fill(self.prompt, fields)),)
        if "messages" in fields:
            return tuple(map(_message, fields["messages"] if isinstance(fields["messages"], list) else [None]))
        for name in ("prompt", "text"):
            if name in fields:
                return (Message("user", _text(fields[name])),)
        raise LocalLLMError(f"it has no field named prompt, text or messages, only {_names(fields)}", "write --prompt")


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The template with its fields filled in. Raises LocalLLMError, naming a field that is not there."""

    def value(match: re.Match[str]) -> str:
        if match[1] is not None:
            return "{" + match[1] + "}"
        name = match[2].strip()
        if name not in fields:
            hint = f"{{{{{name}}}}} in the prompt stands for the braces themselves"
            raise LocalLLMError(f"it has no field named {name!r}, only {_names(fields)}", hint)
        return _text(fields[name])

    return _FIELD.sub(value, template)


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, fields)) or "none"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _message(value: Any) -> Message:
    if not isinstance(value, dict) or value.get("role") not in _ROLES or not isinstance(value.get("content"), str):
        raise LocalLLMError(f"its messages are no list of objects with a role ({', '.join(_ROLES)}) and a content")
    return Message(value["role"], value["content"])


def _said(chunks: Sequence[Chunk], kind: Kind) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.kind == kind)


def _answer_of(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """What is written of an answer."""
    usage = chunks[-1].usage
    assert usage is not None, "an engine's last chunk carries the usage"
    thinking = _said(chunks, "thinking")
    return {
        "text": _said(chunks, "answer"),
        **({"thinking": thinking} if thinking else {}),
        "finish": chunks[-1].finish,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _vector_of(vector: Vector) -> dict[str, Any]:
    return {"embedding": vector.values, "prompt_tokens": vector.tokens}


@dataclass(frozen=True, slots=True)
class _Task:
    row: Row
    key: str
    attempt: int = 0


class Batch:
    """Runs a recipe over rows. `tries` is how often a row is begun that fails for no reason of its own."""

    def __init__(self, recipe: Recipe, output: Output, errors: Errors, report: Report, tries: int = 2) -> None:
        self._recipe, self._output, self._errors, self._report, self._tries = recipe, output, errors, report, tries
        self._again: deque[_Task] = deque()  # those that failed, and are begun before any other
        self.progress = Progress()
        self.first_error = ""

    def run(self, rows: Iterable[Row], answers: Answers | Vectors) -> None:
        """Answer every row that is not done yet. Raises UsageError, EngineError; what is finished then is written.

        Instead of answers there may be vectors (`jobs/embed_rows.py`).
        """
        tasks = (_Task(row, key) for row, key in pending(rows, self._output, self._recipe.key))
        while True:
            for task, outcome in answers(self._requests(tasks)):
                self._settle(task, outcome)
            if not self._again:
                return

    def _requests(self, tasks: Iterator[_Task]) -> Iterator[tuple[_Task, Request]]:
        while task := self._again.popleft() if self._again else next(tasks, None):
            if task.row.fault:
                self._fail(task, task.row.fault)
                continue
            try:
                request = self._recipe.request(task.row)
            except UsageError:
                raise
            except LocalLLMError as error:
                self._fail(task, f"{error} ({error.hint})" if error.hint else str(error))
            else:
                seed = request.sampling.seed
                if seed is not None and task.attempt:  # the same seed would fail in the same way
                    request = replace(request, sampling=replace(request.sampling, seed=seed + task.attempt))
                yield task, request

    def _settle(self, task: _Task, outcome: list[Chunk] | Vector | LocalLLMError) -> None:
        if isinstance(outcome, list) and not outcome[-1].fulfilled:
            problem = "was cut before it had its form" if outcome[-1].finish == "length" else "does not have its form"
            outcome = LocalLLMError(f"the answer {problem}: {_said(outcome, 'answer')!r}")
        if isinstance(outcome, LocalLLMError):
            if task.attempt + 1 < self._tries and not isinstance(outcome, ContextOverflow):
                self._again.append(replace(task, attempt=task.attempt + 1))
            else:
                self._fail(task, str(outcome))
            return
        values = _vector_of(outcome) if isinstance(outcome, Vector) else _answer_of(outcome)
        self._output.write(task.row, task.key, values)
        self._advance(values.get("completion_tokens", values["prompt_tokens"]))

    def _fail(self, task: _Task, reason: str) -> None:
        self.first_error = self.first_error or f"row {task.row.id!r}: {reason}"
        self._errors.add(task.row, reason)
        self._output.drop(task.row)
        self._advance(0)

    def _advance(self, tokens: int) -> None:
        self.progress = Progress(self.progress.rows + 1, self.progress.tokens + tokens)
        self._report(self.progress)
