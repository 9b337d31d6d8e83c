"""The words that every part of the house speaks: requests go in, chunks come out.

Nothing here computes; whoever answers a request is described in `protocols.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from localllm.fields import check_all, option

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

    @property
    def repeatable(self) -> bool:
        """Whether the same prompt is to have the same answer again."""
        greedy = self.temperature == 0 or (not self.mirostat and (self.top_k == 1 or self.top_p == 0))
        return greedy or self.seed is not None


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

    speculate: str = option(
        "auto",
        "Guess where a text repeats itself: exact (the answer is the same), loose (wherever it is faster), auto (exact "
        "where greedy or with --seed), or off.",
        choices=("auto", "exact", "loose", "off"),
    )
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
