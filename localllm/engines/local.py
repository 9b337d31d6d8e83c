"""The generation loop, once for every local engine: messages -> prompt -> ids -> text.

It knows templates, stop strings, UTF-8, limits and timing, and leaves ids, logits and the KV cache to a `TokenModel`.
"""

from __future__ import annotations

import time
from collections.abc import Generator

from localllm.text.stream import TextStream
from localllm.text.template import ChatTemplate
from localllm.types import Chunk, Finish, Message, Request, Tokenizer, TokenModel, Usage


class Prompter:
    """Messages -> the text and the ids that a model is given; without a template they are plain text."""

    def __init__(self, vocabulary: Tokenizer, template: ChatTemplate | None) -> None:
        self.vocabulary, self._template = vocabulary, template

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The text that the model is given for these messages."""
        if self._template is None:
            return "\n\n".join(m.content for m in messages if m.content)
        special = {"bos_token": self.vocabulary.begin_text, "eos_token": self.vocabulary.end_text}
        return self._template.render(messages, special)

    def tokens(self, messages: tuple[Message, ...]) -> list[int]:
        """The ids of `prompt`. A template often writes the begin token itself; it is not added a second time."""
        text = self.prompt(messages)
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
        super().__init__(model, template)
        self.model, self.notices, self._single = model, notices, single

    def stream(self, request: Request) -> Generator[Chunk, None, None]:
        """The answer in chunks, the last with `finish`. Raises ContextOverflow, TemplateError, EngineError."""
        model, limits = self.model, request.limits
        started = time.perf_counter()
        prompt = self.tokens(request.messages)
        room = min(limits.max_tokens or model.context, model.context - len(prompt))
        text = TextStream(limits.stop)
        finish: Finish = "length"
        count = 0
        with model.interruptible():
            if self._single and limits.max_tokens and room > 0:
                model.open_context(len(prompt) + room)
            reused = model.prefill(prompt)
            first = time.perf_counter()
            with model.sampler(request.sampling, ignore_eos=limits.ignore_eos, history=prompt) as sample:
                for count in range(1, room + 1):
                    token = sample()
                    if model.is_end(token):
                        finish = "stop"
                        break
                    yield Chunk(text.push(model.piece(token)), token)
                    if text.stopped is not None:
                        finish = "stop"
                        break
                    if count < room:
                        model.feed(token)
        usage = Usage(len(prompt), reused, count, first - started, time.perf_counter() - first)
        yield Chunk(text.finish(), finish=finish, usage=usage)
