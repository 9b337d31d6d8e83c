"""A `TokenModel` on ONNX Runtime: a decoder's graph, its caches, and the tokens known to be in them.

Tokenizing is `onnx_tokenizer.py`'s, what the graph wants `onnx_graph.py`'s, a step `onnx_runner.py`'s. A prompt goes
through in chunks, and its longest common prefix with what the caches hold is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.engines.interrupt import abort_on_interrupt
from localllm.engines.onnx_graph import Interface
from localllm.engines.onnx_runner import Floats, RunFlag, Runner
from localllm.engines.onnx_tokenizer import JsonTokenizer
from localllm.errors import ContextOverflow
from localllm.protocols import Mask, ModelDescription
from localllm.text.biases import read_biases
from localllm.text.sampling import Breakers, Sampler, find_breakers
from localllm.types import Sampling

CHUNK = 256  # tokens of a prompt at once: with 512, attention computes more that its mask throws away


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens of context: those asked for, and those the model was trained for."""

    context: int
    trained: int


class OnnxModel(JsonTokenizer):
    """Raises EngineError and its children."""

    def __init__(
        self,
        session: Any,
        interface: Interface,
        provider: str,
        limits: Limits,
        tokenizer: tuple[Path, dict[str, Any], Sequence[int]],
        *,
        flag: RunFlag,
        single: bool,
        description: ModelDescription,
    ) -> None:
        super().__init__(*tokenizer)
        self._description = description
        self.abort = flag
        self.provider = provider
        self.context, self.trained_context = limits.context, limits.trained
        self.vocabulary_size = interface.vocabulary_size or self.size
        self._interface = interface
        self._runner: Runner | None = Runner(session, interface, provider, flag, single=single)
        self._held: list[int] = []
        self._is_open = False
        self._breakers: dict[tuple[str, ...], Breakers] = {}

    def describe(self) -> ModelDescription:
        return self._description

    def open_context(self, length: int | None = None) -> None:
        self.context = length or self.context
        self._running.open(self.context)
        self._held, self._is_open = [], True

    @property
    def _running(self) -> Runner:
        assert self._runner is not None, "the model was closed"
        return self._runner

    def clear(self) -> None:
        if self._is_open:
            self._running.cut(0)
        self._held = []

    def prefill(self, tokens: Sequence[int]) -> int:
        if len(tokens) >= self.context:
            raise ContextOverflow(len(tokens), self.context, self.trained_context)
        if not self._is_open:
            self.open_context()
        reused = self._rewind(tokens)
        # Graphs with two branches (use_cache_branch) take a whole prompt in one of them, single tokens in the other;
        # those without caches would compute every chunk before again.
        face, step = self._interface, CHUNK
        if face.branch is not None or not face.caches:
            step = 1 if face.branch is not None and reused else max(1, len(tokens))
        for start in range(reused, len(tokens), step):
            self._evaluate(tokens[start : start + step])
        return reused

    def feed(self, token: int) -> None:
        self._evaluate([token])

    def shift(self, keep: int, discard: int) -> bool:
        """False: positions are inside of the cached keys, and only the graph could turn them."""
        return False

    def _rewind(self, tokens: Sequence[int]) -> int:
        """Cut the caches back to their longest common prefix with `tokens`; returns that prefix's length."""
        same = 0
        for held, wanted in zip(self._held, tokens[:-1], strict=False):
            if held != wanted:
                break
            same += 1
        face = self._interface
        if not face.sliceable and same != len(self._held):
            same = 0
        if face.branch is not None and len(tokens) - same > CHUNK // 16:  # token by token it would take longer
            same = 0
        if same != len(self._held):
            self._running.cut(same)
        self._held = self._held[:same]
        return same

    def _evaluate(self, tokens: Sequence[int], rows: int = 1) -> None:
        """Evaluate tokens behind those that are held; `rows` are the last positions whose logits are wanted."""
        self._raise_if_interrupted()
        if self._interface.caches:
            self._running.run(tokens, len(self._held), rows)
        else:
            self._running.run([*self._held, *tokens], 0, rows)
        self._raise_if_interrupted()
        self._held.extend(tokens)

    def _raise_if_interrupted(self) -> None:
        if self.abort.is_up:
            raise KeyboardInterrupt

    def interruptible(self) -> AbstractContextManager[None]:
        return abort_on_interrupt(self.abort)

    def logits(self) -> Floats:
        return self._running.logits()

    @contextmanager
    def sampler(
        self, sampling: Sampling, *, ignore_eos: bool, history: Sequence[int], mask: Mask | None = None
    ) -> Iterator[Callable[[], int]]:
        biases = read_biases(sampling.logit_bias, self.vocabulary_size)
        if ignore_eos:
            biases += [(token, float("-inf")) for token in self.ends if token < self.vocabulary_size]
        chooser = Sampler(
            sampling,
            context=self.context,
            vocabulary_size=self.vocabulary_size,
            biases=biases,
            breakers=self._find_breakers(sampling) if sampling.dry_multiplier > 0 else {},
            history=history,
        )
        yield lambda: chooser.choose(self.logits(), mask)

    def _find_breakers(self, sampling: Sampling) -> Breakers:
        texts = sampling.dry_sequence_breaker
        if texts not in self._breakers:
            pieces = [self.spelled(token) for token in range(self.size)]
            tokenize = lambda text: self.tokenize(text, begin=False, special=False)  # noqa: E731
            self._breakers[texts] = find_breakers(texts, pieces, tokenize)
        return self._breakers[texts]

    def close(self) -> None:
        self._runner, self._held = None, []
        super().close()
