"""Qwen 2, 2.5 and 3, dense and with experts."""

from __future__ import annotations

from localllm.convert.family import Family, Value


class Qwen2(Family):
    architecture = "qwen2"
    names = {"Qwen2ForCausalLM", "Qwen2Model"}
    defaults = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

    def check(self) -> None:
        super().check()
        c = self.config
        c.require(
            "use_sliding_window", c.flag("use_sliding_window"), (False,), "llama.cpp has no window for the family"
        )

    def metadata(self) -> dict[str, Value]:
        return super().metadata() | self.pooling()


class Qwen2Moe(Qwen2):
    architecture = "qwen2moe"
    names = {"Qwen2MoeForCausalLM"}
    defaults = {**Qwen2.defaults, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1, "norm_topk_prob": False}  # fmt: skip
    halves = {".mlp.experts.gate_up_proj": (".mlp.experts.gate_proj", ".mlp.experts.up_proj")}
    normalized = False

    def check(self) -> None:
        super().check()
        c = self.config
        why = "llama.cpp computes the family's router otherwise"
        c.require("norm_topk_prob", c.flag("norm_topk_prob"), (self.normalized,), why)
        c.require("decoder_sparse_step", c.get("decoder_sparse_step"), (1,), "llama.cpp wants experts in every layer")
        c.require("mlp_only_layers", c.get("mlp_only_layers") or [], ([],), "llama.cpp wants experts in every layer")

    def metadata(self) -> dict[str, Value]:
        c = self.config
        found = super().metadata() | {"expert_feed_forward_length": c.size("moe_intermediate_size")}
        if c.has("shared_expert_intermediate_size"):
            found["expert_shared_feed_forward_length"] = c.integer("shared_expert_intermediate_size")
        return found


class Qwen3(Qwen2):
    architecture = "qwen3"
    names = {"Qwen3ForCausalLM", "Qwen3Model"}
    defaults = {**Qwen2.defaults, "head_dim": 128}


class Qwen3Moe(Qwen2Moe):
    architecture = "qwen3moe"
    names = {"Qwen3MoeForCausalLM"}
    defaults = {**Qwen2.defaults, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
                "decoder_sparse_step": 1, "norm_topk_prob": False}  # fmt: skip
    normalized = True


FAMILIES = (Qwen2, Qwen2Moe, Qwen3, Qwen3Moe)
