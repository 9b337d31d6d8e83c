"""The generation loop, once for every local engine: messages -> prompt -> ids -> text.

It knows templates, stop strings, UTF-8, limits and timing, and leaves ids, logits and the KV cache to a `TokenModel`.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from localllm.errors import ContextOverflow
from localllm.protocols import Tokenizer, TokenModel
from localllm.text.scores import token_scores
from localllm.text.template import ChatTemplate
from localllm.text.thinking import AnswerStream, Piece, tags_of
from localllm.types import Chunk, Constraint, Finish, Message, Reasoning, Request, Sampling, Usage

if TYPE_CHECKING:
    from localllm.engines.speculation import Draft, Pace, Speculation
    from localllm.text.constrain import Matcher


_HOPELESS = 128  # characters for each token of the context; there is hardly a token as long as that


class Prompter:
    """Messages -> the text and the ids that a model is given; without a template they are plain text."""

    def __init__(self, vocabulary: Tokenizer, template: ChatTemplate | None, *, notices: tuple[str, ...] = ()) -> None:
        self.vocabulary, self._template, self.notices = vocabulary, template, notices
        # Whoever asks how long a prompt is goes on to evaluate it; of a batch, all that run at once.
        self._rendered = lru_cache(maxsize=64)(self._render)

    def prompt(self, messages: tuple[Message, ...], reasoning: Reasoning | None = None) -> str:
        """The text that the model is given for these messages."""
        return self._rendered(messages, reasoning)

    def _render(self, messages: tuple[Message, ...], reasoning: Reasoning | None) -> str:
        if self._template is None:
            return "\n\n".join(m.content for m in messages if m.content)
        variables = reasoning.variables if reasoning else {}
        special = {"bos_token": self.vocabulary.begin_text, "eos_token": self.vocabulary.end_text}
        return self._template.render(messages, special | variables)

    def tokens(self, messages: tuple[Message, ...]) -> list[int]:
        """The ids of `prompt`."""
        return self.encode(self.prompt(messages))

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt. A template often writes the begin token itself; it is not added a second time."""
        written = bool(self.vocabulary.begin_text) and prompt.startswith(self.vocabulary.begin_text)
        return self.vocabulary.tokenize(prompt, begin=not written)

    def unheeded(self, reasoning: Reasoning) -> Iterator[str]:
        """What of these wishes the chat template does not listen to, a sentence each."""
        source = self._template.source if self._template else ""
        if reasoning.think is not None and not re.search(r"\b(enable_)?thinking\b", source):
            if reasoning.think and not tags_of(source):
                yield "this model's chat template knows no thinking: --think changes nothing"
            elif not reasoning.think and tags_of(source):
                yield "this model's chat template has no switch for thinking: --no-think changes nothing"
        if reasoning.effort is not None and "reasoning_effort" not in source:
            yield "this model's chat template does not ask how much to think: --effort changes nothing"

    def close(self) -> None:
        self.vocabulary.close()
        if self._template is not None:
            self._template.close()


class LocalEngine(Prompter):
    """An `Engine` over a `TokenModel`; without a template the messages are completed as plain text.

    `single` says that one request is all there will be, so that its context need not be longer than its limits.
    """

    def __init__(
        self,
        model: TokenModel,
        template: ChatTemplate | None,
        *,
        notices: tuple[str, ...] = (),
        single: bool = False,
    ) -> None:
        super().__init__(model, template, notices=notices)
        self.model, self._single = model, single
        self.draft: Draft | None = None  # a smaller model that guesses for this one
        self.exact: bool | None = None  # whether guesses may change no bit; None: of answers that can be had again
        self._pace: Pace | None = None  # of guesses: it learns from every answer
        self._tokenizer: Any = None  # made for the first answer that is held to a form
        self._tags = tags_of(template.source) if template else None
        # The marks of thinking that are control tokens, of which a piece shows nothing.
        marks = {i for mark in (self._tags.marks if self._tags else ()) for i in model.tokenize(mark, begin=False)}
        self._marks = {token: model.spelled(token) for token in marks if not model.piece(token)}

    @property
    def context(self) -> int:
        return self.model.context

    def count(self, request: Request) -> int:
        return len(self.encode(self.prompt(request.messages, request.reasoning) + request.prefill))

    def stream(self, request: Request) -> Generator[Chunk, None, None]:
        """The answer in chunks, the last with `finish`. Raises ContextOverflow, TemplateError, EngineError."""
        with closing(self.steps(request, self.model)) as steps:
            yield from (chunk for chunk in steps if chunk is not None)

    def steps(self, request: Request, model: TokenModel) -> Generator[Chunk | None, None, None]:
        """The same with a model of the caller's, and a None before the logits are read.

        There a model whose `prefill` and `feed` only take note of tokens can evaluate those of several answers at once.
        """
        limits = request.limits
        started = time.perf_counter()
        text = self.prompt(request.messages, request.reasoning)
        self._refuse_the_hopeless(text)
        held = self.encode(text + request.prefill)
        length = len(held)
        matcher = self._matcher(request.constraint, request.prefill)
        # What is held to a form has no room for thinking.
        output = AnswerStream(limits.stop, None if matcher else self._tags, text)
        finish: Finish = "length"
        with model.interruptible():
            needed = min(length + limits.max_tokens, model.context) if limits.max_tokens else model.context
            if self._single and length < needed < model.context:
                model.open_context(needed)
            reused = model.prefill(held)
            first = time.perf_counter()
            yield from _chunks(output.given(request.prefill))
            mask = matcher.mask if matcher else None
            guessing = self._guessing(model, held, request.sampling)
            with model.sampler(request.sampling, ignore_eos=limits.ignore_eos, history=held, mask=mask) as sample:
                for count in itertools.count(1):
                    yield None
                    token = sample()
                    if model.is_end(token):
                        finish = "stop"
                        break
                    scores = token_scores(model, token, request.logprobs) if request.logprobs is not None else None
                    if matcher:
                        matcher.accept(token)
                    *pieces, (kind, said) = output.push(self._marks.get(token) or model.piece(token)) or [
                        ("answer", "")
                    ]
                    yield from _chunks(pieces)
                    yield Chunk(said, token, kind=kind, scores=scores)
                    if output.stopped is not None or (matcher and matcher.ended):
                        finish = "stop"
                        break
                    if count == limits.max_tokens or (
                        len(held) + 1 >= model.context and not self._shift(request, held, model)
                    ):
                        break
                    if guessing:
                        most = limits.max_tokens or model.context
                        guessing.feed(token, min(model.context - len(held) - 2, most - count - 1))
                    else:
                        model.feed(token)
                    held.append(token)
        counts = (guessing.drafted, guessing.accepted) if guessing else ()
        usage = Usage(length, reused, count, first - started, time.perf_counter() - first, *counts)
        fulfilled = matcher is None or (matcher.fulfilled and output.stopped is None)
        *pieces, (kind, said) = output.finish() or [("answer", "")]
        yield from _chunks(pieces)
        yield Chunk(said, finish=finish, usage=usage, kind=kind, fulfilled=fulfilled)

    def _refuse_the_hopeless(self, text: str) -> None:
        """Raise ContextOverflow where the longest tokens would be too many: a text of 16 MB takes half a minute to be
        made into ids, in native code that no signal ends."""
        model = self.model
        if len(text) > _HOPELESS * model.context:
            longest = max(len(model.spelled(token)) for token in range(model.vocabulary_size))
            if (least := len(text) // max(longest, 1)) > model.context:
                raise ContextOverflow(least, model.context, model.trained_context, exact=False)

    def _shift(self, request: Request, held: list[int], model: TokenModel) -> bool:
        """In a context that an answer has filled, forget the older half of what follows the system prompt."""
        if request.limits.on_overflow != "shift":
            return False
        system = tuple(m for m in request.messages[:1] if m.role == "system")
        other = self.encode(self.prompt((*system, Message("user", ".")), request.reasoning))
        keep = next((i for i, (a, b) in enumerate(zip(held, other, strict=False)) if a != b), len(other))
        discard = (len(held) - keep) // 2
        if discard < 1:
            return False
        del held[keep : keep + discard]
        if not model.shift(keep, discard):
            model.prefill(held)
        return True

    def _guessing(self, model: TokenModel, tokens: list[int], sampling: Sampling) -> Speculation | None:
        """What feeds the model with guesses, where it is this engine's and takes any."""
        guesser: Any = model  # where it has what an `Ahead` has
        if model is not self.model or not hasattr(model, "lookahead"):
            return None
        guesser.exact = sampling.repeatable if self.exact is None else self.exact
        if not guesser.lookahead:
            return None
        from localllm.engines.speculation import Pace, Speculation

        self._pace = self._pace or Pace()
        return Speculation(guesser, self._pace, tokens, self.draft)

    def close(self) -> None:
        if self.draft is not None:
            self.draft.model.close()
        super().close()

    def _matcher(self, constraint: Constraint | None, prefill: str) -> Matcher | None:
        """What follows an answer through the form it is held to. Raises UsageError."""
        if constraint is None:
            return None
        from localllm.text.constrain import Matcher, compile_constraint, make_tokenizer

        grammar = compile_constraint(constraint)
        self._tokenizer = self._tokenizer or make_tokenizer(self.model)
        return Matcher(self._tokenizer, grammar, constraint, prefill)


def _chunks(pieces: Iterable[Piece]) -> Iterator[Chunk]:
    return (Chunk(text, kind=kind) for kind, text in pieces)
