"""What a conversation or a job asks of an engine, and what a generation loop asks of a model.

`Engine` is what a conversation or a job needs; `TokenModel` is the smaller thing that a local engine implements, so
that the generation loop (`engines/local.py`) exists once. What only some can do is a protocol of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from localllm.errors import LocalLLMError
from localllm.types import Chunk, Request, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Mask = Callable[[], bytes]


class Engine(Protocol):
    """Answers requests. Closing the iterator in mid-stream frees what the request held."""

    @property
    def notices(self) -> Sequence[str]:
        """What the user should know about how the model was opened, a line each."""
        ...

    @property
    def context(self) -> int:
        """Tokens of prompt and answer that it holds together."""
        ...

    def count(self, request: Request) -> int:
        """The tokens of a request's prompt. Raises TemplateError."""
        ...

    def stream(self, request: Request) -> Generator[Chunk, None, None]: ...

    def close(self) -> None: ...


@runtime_checkable
class Resumable(Protocol):
    """A model that keeps on disk what it has evaluated of a chat, so that the next process goes on from exactly there.

    `chat` is the chat's name. Where nothing is kept on disk these do nothing.
    """

    def keep(self, chat: str) -> None: ...

    def take_up(self, chat: str) -> None: ...

    def drop(self, chat: str) -> None:
        """Forget it, in memory and on disk."""
        ...


Key = TypeVar("Key")


class Answers(Protocol):
    """Requests, each with a key -> the chunks or the error of each, in whichever order they end.

    Raises UsageError and what ends all of them, such as EngineError.
    """

    def __call__(
        self, requests: Iterable[tuple[Key, Request]]
    ) -> Generator[tuple[Key, list[Chunk] | LocalLLMError], None, None]: ...


class Tokenizer(Protocol):
    """Text to token ids and back."""

    begin_text: str
    end_text: str

    def tokenize(self, text: str, *, begin: bool, special: bool = True) -> list[int]:
        """Ids of `text`; `begin` adds the tokens the model wants around a text, `special` reads special tokens in it
        as such."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one id; a control token has none."""
        ...

    def spelled(self, token: int) -> bytes:
        """The same, and a control token by its name, such as <|im_end|>."""
        ...

    def is_special(self, token: int) -> bool:
        """Whether an id steers the model and stands for no text."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What an engine calls the model, the bytes of its weights, and the number of its parameters."""

    type: str
    size: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Place:
    """What computes a model: backends or providers, the GPUs there are, and the layers on them."""

    backends: str
    gpus: str = ""
    gpu_layers: int = 0


class SequenceModel(Tokenizer, Protocol):
    """A model that gives the logits of many positions of sequences of equal length."""

    vocabulary_size: int
    trained_context: int
    abort: Any

    @property
    def begin_token(self) -> int | None:
        """The id that every sequence starts with, where the model wants one."""
        ...

    def open_scoring(self, length: int, first: int) -> int:
        """Make room for sequences of `length` tokens whose logits are wanted from position `first` on.

        Returns how many sequences are best given at once. Raises UsageError.
        """
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits, (sequences, positions from the first wanted one on, vocabulary_size), until the next call."""
        ...

    def interruptible(self) -> AbstractContextManager[None]: ...


class TextModel(Tokenizer, Protocol):
    """A model that tells what it expects at every position of a text."""

    context: int
    trained_context: int
    vocabulary_size: int

    def open_text(self, length: int, at_once: int) -> None:
        """Begin a text of at most `length` tokens, of which `at_once` are read at a time."""
        ...

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read on; the logits after each of these tokens, (tokens, vocabulary_size). They hold until the next call."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """Those after the last token that was read, (vocabulary_size,)."""
        ...

    def is_end(self, token: int) -> bool: ...

    def sampler(
        self, sampling: Sampling, *, ignore_eos: bool, history: Sequence[int]
    ) -> AbstractContextManager[Callable[[], int]]:
        """A function that draws the next id from the last logits."""
        ...

    def interruptible(self) -> AbstractContextManager[None]: ...


class TokenModel(Tokenizer, Protocol):
    """A model that turns token ids into the next id. It keeps its KV cache between calls of `prefill`."""

    context: int
    trained_context: int
    vocabulary_size: int

    def is_end(self, token: int) -> bool: ...

    def open_context(self, length: int | None = None) -> None:
        """Make room for `length` tokens, without it for `context` of them; what was evaluated is forgotten.

        Optional: the first `prefill` does it.
        """
        ...

    def clear(self) -> None:
        """Forget every token."""
        ...

    def prefill(self, tokens: Sequence[int]) -> int:
        """Evaluate a prompt; returns how many of its tokens were reused from the KV cache (always fewer than all)."""
        ...

    def feed(self, token: int) -> None:
        """Evaluate one more token."""
        ...

    def shift(self, keep: int, discard: int) -> bool:
        """Forget `discard` tokens behind the first `keep` and move the later ones up, without evaluating them again.

        False, with nothing changed, where that cannot be done.
        """
        ...

    def logits(self) -> NDArray[np.float32]:
        """The logits of the last evaluation, float32 (vocabulary_size,); valid until the next one."""
        ...

    def sampler(
        self, sampling: Sampling, *, ignore_eos: bool, history: Sequence[int], mask: Mask | None = None
    ) -> AbstractContextManager[Callable[[], int]]:
        """A function that draws the next id from the logits of the last evaluation.

        `mask` is asked before each draw; a token that it does not allow is out of the distribution before anything
        else of the sampling is applied, so that what remains keeps its proportions.
        """
        ...

    def interruptible(self) -> AbstractContextManager[None]:
        """While it is open, Ctrl-C ends an evaluation that is under way with KeyboardInterrupt."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors, one a text. What is around that (order, batches, lengths) is `jobs/embed.py`'s."""

    dimensions: int
    # Tokens that a text may have, those around it included.
    limit: int
    # Tokens, padding included, that are best evaluated at once.
    batch: int
    # What the user should know about how the model was opened, a line each.
    notices: Sequence[str]
    # What the model is called in its own files.
    names: Sequence[str]
    # What the model's publisher has written before a text, by what the text is for: "query", "passage", ...
    prompts: Mapping[str, str]

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text with the tokens that the model wants around it, however many; specials are read."""
        ...

    def encode(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of some texts' ids, pooled as the model says and not normalized: float32, (texts, dimensions)."""
        ...

    def interruptible(self) -> AbstractContextManager[None]:
        """While it is open, Ctrl-C ends an evaluation that is under way with KeyboardInterrupt."""
        ...

    def close(self) -> None: ...


class MaskedModel(Protocol):
    """A masked language model: it tells what may stand where a text has its mask token."""

    limit: int
    mask_token: str
    mask: int

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        """As an `Embedder`'s."""
        ...

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits of one text's ids: float32, (tokens, vocabulary)."""
        ...

    def piece(self, token: int) -> str:
        """A token as its vocabulary writes it, the mark of a word that goes on included."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        ...

    def interruptible(self) -> AbstractContextManager[None]:
        """As an `Embedder`'s."""
        ...

    def close(self) -> None: ...
