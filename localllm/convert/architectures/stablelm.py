"""StableLM 2: layer norms, positions in a part of each head, and a norm of its own for each head where it is large."""

from __future__ import annotations

import re

from localllm.convert.family import Family, Value


class StableLM(Family):
    architecture = "stablelm"
    names = {"StableLmForCausalLM"}
    defaults = {"max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25,
                "tie_word_embeddings": False, "use_parallel_residual": False}  # fmt: skip
    ropes = {"default"}
    stacked = re.compile(r"(.*\.[qk]_layernorm)\.norms\.(\d+)\.(weight)")

    def metadata(self) -> dict[str, Value]:
        c = self.config
        return super().metadata() | {
            "rope.dimension_count": int(c.rope.partial * c.head),
            "use_parallel_residual": c.flag("use_parallel_residual"),
        }


FAMILIES = (StableLM,)
