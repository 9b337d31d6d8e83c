"""What a script can ask of an answer, and how `run` gives it."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localllm.errors import ConstraintError, UsageError
from localllm.fields import check_all, option
from localllm.types import Request

if TYPE_CHECKING:
    from localllm.commands._session import Session
    from localllm.ui.answer import Answer, Style

_SEEDS = 2**32 - 1  # the seeds that Sampling takes


@dataclass(frozen=True, slots=True)
class Output:
    json: bool = option(False, "Print one JSON object: text, usage, timings, seed, model.", switch=True)
    jsonl: bool = option(False, "Print a JSON object a piece of text as it comes, then one without text.", switch=True)
    logprobs: int | None = option(
        None, "With JSON: the N likeliest tokens at each place, and their logarithms.", minimum=0, maximum=1000
    )
    prefill: str = option("", "The answer begins with this text.")
    repeat: int = option(1, "Give N answers, the prompt computed once; seeds count up.", minimum=1, maximum=10**6)
    timeout: float | None = option(None, "Exit with 124 after this many seconds.", minimum=0.001, maximum=10**8)
    strict: bool = option(False, "Exit with 5 where the answer is cut by a limit of tokens.", switch=True)
    no_template: bool = option(False, "Complete the text as it stands, as --template none does.", switch=True)

    def __post_init__(self) -> None:
        check_all(self)
        if self.json and self.jsonl:
            raise UsageError("--json and --jsonl exclude each other")
        if self.logprobs is not None and not (self.json or self.jsonl):
            raise UsageError("--logprobs needs --json or --jsonl", "plain text has no place for them")

    @property
    def style(self) -> Style:
        return "json" if self.json else "jsonl" if self.jsonl else "text"


def give_answers(session: Session, request: Request, output: Output, engine: str, started: float) -> Answer:
    """Write the answer, or as many as were asked for, to stdout; returns the last.

    `started` is when the command was, as time.perf_counter() reads. Raises ConstraintError, when all is written, where
    one of them is not what was asked for.
    """
    from localllm.ui.answer import show, summary, write_json

    seed = request.sampling.seed
    if seed is None and output.style != "text":  # it is told, so that the answer can be had again
        seed = random.SystemRandom().randrange(_SEEDS)
    problem = None
    for index in range(output.repeat):
        sampling = replace(request.sampling, seed=None if seed is None else (seed + index) % _SEEDS)
        request = replace(request, sampling=sampling, prefill=output.prefill, logprobs=output.logprobs)
        if index and output.style == "text":
            sys.stdout.write("\n")
        asked = time.perf_counter()
        answer = show(session.engine.stream(request), output.style)
        problem = problem or _problem(request, answer, strict=output.strict)
        if output.style != "text":
            found = summary(
                answer, text=output.json, load=session.load_seconds, started=asked if index else started, asked=asked
            )
            write_json(found | _origin(session, sampling.seed, engine))
    if problem:
        raise problem
    return answer


def _problem(request: Request, answer: Answer, *, strict: bool) -> ConstraintError | None:
    """Why an answer is not what was asked for."""
    if not answer.fulfilled:
        form = request.constraint.kind if request.constraint else "form"
        if answer.finish == "length":
            return ConstraintError(f"the answer was cut by the limit of tokens, before it had the form of --{form}")
        if request.limits.stop:
            text = f"the answer was cut by --stop, before it had the form of --{form}"
            return ConstraintError(text, "without --stop it goes on to the form's end")
        text = "the answer names a property of an object twice, or nests too deep to be read"
        return ConstraintError(text, "another --seed, or a larger model, may do better")
    cut = strict and answer.finish == "length"
    return ConstraintError("the answer was cut by the limit of tokens") if cut else None


def _origin(session: Session, seed: int | None, engine: str) -> dict[str, object]:
    from localllm.engines import kind_of
    from localllm.hub.digest import file_sha256

    path = session.model.path
    kind = kind_of(path) if engine == "auto" else engine
    return {"seed": seed, "model": session.model.name, "model_sha256": file_sha256(path), "engine": kind}
