"""What a model thinks before it answers, split from the answer while it streams.

A chat template tells how its model marks thinking: by a pair of tags, or by the channels of OpenAI's harmony format
(gpt-oss). A template that ends its prompt with the opening tag means that the output begins in thinking. Thinking
stands before the answer: once the answer has begun, tags are text (an answer about HTML may hold anything).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from localllm.text.stream import TextStream, overlap
from localllm.types import Kind

Piece = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Tags:
    """How thinking is marked. `skip` are marks around the answer, which are not part of it."""

    open: str
    close: str
    skip: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.open, self.close, *self.skip)


HARMONY = Tags("<|channel|>", "<|message|>", ("<|start|>", "<|end|>", "<|constrain|>"))
# What a template holds -> what its model writes. The closing tag is the surer sign: some templates only take earlier
# thinking out, by what stands behind it.
_KNOWN = {
    "<response></response>": Tags("<think>", "</think>", ("<response>", "</response>")),
    "</think>": Tags("<think>", "</think>"),
    "[/THINK]": Tags("[THINK]", "[/THINK]"),
    "</seed:think>": Tags("<seed:think>", "</seed:think>"),
    "</mm:think>": Tags("<mm:think>", "</mm:think>"),
    "<|END_THINKING|>": Tags(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    "<channel|>": Tags("<|channel>thought\n", "<channel|>"),
    "</thought>": Tags("<thought>", "</thought>"),
    "[BEGIN FINAL RESPONSE]": Tags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", ("[END FINAL RESPONSE]",)),
    "</thinking>": Tags("<thinking>", "</thinking>"),
    "</reasoning>": Tags("<reasoning>", "</reasoning>"),
    "◁/think▷": Tags("◁think▷", "◁/think▷"),
}


def tags_of(template: str) -> Tags | None:
    """How the template's model marks thinking; None where it does not think."""
    if HARMONY.open in template and HARMONY.close in template:
        return HARMONY
    return next((tags for sign, tags in _KNOWN.items() if sign in template), None)


class AnswerStream:
    """Bytes of tokens -> pieces of thinking and of answer. Stop strings end an answer, not the thinking."""

    def __init__(self, stop: Sequence[str] = (), tags: Tags | None = None, prompt: str = "") -> None:
        self._decoder = TextStream()
        self._answer = TextStream(stop)
        self._split: _Splitter | None = None
        if tags is HARMONY:
            self._split = _Channels(prompt)
        elif tags is not None:
            self._split = _Tagged(tags, prompt.rstrip().endswith(tags.open.rstrip()))

    @property
    def stopped(self) -> str | None:
        """The stop string that was met."""
        return self._answer.stopped

    def given(self, text: str) -> list[Piece]:
        """What the output was made to begin with; a stop string in it is none."""
        pieces: list[Piece] = self._split.push(text, False) if self._split else [("answer", text)]
        return [piece for piece in pieces if piece[1]]

    def push(self, piece: bytes) -> list[Piece]:
        return self._pieces(self._decoder.push(piece), end=False)

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the output."""
        pieces = self._pieces(self._decoder.finish(), end=True)
        return [*pieces, ("answer", rest)] if (rest := self._answer.finish()) else pieces

    def _pieces(self, text: str, end: bool) -> list[Piece]:
        found: list[Piece] = [("answer", text)] if self._split is None else self._split.push(text, end)
        shown = [(kind, self._answer.push_text(text) if kind == "answer" else text) for kind, text in found]
        return [(kind, text) for kind, text in shown if text]


class _Splitter(ABC):
    """Text is held back while it may be the begin of a mark."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str, end: bool) -> list[Piece]:
        self._held += text
        found: list[Piece] = []
        while self._held and (step := self._step(end)):
            found.append(step)
        return [*found, *self._rest()] if end else found

    @abstractmethod
    def _step(self, end: bool) -> Piece | None:
        """Take something from what is held; None where nothing can be decided before more comes."""

    def _rest(self) -> list[Piece]:
        """What the end of the output makes of what was taken and not given."""
        return []

    def _until(self, marks: Sequence[str], end: bool) -> tuple[str, str]:
        """The text before the first of the marks, and that mark or ""; what may begin one stays held."""
        found = [(self._held.find(mark), mark) for mark in marks if mark in self._held]
        if found:
            position, mark = min(found)
            text, self._held = self._held[:position], self._held[position + len(mark) :]
            return text, mark
        keep = 0 if end else max((overlap(self._held, mark) for mark in marks), default=0)
        position = len(self._held) - keep
        text, self._held = self._held[:position], self._held[position:]
        return text, ""


class _Tagged(_Splitter):
    def __init__(self, tags: Tags, thinking: bool) -> None:
        super().__init__()
        self._tags = tags
        self._part: Literal["begin", "thinking", "answer"] = "thinking" if thinking else "begin"
        self._blank = thinking  # blank lines next to a tag are layout

    def _step(self, end: bool) -> Piece | None:
        if self._part == "begin":
            return self._begin(end)
        if self._blank:
            self._held = self._held.lstrip()
        thinking = self._part == "thinking"
        text, mark = self._until((self._tags.close,) if thinking else self._tags.skip, end)
        self._blank = self._blank and not text
        if thinking and mark:
            self._part, self._blank = "answer", True
        if not text and not mark:
            return None
        return ("thinking" if thinking else "answer"), text

    def _begin(self, end: bool) -> Piece | None:
        """Thinking begins with its tag; whatever else comes first, but space, is the answer."""
        said, tag = self._held.lstrip(), self._tags.open
        if said.startswith(tag):
            self._held, self._part, self._blank = said[len(tag) :], "thinking", True
        elif end or not tag.startswith(said):
            self._part = "answer"
        else:
            return None
        return "thinking", ""


class _Channels(_Splitter):
    """Harmony: `<|channel|>NAME<|message|>TEXT<|end|>`, and again; the channel `final` is the answer."""

    def __init__(self, prompt: str) -> None:
        super().__init__()
        # A prompt ends within the header of the answer's message; it may have named the channel already.
        header, mark, _ = prompt.rpartition("<|start|>")[2].partition(HARMONY.close)
        self._header, self._in_header = header, not mark

    def _step(self, end: bool) -> Piece | None:
        return self._read_header(end) if self._in_header else self._read_body(end)

    def _read_header(self, end: bool) -> Piece | None:
        text, mark = self._until((HARMONY.close,), end)
        self._header += text
        self._in_header = not mark
        return ("thinking", "") if mark else None

    def _rest(self) -> list[Piece]:
        """A header without a mark is no harmony, and what was said is not to be lost."""
        plain = self._in_header and "<|" not in self._header
        return [("answer", self._header.rpartition("assistant")[2])] if plain else []

    def _read_body(self, end: bool) -> Piece | None:
        kind: Kind = "answer" if self._header.rpartition(HARMONY.open)[2].startswith("final") else "thinking"
        text, mark = self._until(("<|end|>",) if kind == "answer" else ("<|end|>", "<|start|>", HARMONY.open), end)
        if mark:
            self._in_header, self._header = True, mark
        elif not text:
            return None
        return kind, text
