"""The tables of cosines and sines by which GroupQueryAttention turns queries and keys: a row a position.

The ways of stretching a context are those of a GGUF's metadata: linear, YaRN (arXiv 2309.00071), Llama 3's factors
and LongRoPE's (arXiv 2402.13753), each computed as transformers computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localllm.convert.onnx.decoder import Decoder, number
from localllm.errors import BadModelFile

if TYPE_CHECKING:
    import numpy as np

_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class Tables:
    """`steps` is each pair's angle from a position to the next, `magnitude` what both tables are multiplied by.

    Of a context that is stretched only when it is used (LongRoPE) there are two sets of steps: the tables of the first
    `original` positions by `short`, and behind them all `positions` by `steps`.
    """

    steps: np.ndarray
    magnitude: float
    positions: int
    short: np.ndarray | None = None
    original: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.original + self.positions, len(self.steps)

    def rows(self, which: str) -> np.ndarray:
        """The table of "cos" or "sin", float32 of `shape`."""
        import numpy as np

        angles = np.outer(np.arange(self.positions), self.steps)
        if self.short is not None:
            angles = np.concatenate([np.outer(np.arange(self.original), self.short), angles])
        turn = np.cos if which == "cos" else np.sin
        return (turn(angles) * self.magnitude).astype(np.float32)


def tables(model: Decoder, values: Mapping[str, Any], factors: Mapping[str, np.ndarray]) -> dict[int, Tables]:
    """Tables by a layer's window (-1: it sees all): layers that slide may turn otherwise. Raises BadModelFile.

    `factors` are the tensors rope_freqs, rope_factors_long and rope_factors_short, as far as the model has them.
    """
    base = number(values, "rope.freq_base", _BASE)
    whole = _table(model, values, base, factors)
    found = dict.fromkeys(set(model.windows), whole)
    if model.architecture == "gemma3":
        local = number(values, "rope.freq_base_swa", _BASE)
        for window in found:
            if window != -1:
                found[window] = Tables(_steps(model, local), 1.0, model.context)
    return found


def _steps(model: Decoder, base: float) -> np.ndarray:
    import numpy as np

    if base <= 0:
        raise BadModelFile(f"the model cannot be exported to ONNX: its rope.freq_base is {base}")
    exponents = np.arange(0, model.turning, 2, dtype=np.float64) / model.turning
    return np.asarray(base**-exponents)


def _table(model: Decoder, values: Mapping[str, Any], base: float, factors: Mapping[str, np.ndarray]) -> Tables:
    steps, context = _steps(model, base), model.context
    for name, tensor in factors.items():
        if tensor.shape != steps.shape or not (tensor > 0).all():
            raise BadModelFile(f"the model cannot be exported to ONNX: its {name} is not what its heads need")
    if "rope_factors_long" in factors and "rope_factors_short" in factors:
        original = int(number(values, "rope.scaling.original_context_length", context))
        magnitude = number(values, "rope.scaling.attn_factor", 1.0)
        long = Tables(steps / factors["rope_factors_long"], magnitude, context)
        if not 0 < original < context:
            return long
        return Tables(long.steps, magnitude, context, steps / factors["rope_factors_short"], original)
    if "rope_freqs" in factors:
        steps = steps / factors["rope_freqs"]
    kind = values.get("rope.scaling.type")
    if kind not in (None, "none", "linear", "yarn"):
        raise BadModelFile(f"the model cannot be exported to ONNX: its rope.scaling.type is {kind!r:.40}")
    factor = number(values, "rope.scaling.factor", number(values, "rope.scale_linear", 1.0)) or 1.0
    if kind != "yarn" or factor == 1:
        return Tables(steps / factor, 1.0, context)
    return _yarn(model, values, base, steps, factor)


def _yarn(model: Decoder, values: Mapping[str, Any], base: float, steps: np.ndarray, factor: float) -> Tables:
    """Fast pairs turn as trained, slow ones `factor` times as slowly, and between the two it changes by degrees."""
    import numpy as np

    original = number(values, "rope.scaling.original_context_length", model.context)

    def pair(rotations: float) -> float:
        """The pair that turns so many times within the original context."""
        return model.turning * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    fast, slow = (number(values, f"rope.scaling.yarn_beta_{name}", at) for name, at in (("fast", 32.0), ("slow", 1.0)))
    first = max(math.floor(pair(fast)), 0)
    last = min(math.ceil(pair(slow)), model.turning - 1)
    kept = 1 - np.clip((np.arange(len(steps)) - first) / max(last - first, 1e-3), 0, 1)
    magnitude = number(values, "rope.scaling.yarn_attn_factor", 0.1 * math.log(factor) + 1)
    return Tables(steps / factor * (1 - kept) + steps * kept, magnitude, model.context)
