"""llama.cpp with several sequences in one context, whose next tokens are evaluated together.

Each sequence has a KV cache of its own (llama.cpp's `kv_unified` off). In one cache for all, every token also looks at
the cells of the others only to find them masked: measured, 1.1 times the work with 16 sequences and 4 times with 64.
What all prompts begin with is evaluated once and copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from localllm.engines.llama_chain import penalizes
from localllm.engines.llama_model import BATCH, LlamaModel
from localllm.engines.native import log
from localllm.errors import ContextOverflow, EngineError
from localllm.protocols import Mask
from localllm.types import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CELLS = 256  # llama.cpp makes the caches multiples of this
_SHARED = 0  # the sequence of the common prefix; the others follow
_AT_ONCE = 512  # tokens; what llama.cpp makes of a longer batch (its n_ubatch)
UNLIMITED = 2048  # tokens that room is made for where an answer has no limit
_LEAST_SHARED = 4  # tokens; fewer are not worth a copy


class NeedsRoom(Exception):
    """A sequence would need `tokens` of context, and the caches are shorter."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class Sequences(LlamaModel):
    """Raises EngineError and its children."""

    _batch: Any = None
    _shared: Sequence[int] = ()  # what all sequences begin with, evaluated once

    def open_sequences(self, count: int, length: int) -> list[SequenceView]:
        """Make `count` sequences with room for `length` tokens each, in the place of those there were."""
        length = -(-length // CELLS) * CELLS
        self._shared = []
        self._make_context(
            (count + 1) * length, n_batch=BATCH, n_seq_max=count + 1, n_outputs_max=count + 1, kv_unified=False
        )
        if self._batch is None:
            self._batch = self._llama.llama_batch_init(BATCH, 0, 1)
        return [SequenceView(self, number, length) for number in range(1, count + 1)]

    def arrange(self, views: Sequence[SequenceView]) -> None:
        """Prompts that have just been given to these sequences: those of one length become neighbours (`evaluate`)."""
        numbers = sorted(view.number for view in views)
        for view, number in zip(sorted(views, key=lambda view: len(view.waiting)), numbers, strict=True):
            if view.number != number:
                view.number = number
                view.prefill([*self._shared[: view.held], *view.waiting])

    def begin(self, number: int, tokens: Sequence[int]) -> int:
        """Empty a sequence, and give it what is shared if `tokens` begin so; returns how many tokens it has then."""
        api, length = self._llama, len(self._shared)
        api.llama_memory_seq_rm(self._memory, number, -1, -1)
        if not length or length >= len(tokens) or list(tokens[:length]) != self._shared:
            return 0
        api.llama_memory_seq_cp(self._memory, _SHARED, number, -1, -1)
        return length

    def share(self, views: Sequence[SequenceView]) -> None:
        """Evaluate once what the waiting prompts of these sequences begin with, unless something is shared already."""
        if self._shared or len(views) < 2:
            return
        prompts = [view.waiting[:-1] for view in views]
        first, last = min(prompts), max(prompts)
        common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        if common < _LEAST_SHARED:
            return
        for start in range(0, common, BATCH):
            part = first[start : min(common, start + BATCH)]
            self._evaluate([(token, start + i, _SHARED, False) for i, token in enumerate(part)])
        self._shared = first[:common]
        for view in views:
            view.prefill(view.waiting)

    def evaluate(self, views: Sequence[SequenceView]) -> list[SequenceView]:
        """Evaluate what waits, at most a batch of it; returns the sequences whose logits are there, in their order.

        Each of these knows by `output` where they are.
        """
        # Prompts first, so that all go on together afterwards. llama.cpp splits a batch where the numbers of sequences
        # leave a gap, and where lengths differ: neighbours go together, and none in two parts that fits into one.
        prompts = [view for view in views if len(view.waiting) > 1]
        room = _AT_ONCE if prompts else BATCH
        parts: dict[SequenceView, list[int]] = {}
        for view in sorted(prompts or views, key=lambda view: view.number):
            if parts and len(view.waiting) > room:
                break
            parts[view] = view.take(room)
            room -= len(parts[view])
        batch: list[tuple[int, int, int, bool]] = []
        ready = []
        for view in parts:
            start, last = view.held - len(parts[view]), len(parts[view]) - 1
            whole = last >= 0 and not view.waiting
            batch += [(t, start + i, view.number, whole and i == last) for i, t in enumerate(parts[view])]
            if whole:
                view.output = len(batch) - 1
                ready.append(view)
        self._evaluate(batch)
        for view in ready:
            self._require_numbers(view.output)
        return ready

    def _evaluate(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Token, position, sequence, and whether its logits are wanted, of each entry."""
        api, batch = self._llama, self._batch
        for index, (token, position, number, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, number
            batch.logits[index] = wanted
        batch.n_tokens = len(entries)
        self._raise_if_interrupted()
        result = api.llama_decode(self._context, batch)
        self._raise_if_interrupted()
        if result != 0:
            reason = "; ".join(log.take_errors()) or f"llama_decode returned {result}"
            raise EngineError(f"llama.cpp could not evaluate {len(entries)} tokens: {reason}")

    def greedy(self, sampling: Sampling, *, ignore_eos: bool) -> Callable[[], int]:
        """What draws the likeliest token: as llama.cpp's chain would, which copies the vocabulary for it every time."""
        import numpy as np

        biases = self._biases(sampling, ignore_eos)
        biased = {token for token, _ in biases}
        lowered = all(bias <= 0 for _, bias in biases)
        ids, added = np.array([i for i, _ in biases], np.int64), np.array([bias for _, bias in biases], np.float32)

        def draw() -> int:
            scores = self.logits()
            best = int(scores.argmax())
            if not biased or (lowered and best not in biased):  # that others are lowered makes none of them likelier
                return best
            scores = scores.copy()  # the model's own may be asked for
            np.add.at(scores, ids, added)
            return int(scores.argmax())

        return draw

    def close(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            self._llama.llama_batch_free(batch)
        super().close()


class SequenceView:
    """One of the sequences as a `TokenModel` of its own, which only takes note of the tokens it is given.

    Whoever drives it has `Sequences.evaluate` see to them before the logits are read.
    """

    def __init__(self, model: Sequences, number: int, length: int) -> None:
        self._model, self.number = model, number
        self.begin_text, self.end_text = model.begin_text, model.end_text
        self.vocabulary_size, self.trained_context = model.vocabulary_size, model.trained_context
        self.tokenize, self.piece, self.is_end = model.tokenize, model.piece, model.is_end
        self.is_special, self.spelled = model.is_special, model.spelled
        self.context = min(length, model.context)  # tokens that there is room for
        self.wanted: int | None = None  # the most tokens that the answer may have
        self.fresh = False  # whether the next prompt is the first of a request
        self.waiting: list[int] = []
        self.held = self.output = 0

    def open_context(self, length: int | None = None) -> None:
        self.clear()

    def clear(self) -> None:
        self._model.begin(self.number, ())
        self.waiting, self.held = [], 0

    def prefill(self, tokens: Sequence[int]) -> int:
        """Raises ContextOverflow, and NeedsRoom where a new answer might outgrow this cache and a longer one can be."""
        full = self._model.context
        if len(tokens) >= full:
            raise ContextOverflow(len(tokens), full, self.trained_context)
        need = min(full, len(tokens) + (self.wanted or UNLIMITED))
        if self.fresh and need > self.context:
            raise NeedsRoom(need)
        self.fresh = False
        self.held = self._model.begin(self.number, tokens)
        self.waiting = list(tokens[self.held :])
        return self.held

    def feed(self, token: int) -> None:
        self.waiting.append(token)

    def shift(self, keep: int, discard: int) -> bool:
        self.require_whole()
        return False  # it begins anew with what is to stay

    def require_whole(self) -> None:
        """Raises NeedsRoom where an answer without a limit has filled less than the context that it may have."""
        if self.wanted is None and self.context < self._model.context:
            raise NeedsRoom(self._model.context)

    def logits(self) -> NDArray[np.float32]:
        return self._model.logits()

    def take(self, count: int) -> list[int]:
        """At most `count` of the waiting tokens, which are evaluated now."""
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        self.held += len(taken)
        return taken

    def sampler(
        self, sampling: Sampling, *, ignore_eos: bool, history: Sequence[int], mask: Mask | None = None
    ) -> AbstractContextManager[Callable[[], int]]:
        if sampling.temperature == 0 and mask is None and not penalizes(sampling):
            return nullcontext(self._model.greedy(sampling, ignore_eos=ignore_eos))
        return self._model.sampler(sampling, ignore_eos=ignore_eos, history=history, mask=mask)

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()  # whoever drives it can be interrupted

    def close(self) -> None:
        self.clear()
