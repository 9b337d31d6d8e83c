"""Gemma 1, 2 and the text part of 3. Their norms multiply by one more than the weight says."""

from __future__ import annotations

from localllm.convert.family import Family, Value

_BIG = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose attention llama.cpp scales by another number


class Gemma(Family):
    architecture = "gemma"
    names = {"GemmaForCausalLM"}
    defaults = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "head_dim": 256}
    # Gemma 1's configurations say "gelu" and mean the approximation by tanh, as transformers computes it.
    activations = {"gelu_pytorch_tanh", "gelu"}
    norm_added = 1.0

    def metadata(self) -> dict[str, Value]:
        return {key: value for key, value in super().metadata().items() if not key.startswith("rope.")}


class Gemma2(Gemma):
    architecture = "gemma2"
    names = {"Gemma2ForCausalLM"}
    defaults = {**Gemma.defaults, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}  # fmt: skip
    activations = {"gelu_pytorch_tanh"}
    period = 2

    def check(self) -> None:
        super().check()
        c = self.config
        scale = c.hidden // c.heads if c.layers == _BIG[self.architecture] else c.head
        why = f"llama.cpp scales attention by {scale}"
        c.require("query_pre_attn_scalar", c.number("query_pre_attn_scalar"), (float(scale),), why)
        expected = [("full" if (i + 1) % self.period == 0 else "sliding") + "_attention" for i in range(c.layers)]
        why = f"llama.cpp lets every layer slide but the {self.period}th ones"
        c.require("layer_types", c.get("layer_types") or expected, (expected,), why)
        period = c.get("sliding_window_pattern", "_sliding_window_pattern") or self.period
        c.require("sliding_window_pattern", period, (self.period,), why)

    def metadata(self) -> dict[str, Value]:
        c = self.config
        found = super().metadata() | {"attention.sliding_window": c.size("sliding_window")}
        for key, name in (("attn", "attn_logit_softcapping"), ("final", "final_logit_softcapping")):
            if c.has(name):
                found[f"{key}_logit_softcapping"] = c.number(name)
        return found


class Gemma3(Gemma2):
    architecture = "gemma3"
    names = {"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"}
    defaults = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "head_dim": 256,
                "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096, "rope_theta": 1e6,
                "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 256, "vocab_size": 262208}  # fmt: skip
    ropes = {"default", "linear"}
    period = 6

    def check(self) -> None:
        super().check()
        why = "llama.cpp has no cap on Gemma 3's attention"
        self.config.require("attn_logit_softcapping", self.config.get("attn_logit_softcapping"), (None,), why)
        why = "llama.cpp lets no token see those after it"
        both = "use_bidirectional_attention"
        self.config.require(both, self.config.get(both), (None, False), why)
        if self.config.has("vision_config"):
            self.notices.append("its vision part is left out")

    def metadata(self) -> dict[str, Value]:
        return super().metadata() | self._rope()


FAMILIES = (Gemma, Gemma2, Gemma3)
