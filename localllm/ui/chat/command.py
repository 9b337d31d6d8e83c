"""What a /command is: how it is written, what it does, and what may stand behind it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from localllm.types import Chunk
from localllm.ui.chat.state import Chat

Answer = Generator[Chunk, None, None]
Result = str | Answer
Candidates = Iterable[tuple[str, str]]  # a word, and what it means


def _nothing(_: Chat, __: str) -> Candidates:
    return ()


@dataclass(frozen=True, slots=True)
class Command:
    """`complete` gives the words that may stand where the last one of the argument is being typed."""

    usage: str
    help: str
    run: Callable[[Chat, str], Result]
    complete: Callable[[Chat, str], Candidates] = _nothing
    files: bool = False  # whether paths are completed

    @property
    def name(self) -> str:
        return self.usage.partition(" ")[0]
