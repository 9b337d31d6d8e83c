"""The generation loop, once for every local engine: messages -> prompt -> ids -> text.

It knows templates, stop strings, UTF-8, limits and timing, and leaves ids, logits and the KV cache to a `TokenModel`.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from localllm.text.scores import token_scores
from localllm.text.stream import TextStream
from localllm.text.template import ChatTemplate
from localllm.types import Chunk, Constraint, Finish, Message, Request, Tokenizer, TokenModel, Usage

if TYPE_CHECKING:
    from localllm.text.constrain import Matcher


class Prompter:
    """Messages -> the text and the ids that a model is given; without a template they are plain text."""

    def __init__(self, vocabulary: Tokenizer, template: ChatTemplate | None, *, notices: tuple[str, ...] = ()) -> None:
        self.vocabulary, self._template, self.notices = vocabulary, template, notices

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The text that the model is given for these messages."""
        if self._template is None:
            return "\n\n".join(m.content for m in messages if m.content)
        special = {"bos_token": self.vocabulary.begin_text, "eos_token": self.vocabulary.end_text}
        return self._template.render(messages, special)

    def tokens(self, messages: tuple[Message, ...], prefill: str = "") -> list[int]:
        """The ids of `prompt` and of the answer's begin `prefill`.

        A template often writes the begin token itself; it is not added a second time.
        """
        text = self.prompt(messages) + prefill
        written = bool(self.vocabulary.begin_text) and text.startswith(self.vocabulary.begin_text)
        return self.vocabulary.tokenize(text, begin=not written)

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
        self._tokenizer: Any = None  # made for the first answer that is held to a form

    def stream(self, request: Request) -> Generator[Chunk, None, None]:
        """The answer in chunks, the last with `finish`. Raises ContextOverflow, TemplateError, EngineError."""
        model, limits = self.model, request.limits
        started = time.perf_counter()
        prompt = self.tokens(request.messages, request.prefill)
        matcher = self._matcher(request.constraint, request.prefill)
        room = min(limits.max_tokens or model.context, model.context - len(prompt))
        text = TextStream(limits.stop)
        finish: Finish = "length"
        count = 0
        with model.interruptible():
            if self._single and limits.max_tokens and room > 0 and model.context != len(prompt) + room:
                model.open_context(len(prompt) + room)
            reused = model.prefill(prompt)
            first = time.perf_counter()
            if request.prefill:
                yield Chunk(request.prefill)
            mask = matcher.mask if matcher else None
            with model.sampler(request.sampling, ignore_eos=limits.ignore_eos, history=prompt, mask=mask) as sample:
                for count in range(1, room + 1):
                    token = sample()
                    if model.is_end(token):
                        finish = "stop"
                        break
                    scores = token_scores(model, token, request.logprobs) if request.logprobs is not None else None
                    if matcher:
                        matcher.accept(token)
                    yield Chunk(text.push(model.piece(token)), token, scores=scores)
                    if text.stopped is not None or (matcher and matcher.ended):
                        finish = "stop"
                        break
                    if count < room:
                        model.feed(token)
        usage = Usage(len(prompt), reused, count, first - started, time.perf_counter() - first)
        fulfilled = matcher is None or (matcher.fulfilled and text.stopped is None)
        yield Chunk(text.finish(), finish=finish, usage=usage, fulfilled=fulfilled)

    def _matcher(self, constraint: Constraint | None, prefill: str) -> Matcher | None:
        """What follows an answer through the form it is held to. Raises UsageError."""
        if constraint is None:
            return None
        from localllm.text.constrain import Matcher, compile_constraint, make_tokenizer

        grammar = compile_constraint(constraint)
        self._tokenizer = self._tokenizer or make_tokenizer(self.model)
        return Matcher(self._tokenizer, grammar, f"--{constraint.kind}", prefill)
