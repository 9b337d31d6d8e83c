"""What the chat knows: the conversation, how it is shown, and how a model is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from localllm.conversation import Conversation
from localllm.engines import kind_of
from localllm.errors import LocalLLMError
from localllm.history import History
from localllm.protocols import Engine
from localllm.text.attachments import Attachment
from localllm.types import ChatOptions, EngineOptions, Limits, Reasoning, Sampling, Usage


class Leave(Exception):
    """The user wants to end the chat."""


class Opened(Protocol):
    """A model that was opened, with every option settled."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def options(self) -> EngineOptions: ...

    @property
    def sampling(self) -> Sampling: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def reasoning(self) -> Reasoning: ...


# A model's name and the options that were given, by name. Raises LocalLLMError.
Opener = Callable[[str | None, Mapping[str, Any]], Opened]


@dataclass(slots=True)
class Totals:
    """What the answers of this chat have cost together."""

    answers: int = 0
    prompt: int = 0
    reused: int = 0
    completion: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add(self, usage: Usage) -> None:
        self.answers += 1
        self.prompt += usage.prompt_tokens
        self.reused += usage.reused_tokens
        self.completion += usage.completion_tokens
        self.prompt_seconds += usage.prompt_seconds
        self.decode_seconds += usage.decode_seconds


@dataclass(slots=True)
class Chat:
    """`given` are the options that the user has set, which stay with him when he changes the model."""

    conversation: Conversation
    display: ChatOptions
    options: EngineOptions
    given: dict[str, Any]
    open_model: Opener
    path: Path  # of the model
    engine_option: str = "auto"
    history: History | None = None
    # While it is open, the terminal is as questions and other programs expect it.
    aside: Callable[[], AbstractContextManager[None]] = nullcontext
    console: Console = field(default_factory=lambda: Console(highlight=False))
    pending: list[Attachment] = field(default_factory=list)  # what goes with the next question
    usage: Usage | None = None  # of the last answer
    totals: Totals = field(default_factory=Totals)
    used: int = 0  # tokens of the context, before the next question
    pastes: dict[str, str] = field(default_factory=dict)  # what a mark in the typed line stands for

    @property
    def engine_kind(self) -> str:
        return kind_of(self.path) if self.engine_option == "auto" else self.engine_option

    @property
    def context(self) -> int:
        return self.conversation.engine.context

    def answered(self, usage: Usage) -> None:
        self.usage = usage
        self.totals.add(usage)

    def count_again(self) -> None:
        """Count what fills the context; what cannot be counted stays as it was, and asking will say why."""
        with suppress(LocalLLMError, OSError):
            self.used = self.conversation.used()

    def last_thinking(self) -> str:
        node = self.conversation.tree.last("assistant")
        return node.thinking if node else ""

    def take_pending(self) -> tuple[Attachment, ...]:
        taken, self.pending = tuple(self.pending), []
        return taken

    def toggle_thinking(self) -> None:
        self.display = replace(self.display, show_thinking=not self.display.show_thinking)
