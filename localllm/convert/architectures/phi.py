"""Phi-3, 3.5 and 4-mini: merged projections, and two sets of factors for a context of up to 128k tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

from localllm.convert.family import Family, Value
from localllm.convert.outputs import Output


class Phi3(Family):
    architecture = "phi3"
    names = {"Phi3ForCausalLM"}
    defaults = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False, "rope_theta": 10000.0}  # fmt: skip
    ropes = {"default", "longrope"}

    @property
    def turning(self) -> int:
        """Elements of a head that turn with the position."""
        return int(self.config.rope.partial * self.config.hidden) // self.config.heads

    def metadata(self) -> dict[str, Value]:
        c = self.config
        found = super().metadata() | {
            "rope.dimension_count": self.turning,
            "rope.scaling.original_context_length": self._original_context(),
            "attention.sliding_window": c.integer("sliding_window") if c.has("sliding_window") else 0,
        }
        if c.rope.kind == "longrope":
            found["rope.scaling.attn_factor"] = self._attention_factor()
        return found

    def _attention_factor(self) -> float:
        if self.config.rope.get("attention_factor") is not None:
            return self.config.rope.number("attention_factor")
        original = self._original_context()
        scale = self.config.size("max_position_embeddings") / original
        return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0

    def computed(self) -> Iterator[Output]:
        import numpy as np

        if self.config.rope.kind != "longrope":
            return
        for name in ("long", "short"):
            factors = self.config.numbers(f"{name}_factor", self.config.rope.get(f"{name}_factor"), self.turning // 2)
            values = np.array(factors, dtype=np.float32)
            yield Output(f"rope_factors_{name}.weight", values.shape, values=values)


FAMILIES = (Phi3,)
