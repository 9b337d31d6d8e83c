"""An ONNX model that gives the logits of every position, for whatever measures a model instead of talking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localllm.engines.onnx_model import CHUNK, OnnxModel
from localllm.engines.onnx_runner import Floats
from localllm.errors import UsageError


class OnnxScorer(OnnxModel):
    """Raises EngineError and its children. Its session computes the logits of all positions."""

    def open_scoring(self, length: int, first: int) -> int:
        """Make room for sequences of `length` tokens whose logits are wanted from position `first` on; one at once."""
        if not 2 <= length <= self.trained_context:
            raise UsageError(f"a context of {length} tokens: the model was trained for 2 to {self.trained_context}")
        self._first = first
        self.open_context(length)
        return 1

    def score(self, sequences: Sequence[Sequence[int]]) -> Floats:
        """Logits, float32, (sequences, positions from the first wanted one on, vocabulary)."""
        found = []
        for tokens in sequences:
            self.clear()
            found.append(self._read(tokens)[self._first :])
        return np.stack(found)

    def open_text(self, length: int, at_once: int) -> None:
        self.open_context(length)

    def read(self, tokens: Sequence[int]) -> Floats:
        return self._read(tokens)

    def _read(self, tokens: Sequence[int]) -> Floats:
        parts = []
        step = CHUNK if self._interface.caches and self._interface.branch is None else len(tokens)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            self._evaluate(part, rows=len(part))
            parts.append(self._running.all_logits()[-len(part) :])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
