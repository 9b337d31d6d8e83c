"""The words that every part of the house speaks: requests go in, chunks come out.

Nothing here computes. `Engine` is what a conversation or a job needs; `TokenModel` is the smaller thing that a local
engine implements, so that the generation loop (`engines/local.py`) exists once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from localllm.errors import LocalLLMError
from localllm.fields import check_all, option

if TYPE_CHECKING:
    import numpy as np

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length"]
# An engine says answers and thinking; a conversation adds its summaries and notices (`conversation.py`).
Kind = Literal["answer", "thinking", "summary", "notice"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen from the logits. The defaults are llama.cpp's own."""

    temperature: float = option(0.8, "Sharpens (below 1) or flattens the distribution; 0 is greedy.", minimum=0)
    top_k: int = option(40, "Keep the K likeliest tokens; 0 keeps all.", minimum=0, maximum=2**31 - 1)
    top_p: float = option(0.95, "Keep the likeliest tokens that add up to P; 1 is off.", minimum=0, maximum=1)
    min_p: float = option(0.05, "Drop tokens below P times the likeliest; 0 is off.", minimum=0, maximum=1)
    typical_p: float = option(1.0, "Locally typical sampling (arXiv 2202.00666); 1 is off.", minimum=0, maximum=1)
    top_n_sigma: float = option(
        0.0, "Keep logits within N deviations of the top (arXiv 2411.07641); 0 is off.", minimum=0
    )
    xtc_probability: float = option(0.0, "How often XTC drops the top choices; 0 is off.", minimum=0, maximum=1)
    xtc_threshold: float = option(0.1, "XTC drops all but the last above this probability.", minimum=0, maximum=1)
    dry_multiplier: float = option(0.0, "Strength of the DRY penalty on repeated sequences; 0 is off.", minimum=0)
    dry_base: float = option(1.75, "Base of the DRY penalty's exponent.", minimum=0)
    dry_allowed_length: int = option(2, "Repeats up to this many tokens are free under DRY.", minimum=0, maximum=2**20)
    dry_penalty_last_n: int = option(
        -1, "Tokens DRY looks back over; -1 is the whole context.", minimum=-1, maximum=2**20
    )
    dry_sequence_breaker: tuple[str, ...] = option(("\n", ":", '"', "*"), "Text that ends a DRY sequence (repeatable).")
    repeat_penalty: float = option(1.0, "Divides the logits of tokens seen lately; 1 is off.", minimum=0.01)
    repeat_last_n: int = option(
        64, "Tokens the three penalties look back over; -1 is the whole context.", minimum=-1, maximum=2**20
    )
    presence_penalty: float = option(0.0, "Subtracted once from each token seen lately.", minimum=-100, maximum=100)
    frequency_penalty: float = option(0.0, "Subtracted for each time a token was seen.", minimum=-100, maximum=100)
    mirostat: int = option(0, "Mirostat (arXiv 2007.14966) version 1 or 2; 0 is off.", minimum=0, maximum=2)
    mirostat_tau: float = option(5.0, "Mirostat's target surprise.", minimum=0)
    mirostat_eta: float = option(0.1, "Mirostat's learning rate.", minimum=0)
    logit_bias: tuple[str, ...] = option((), "TOKEN_ID=BIAS added to a token's logit (repeatable); -inf forbids it.")
    seed: int | None = option(
        None, "Seed of the random draws; the same seed gives the same text.", minimum=0, maximum=2**32 - 2
    )

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an answer ends."""

    max_tokens: int | None = option(
        None,
        "At most this many tokens; without it, until the context is full.",
        minimum=1,
        maximum=2**31 - 1,
        short="-n",
    )
    stop: tuple[str, ...] = option((), "End before this text (repeatable).")
    ignore_eos: bool = option(False, "Never choose an end-of-generation token.")
    on_overflow: str = option(
        "auto",
        "When the context is full: error, shift, summarize, drop-oldest; auto: error in run, summarize in chat.",
        choices=("auto", "error", "shift", "summarize", "drop-oldest"),
    )

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Whether and how much a model thinks before it answers, for templates that ask (`text/thinking.py`)."""

    think: bool | None = option(None, "Think before answering; without it, as the model's template has it.")
    effort: str | None = option(
        None, "How much to think, where the template asks.", choices=("minimal", "low", "medium", "high")
    )

    def __post_init__(self) -> None:
        check_all(self)

    @property
    def variables(self) -> dict[str, str | bool]:
        """What templates call it."""
        found: dict[str, str | bool] = {}
        if self.think is not None:
            found |= {"enable_thinking": self.think, "thinking": self.think}
        if self.effort is not None:
            found["reasoning_effort"] = self.effort
        return found


@dataclass(frozen=True, slots=True)
class Keeping:
    history: bool = option(True, "Keep the conversation (localllm history lists them).")

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How the chat is shown and typed."""

    raw: bool = option(False, "Show answers as they come, without drawing Markdown.", switch=True)
    vi: bool = option(False, "Edit as vi does; without it, as readline.", switch=True)
    multiline: bool = option(False, "Enter begins a new line, and Alt-Enter sends.", switch=True)
    show_thinking: bool = option(False, "Show what the model thinks (Ctrl-O in the chat).", switch=True)

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is opened. `None` leaves the choice to the engine."""

    context: int | None = option(
        None,
        "Context length in tokens; the smaller of 8192 and the model's own without it.",
        minimum=8,
        maximum=2**24,
        short="-c",
    )
    gpu_layers: str = option("auto", "Layers on the GPU: auto, all, or a number.")
    provider: str = option("auto", "What computes ONNX models: auto, cpu, cuda, ...; `doctor` shows what there is.")
    threads: int | None = option(None, "Threads; the physical cores without it.", minimum=1, maximum=512, short="-t")
    flash_attention: str = option("auto", "Flash attention: auto, on or off.", choices=("auto", "on", "off"))
    cache_type_k: str = option(
        "f16",
        "Type of the KV cache's keys.",
        choices=("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
    )
    cache_type_v: str = option(
        "f16",
        "Type of the KV cache's values.",
        choices=("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
    )
    mmap: bool = option(True, "Map the file into memory instead of reading it.")
    lora: tuple[str, ...] = option((), "A LoRA adapter, FILE[:SCALE] (repeatable).")
    template: str = option("auto", "Chat template: auto, none, a built-in name, or a Jinja file.")

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What is kept on disk of evaluated prompts (`engines/prefix_cache.py`)."""

    no_cache: bool = option(False, "Neither keep evaluated prompts on disk nor look for them there.", switch=True)
    cache_size: float = option(2.0, "GB that evaluated prompts may take on disk.", minimum=0, maximum=10**6)

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True, slots=True)
class Guessing:
    """What may be guessed ahead and checked by the model (`engines/speculation.py`)."""

    speculate: bool = option(True, "Guess ahead where a text repeats itself; the answer is the same, and comes faster.")
    draft: str | None = option(None, "A small MODEL of the same vocabulary that guesses for a large one.")

    def __post_init__(self) -> None:
        check_all(self)


ConstraintKind = Literal["schema", "grammar", "regex", "choice"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer is held to; `text/constrain.py` compiles it.

    `text` is a JSON Schema, a grammar in GBNF, a regular expression, or a JSON list of strings.
    """

    kind: ConstraintKind
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """`prefill` is how the answer begins; with `logprobs` every chunk of a token has that many alternatives."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    constraint: Constraint | None = None
    prefill: str = ""
    logprobs: int | None = None
    reasoning: Reasoning = field(default_factory=Reasoning)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost: tokens, and seconds until the first token and from there to the last."""

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prompt_seconds: float
    decode_seconds: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely a token was in the model's own distribution, before any sampling: `logprob` is a natural logarithm."""

    token: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Scores:
    """The token that was chosen, and the likeliest ones, the best first."""

    chosen: TokenScore
    top: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. `text` can be shown now, may be empty; the last chunk alone has `finish` and `usage`.

    `fulfilled` is false on the last chunk of an answer that was cut before it had the form its request asks for.
    """

    text: str
    token: int | None = None
    finish: Finish | None = None
    usage: Usage | None = None
    scores: Scores | None = None
    fulfilled: bool = True
    kind: Kind = "answer"


# A bit a token, set where it is allowed: token i is bit i % 8 of byte i // 8.
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
