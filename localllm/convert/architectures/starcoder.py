"""StarCoder 2."""

from __future__ import annotations

from localllm.convert.family import Family, Value


class Starcoder2(Family):
    architecture = "starcoder2"
    names = {"Starcoder2ForCausalLM"}
    defaults = {"max_position_embeddings": 4096, "norm_epsilon": 1e-5, "tie_word_embeddings": True,
                "num_key_value_heads": 2, "rope_theta": 10000.0}  # fmt: skip
    activations = {"gelu_pytorch_tanh", "gelu_new"}
    ropes = {"default", "linear", "yarn"}

    def metadata(self) -> dict[str, Value]:
        if self.config.has("sliding_window"):
            window = self.config.integer("sliding_window")
            self.notices.append(f"its sliding window of {window} tokens is not used by llama.cpp, which attends to all")
        return super().metadata()


FAMILIES = (Starcoder2,)
