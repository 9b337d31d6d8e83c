"""SmolLM3: Llama, with every fourth layer without positions."""

from __future__ import annotations

from localllm.convert.architectures.llama import Llama

STEP = 4  # llama.cpp leaves the positions out in every fourth layer, whatever the file says


class SmolLM3(Llama):
    architecture = "smollm3"
    names = {"SmolLM3ForCausalLM"}
    defaults = {"max_position_embeddings": 32768, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
                "rope_theta": 2e6, "num_key_value_heads": 4}  # fmt: skip

    def check(self) -> None:
        super().check()
        c = self.config
        turning = c.get("no_rope_layers") or [int((i + 1) % STEP != 0) for i in range(c.layers)]
        expected = [int((i + 1) % STEP != 0) for i in range(c.layers)]
        c.require("no_rope_layers", turning, (expected,), "llama.cpp leaves positions out in every fourth layer")
        c.require("use_sliding_window", c.flag("use_sliding_window"), (False,), "llama.cpp has no window for SmolLM3")


FAMILIES = (SmolLM3,)
