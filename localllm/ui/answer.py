"""Answers for scripts: as text, as one JSON object, or as a stream of JSON lines, all on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from localllm.types import Chunk, Finish, Scores, TokenScore, Usage
from localllm.ui.render import stream_plain

Style = Literal["text", "json", "jsonl"]


@dataclass(slots=True)
class Answer:
    """What came of a request. `first` and `ended` are readings of time.perf_counter(), in seconds."""

    parts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage | None = None
    fulfilled: bool = True
    first: float | None = None
    ended: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def thinking(self) -> str | None:
        return "".join(self.thoughts) or None

    def follow(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The same chunks, and what they said is kept here."""
        for chunk in chunks:
            self.ended = time.perf_counter()
            if chunk.token is not None and self.first is None:
                self.first = self.ended
            if chunk.text:
                (self.parts if chunk.kind == "answer" else self.thoughts).append(chunk.text)
            if chunk.scores is not None:
                self.scores.append(chunk.scores)
            if chunk.finish is not None:
                self.finish, self.usage, self.fulfilled = chunk.finish, chunk.usage, chunk.fulfilled
            yield chunk


def show(chunks: Iterable[Chunk], style: Style) -> Answer:
    """Write an answer to stdout as it comes; in the style "json" nothing is written until `summary` is."""
    answer = Answer()
    followed = answer.follow(chunks)
    if style == "text":
        stream_plain(followed)
        return answer
    for chunk in followed:
        if style == "jsonl" and (chunk.text or chunk.scores):
            write_json(_line(chunk))
    return answer


def summary(answer: Answer, *, text: bool, load: float, started: float, asked: float) -> dict[str, Any]:
    """An answer as JSON has it. `load` is in seconds, `started` and `asked` are readings of time.perf_counter()."""
    usage = answer.usage
    assert usage is not None, "an engine's last chunk carries the usage"
    found: dict[str, Any] = {"text": answer.text, "thinking": answer.thinking} if text else {}
    found["finish_reason"] = answer.finish
    found["usage"] = {
        "prompt_tokens": usage.prompt_tokens,
        "reused_tokens": usage.reused_tokens,
        "completion_tokens": usage.completion_tokens,
        "drafted_tokens": usage.drafted_tokens,
        "accepted_tokens": usage.accepted_tokens,
    }
    evaluated = usage.prompt_tokens - usage.reused_tokens
    found["timings"] = {
        "load": round(load, 6),
        "time_to_first_token": None if answer.first is None else round(answer.first - asked, 6),
        "total": round(answer.ended - started, 6),
        "prompt_tokens_per_second": _rate(evaluated, usage.prompt_seconds),
        "completion_tokens_per_second": _rate(usage.completion_tokens, usage.decode_seconds),
    }
    if text and answer.scores:
        found["logprobs"] = [_scores(scores) for scores in answer.scores]
    return found


def write_json(value: dict[str, Any]) -> None:
    """One object on one line. On a terminal only ASCII, so that nothing in it moves the cursor."""
    sys.stdout.write(json.dumps(value, ensure_ascii=sys.stdout.isatty()) + "\n")
    sys.stdout.flush()


def _line(chunk: Chunk) -> dict[str, Any]:
    line: dict[str, Any] = {"text": chunk.text, "kind": chunk.kind, "token": chunk.token}
    return line | ({"logprobs": _scores(chunk.scores)} if chunk.scores else {})


def _scores(scores: Scores) -> dict[str, Any]:
    return _score(scores.chosen) | {"top_logprobs": [_score(score) for score in scores.top]}


def _score(score: TokenScore) -> dict[str, Any]:
    """A token may be a part of a character: its bytes are exact, its text need not be."""
    text = score.piece.decode(errors="replace")
    return {"token": score.token, "text": text, "bytes": list(score.piece), "logprob": round(score.logprob, 6)}


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 3) if seconds > 0 else None
