"""localllm from Python, for scripts and notebooks: `from localllm import load`.

    model = load("smollm2:135m")
    model.chat("What is gravity?", max_tokens=60)         # a str that knows its usage
    for piece in model.stream("Tell me a story."): ...
    model.explain("The capital of France is Paris.")      # shows itself, coloured, in a notebook

A model is found as the command line finds it, settings and environment included. What a call needs (the engine, the
tokenizer, logits of every position, vectors) is opened when it is first asked for, and kept until `close`. Options are
those of `localllm run --help`, by their names in Python: `load` takes the engine's, the calls those of sampling and
length. Calls from several threads take turns.

What was written by a model or a user is escaped wherever it is shown as HTML.
"""

from __future__ import annotations

import difflib
import html
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from localllm.commands._model import resolve
from localllm.errors import UsageError
from localllm.fields import options as options_of
from localllm.jobs.attention import Attention, attend
from localllm.jobs.explain import PRECISE, TOP, Explanation, collect, explain
from localllm.settings import build, load_settings
from localllm.types import EngineOptions, Limits, Message, Reasoning, Request, Sampling, Usage
from localllm.ui import heat, tokens
from localllm.ui.attention_html import page
from localllm.ui.attention_svg import MAX_TOKENS, svg

if TYPE_CHECKING:
    import numpy as np

    from localllm.engines.local import LocalEngine

Talk = str | Sequence[Message | Mapping[str, str]]
_T = TypeVar("_T")
_CALL = (Sampling, Limits, Reasoning)


def load(name: str | Path | None = None, *, engine: str = "auto", fetch: bool = False, **options: Any) -> Model:
    """A model by its name, repository or file; the default one without.

    `fetch` downloads one that is not here without asking. Raises ModelNotFound, DownloadError, UsageError.
    """
    _check("load", options, (EngineOptions,))
    settings = load_settings()
    asked = str(name) if name else settings.model
    found = resolve(asked, yes=fetch)
    own = settings.of(found.name, asked)
    return Model(found.name, found.path, engine, (found.options, own, _tuples(options)), {**found.sampling, **own})


class Answer(str):
    """The text of an answer. `usage` tells what it cost, `finish` why it ended ("stop" or "length"), `thinking` what
    the model thought before it."""

    usage: Usage
    finish: str
    thinking: str

    def _repr_html_(self) -> str:
        cost = f"{self.usage.completion_tokens} tokens, {self.finish}"
        return f'<div style="white-space:pre-wrap">{html.escape(self)}</div><small>{html.escape(cost)}</small>'


@dataclass(frozen=True, slots=True)
class Token:
    """`data` are its exact bytes, `text` those as text with U+FFFD where they are none."""

    id: int
    data: bytes
    special: bool

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


class Tokens(tuple[Token, ...]):
    """The tokens of a text."""

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self]

    def _repr_html_(self) -> str:
        return tokens.to_html([(token.id, token.data, token.special) for token in self])


class Explained(Explanation):
    """An `Explanation` that a notebook shows as a coloured text; rest on a token to read its figures."""

    def _repr_html_(self) -> str:
        return heat.to_html(self)


class Seen(Attention):
    """An `Attention` that a notebook shows as a matrix, the mean of what it has."""

    def svg(self, layer: int | None = None, head: int | None = None, combine: str = "mean") -> Picture:
        """The matrix of a layer and a head, or of all: "mean", "max" or "rollout". Raises UsageError."""
        matrix = self.matrix(layer, head, cast(Any, combine))
        of_layers = combine if layer is None else f"layer {layer}"
        return Picture(svg(matrix, self.data, f"{of_layers}, {'all heads' if head is None else f'head {head}'}"))

    def html(self, title: str = "Attention") -> str:
        """A page to browse layers and heads, whole and without a network; write it to a file."""
        return page(self, title)

    def _repr_html_(self) -> str:
        if len(self.tokens) > MAX_TOKENS:
            return f"<small>attention between {len(self.tokens)} tokens: too many for a picture; see .weights</small>"
        return self.svg()._repr_html_()


class Picture(str):
    """An SVG."""

    def _repr_html_(self) -> str:
        return str(self)


class Model:
    """An open model; close it, or use it in a `with`. Raises what `localllm.errors` has."""

    def __init__(
        self, name: str, path: Path, engine: str, layers: Sequence[Mapping[str, Any]], advice: Mapping[str, Any]
    ) -> None:
        self.name, self.path = name, path
        self._kind, self._layers, self._advice = engine, layers, advice
        self._opened: dict[str, Any] = {}
        self._lock, self._owner, self._closed = threading.Lock(), 0, False

    def chat(self, messages: Talk, *, system: str | None = None, **options: Any) -> Answer:
        """The answer to a text, or to messages (`{"role": ..., "content": ...}`), through the chat template."""
        return self._whole(self._stream(_messages(messages, system), False, options, "chat"))

    def generate(self, text: str, **options: Any) -> Answer:
        """How the model goes on with a text, without a template."""
        return self._whole(self._stream((Message("user", text),), True, options, "generate"))

    def stream(
        self, messages: Talk, *, system: str | None = None, plain: bool = False, **options: Any
    ) -> Generator[str, None, None]:
        """The pieces of an answer as they come; `plain` goes on with a text, as `generate` does.

        Until it is read to its end or closed, no other call gets its turn.
        """
        parts = self._stream(_messages(messages, system), plain, options, "stream")
        return _texts(parts)

    def tokenize(self, text: str, *, chat: bool = False, special: bool = True) -> Tokens:
        """The tokens of a text, or of what the template makes of it; `special` as with `localllm tokenize`."""
        with self._turn():
            found, spell = self._ids(text, chat, special=special), self._tokenizer()
            return Tokens(Token(token, spell.spelled(token), spell.is_special(token)) for token in found)

    def explain(self, text: str, *, chat: bool = False, more: int = 0, top: int = TOP, **sampling: Any) -> Explained:
        """How probable the model found each token, with `top` alternatives, and of `more` tokens that it adds."""
        _check("explain", sampling, (Sampling,))
        with self._turn():
            model = self._text_model()
            chosen = build(Sampling, self._advice, _tuples(sampling))
            found = collect(explain(model, self._ids(text, chat), top=top, more=more, sampling=chosen))
            return Explained(found.steps, found.following)

    def attention(self, text: str, *, chat: bool = False, layer: int | None = None) -> Seen:
        """Which earlier tokens each token looks at, in every layer and head, or in those of one layer."""
        with self._turn():
            found = attend(self._text_model(), self._ids(text, chat), layer)
            return Seen(found.tokens, found.data, found.special, found.layers, found.weights)

    def embed(self, texts: str | Sequence[str], *, normalize: bool = True, truncate: bool = False) -> np.ndarray:
        """Vectors, float32: (dimensions,) of one text, (texts, dimensions) of several."""
        from localllm.engines import open_embedder
        from localllm.jobs.embed import embed

        with self._turn():
            opened = self._open("embedder", partial(open_embedder, self.path, build(EngineOptions, *self._layers)))
            many = [texts] if isinstance(texts, str) else list(texts)
            found = embed(opened, many, normalize=normalize, truncate=truncate)
            return cast("np.ndarray", found[0]) if isinstance(texts, str) else found

    def close(self) -> None:
        """Free everything. The model cannot be used afterwards."""
        with self._turn():
            self._closed = True
            while self._opened:
                self._opened.popitem()[1].close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<localllm model {self.name}{', closed' if self._closed else ''}>"

    # What is behind it

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One call at a time. The same thread would wait for itself: that is an error instead."""
        if self._owner == threading.get_ident():
            raise UsageError("a stream of this model is still open", "read it to its end, or close() it")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = 0

    def _open(self, key: str, opener: Callable[[], _T]) -> _T:
        if self._closed:
            raise UsageError(f"{self.name} was closed", "load it again")
        if key not in self._opened:
            self._opened[key] = opener()
            for notice in getattr(self._opened[key], "notices", ()):
                warnings.warn(notice, stacklevel=4)
        return cast(_T, self._opened[key])

    def _engine(self) -> LocalEngine:
        from localllm.engines import open_engine

        options = build(EngineOptions, *self._layers)
        return cast("LocalEngine", self._open("engine", partial(open_engine, self._kind, self.path, options)))

    def _text_model(self) -> Any:
        from localllm.engines import open_text_model

        options = build(EngineOptions, self._layers[0], PRECISE, *self._layers[1:])
        return self._open("text", partial(open_text_model, self.path, options))

    def _tokenizer(self) -> Any:
        from localllm.engines import open_tokenizer

        return self._open("tokenizer", partial(open_tokenizer, self.path)).vocabulary

    def _ids(self, text: str, chat: bool, *, special: bool = True) -> list[int]:
        if chat:
            return self._engine().tokens((Message("user", text),))
        return list(self._tokenizer().tokenize(text, begin=special, special=special))

    def _stream(self, messages: tuple[Message, ...], plain: bool, options: Mapping[str, Any], call: str) -> Any:
        _check(call, options, _CALL)
        layers = (self._advice, _tuples(options))
        request = Request(
            messages, build(Sampling, *layers), build(Limits, *layers), reasoning=build(Reasoning, *layers)
        )
        return self._answered(request, plain)

    def _answered(self, request: Request, plain: bool) -> Iterator[Any]:
        from localllm.engines.local import LocalEngine

        with self._turn():
            engine = self._engine()
            yield from (LocalEngine(engine.model, None) if plain else engine).stream(request)

    def _whole(self, chunks: Any) -> Answer:
        with closing(chunks):
            parts = list(chunks)
        answer = Answer("".join(part.text for part in parts if part.kind == "answer"))
        answer.thinking = "".join(part.text for part in parts if part.kind == "thinking")
        answer.usage, answer.finish = parts[-1].usage, parts[-1].finish
        return answer


def _texts(chunks: Any) -> Generator[str, None, None]:
    with closing(chunks):
        yield from (chunk.text for chunk in chunks if chunk.text and chunk.kind == "answer")


def _messages(talk: Talk, system: str | None) -> tuple[Message, ...]:
    first = (Message("system", system),) if system else ()
    if isinstance(talk, str):
        return (*first, Message("user", talk))
    found = []
    for one in talk:
        made = one if isinstance(one, Message) else Message(cast(Any, one.get("role")), str(one.get("content", "")))
        if made.role not in ("system", "user", "assistant"):
            raise UsageError(f"a message has the role {made.role!r}", "system, user or assistant")
        found.append(made)
    return (*first, *found)


def _check(call: str, given: Mapping[str, Any], classes: tuple[type, ...]) -> None:
    known = [name for cls in classes for name in options_of(cls)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(f"{call}() has no option {name!r}", f"{near[0]}?" if near else "localllm run --help")


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of several values, which may be written as lists or as one text."""
    several = {name for cls in (EngineOptions, *_CALL) for name, option in options_of(cls).items() if option.many}
    made = {}
    for name, value in given.items():
        values = (value,) if isinstance(value, str) else value
        made[name] = tuple(values) if name in several else value
    return made
