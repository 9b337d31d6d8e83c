"""A llama.cpp model that gives the logits of many positions at once, for whatever measures a model instead of talking.

It has a context of its own shape: some sequences of equal length side by side, every position from one on with its
logits; or one text, read some tokens at a time. What is done with them is the jobs'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from localllm.engines.llama_model import BATCH, LlamaModel
from localllm.engines.native import log
from localllm.engines.observer import F32
from localllm.errors import EngineError, UsageError

if TYPE_CHECKING:
    import numpy as np


class Scorer(LlamaModel):
    """Raises EngineError and its children."""

    def open_scoring(self, length: int, first: int, *, observer: Any = None, at_once: int = 0) -> int:
        """Make a context for sequences of `length` tokens whose logits are wanted from position `first` on.

        `observer` is a callback of ggml's scheduler that sees every tensor computed. Returns how many sequences are
        evaluated at once: `at_once`, or as many as llama-perplexity does.
        """
        if not 2 <= length <= self.trained_context:
            raise UsageError(f"a context of {length} tokens: the model was trained for 2 to {self.trained_context}")
        self._length, self._first = length, first
        self._at_once = at_once or max(1, BATCH // length)  # as llama-perplexity has it
        more = {} if observer is None else {"cb_eval": observer}
        self._make_context(
            length * self._at_once,
            n_batch=length * self._at_once,
            n_seq_max=self._at_once,
            n_outputs_max=max(1, length - first) * self._at_once,
            kv_unified=False,  # each sequence has its own length, by which Phi-3 chooses its factors
            **more,
        )
        self._new_batch(length * self._at_once)
        return self._at_once

    @property
    def begin_token(self) -> int | None:
        """The id that every sequence starts with, where the model wants one."""
        if not self._llama.llama_vocab_get_add_bos(self._vocabulary):
            return None
        return int(self._llama.llama_vocab_bos(self._vocabulary))

    def score(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits, float32, (sequences, positions from the first wanted one on, vocabulary).

        The sequences have the length the context was made for. The array is llama.cpp's own memory: it holds until the
        next call.
        """
        self._llama.llama_memory_clear(self._memory, True)
        entries = [
            (token, position, number, position >= self._first)
            for number, tokens in enumerate(sequences)
            for position, token in enumerate(tokens)
        ]
        found = self._evaluate(entries, len(sequences) * (self._length - self._first))
        return found.reshape(len(sequences), -1, self.vocabulary_size)

    @property
    def layers(self) -> int:
        return int(self._llama.llama_model_n_layer(self._model))

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return int(self._llama.llama_model_n_head(self._model))

    def open_text(self, length: int, at_once: int, *, observer: Any = None) -> None:
        """As `TextModel` has it. For an observer attention is computed step by step, with keys and values in float32:
        flash attention never has the weights in one place, and a quantized cache of values needs it."""
        precise = {"flash_attn_type": 0, "type_k": F32, "type_v": F32}
        more = {} if observer is None else {"cb_eval": observer, **precise}
        self._make_context(length, n_batch=at_once, n_outputs_max=at_once, **more)
        self._new_batch(at_once)
        self._position = 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        start, self._position = self._position, self._position + len(tokens)
        return self._evaluate([(t, start + i, 0, True) for i, t in enumerate(tokens)], len(tokens))

    def _new_batch(self, size: int) -> None:
        self._free_batch()
        self._batch = self._llama.llama_batch_init(size, 0, 1)

    def _evaluate(self, entries: Sequence[tuple[int, int, int, bool]], rows: int) -> np.ndarray:
        """Tokens with their position, their sequence, and whether their logits are wanted, which are `rows` in all."""
        import numpy as np

        api, batch = self._llama, self._batch
        for index, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
        batch.n_tokens = len(entries)
        self._raise_if_interrupted()
        result = api.llama_decode(self._context, batch)
        self._raise_if_interrupted()
        if result != 0:
            reason = "; ".join(log.take_errors()) or f"llama_decode returned {result}"
            raise EngineError(f"llama.cpp could not evaluate {len(entries)} tokens: {reason}")
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), (rows, self.vocabulary_size))

    def _free_batch(self) -> None:
        batch, self._batch = getattr(self, "_batch", None), None
        if batch is not None:
            self._llama.llama_batch_free(batch)

    def close(self) -> None:
        self._free_batch()
        super().close()
