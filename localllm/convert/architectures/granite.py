"""IBM's Granite 3: Llama with four multipliers, dense and with experts."""

from __future__ import annotations

from localllm.convert.architectures.llama import Llama
from localllm.convert.family import Value


class Granite(Llama):
    architecture = "granite"
    names = {"GraniteForCausalLM"}
    defaults = {**Llama.defaults, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
                "attention_multiplier": 1.0}  # fmt: skip
    ropes = {"default", "linear", "yarn"}

    def metadata(self) -> dict[str, Value]:
        c = self.config
        return super().metadata() | {
            "attention.scale": c.number("attention_multiplier"),
            "embedding_scale": c.number("embedding_multiplier"),
            "residual_scale": c.number("residual_multiplier"),
            "logit_scale": c.number("logits_scaling"),
        }


class GraniteMoe(Granite):
    architecture = "granitemoe"
    names = {"GraniteMoeForCausalLM"}
    defaults = {**Granite.defaults, "num_local_experts": 8, "num_experts_per_tok": 2}
    halves = {
        ".block_sparse_moe.input_linear": (".mlp.experts.gate_proj", ".mlp.experts.up_proj"),
        ".mlp.experts.gate_up_proj": (".mlp.experts.gate_proj", ".mlp.experts.up_proj"),
    }


FAMILIES = (Granite, GraniteMoe)
