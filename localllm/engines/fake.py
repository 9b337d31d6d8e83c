"""A scripted engine: its tokens are bytes, and its answer is the text of the file it is given.

It stands behind the same loop as the real ones, and serves whoever wants to see what a certain answer looks like.
`--engine fake -m FILE` answers with FILE every time; it completes plain text unless a `--template` is named. A first
line `#!answers 0.01` says how many seconds a token takes, and that a form feed ends an answer and begins the next.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.engines.interrupt import AbortFlag, abort_on_interrupt
from localllm.engines.local import LocalEngine
from localllm.errors import ContextOverflow, ModelNotFound
from localllm.protocols import Mask
from localllm.text.template import ChatTemplate, template_source
from localllm.types import EngineOptions, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

END = 256
_SCRIPTED = re.compile(rb"#!answers (\d+(?:\.\d+)?)\n")


def open_model(path: Path, options: EngineOptions, *, single: bool = False) -> LocalEngine:
    try:
        script = path.read_bytes()
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read: {error.strerror}") from None
    source, _ = template_source(options.template, None, False, ())
    template = ChatTemplate(source) if source else None
    return LocalEngine(FakeModel(script, options.context or 8192), template, single=single)


class FakeModel:
    """A `TokenModel` with 256 tokens, one a byte, and one that ends the answer."""

    begin_text = end_text = ""
    vocabulary_size = END + 1

    def __init__(self, script: bytes, context: int) -> None:
        self._drawn = END
        scripted = _SCRIPTED.match(script)
        self._answers = itertools.cycle(script[scripted.end() :].split(b"\f") if scripted else [script])
        self._seconds = float(scripted[1]) if scripted else 0.0
        self._held: list[int] = []
        self._abort = AbortFlag()
        self.context = self.trained_context = context
        self.closed = False

    def tokenize(self, text: str, *, begin: bool, special: bool = True) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return b"" if token == END else bytes([token])

    def spelled(self, token: int) -> bytes:
        return self.piece(token) or b"<end>"

    def is_special(self, token: int) -> bool:
        return token == END

    def is_end(self, token: int) -> bool:
        return token == END

    def open_context(self, length: int | None = None) -> None:
        self.clear()
        self.context = length or self.context

    def clear(self) -> None:
        self._held = []

    def prefill(self, tokens: Sequence[int]) -> int:
        if len(tokens) >= self.context:
            raise ContextOverflow(len(tokens), self.context, self.trained_context)
        same = 0
        for held, wanted in zip(self._held, tokens[:-1], strict=False):
            if held != wanted:
                break
            same += 1
        self._held = list(tokens)
        return same

    def feed(self, token: int) -> None:
        time.sleep(self._seconds)
        if self._abort.is_up:
            raise KeyboardInterrupt
        self._held.append(token)

    def shift(self, keep: int, discard: int) -> bool:
        del self._held[keep : keep + discard]
        return True

    def interruptible(self) -> AbstractContextManager[None]:
        return abort_on_interrupt(self._abort)

    def logits(self) -> NDArray[np.float32]:
        """The byte of the script that was drawn last stands 8 above all others."""
        import numpy as np

        scores = np.zeros(self.vocabulary_size, np.float32)
        scores[self._drawn] = 8
        return scores

    @contextmanager
    def sampler(
        self, sampling: Sampling, *, ignore_eos: bool, history: Sequence[int], mask: Mask | None = None
    ) -> Iterator[Callable[[], int]]:
        """The script, or what comes nearest to it among the allowed tokens: the next one above in number."""
        script = iter([*next(self._answers), END])

        def draw() -> int:
            drawn = self._drawn = next(script, END)
            if mask is None:
                return drawn
            bits = mask()
            allowed = [token for token in range(self.vocabulary_size) if bits[token // 8] >> token % 8 & 1]
            return min(allowed, key=lambda token: (token - drawn) % self.vocabulary_size)

        yield draw

    def close(self) -> None:
        self.closed = True
