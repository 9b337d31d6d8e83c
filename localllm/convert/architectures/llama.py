"""Llama 1 to 3.x and what has its shape (SmolLM, TinyLlama, Yi, Mistral), and Mixtral with its experts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from localllm.convert.family import Family, Value, turned
from localllm.convert.outputs import Output


class Llama(Family):
    architecture = "llama"
    names = {"LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "MistralForCausalLM"}
    defaults = {"max_position_embeddings": 2048, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
    ropes = {"default", "linear", "yarn", "llama3"}
    orders = {"q_proj.": turned("heads"), "k_proj.": turned("kv_heads")}

    def metadata(self) -> dict[str, Value]:
        c = self.config
        if c.has("sliding_window") and c.architecture.startswith("Mistral"):
            window = c.integer("sliding_window")
            self.notices.append(f"its sliding window of {window} tokens is not used by llama.cpp, which attends to all")
        return super().metadata() | {"vocab_size": self.vocabulary_size, "rope.dimension_count": c.head}

    def computed(self) -> Iterator[Output]:
        if self.config.rope.kind == "llama3":
            yield llama3_factors(self)


class Mixtral(Llama):
    names = {"MixtralForCausalLM"}
    defaults = {**Llama.defaults, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2,
                "rope_theta": 1e6}  # fmt: skip
    # transformers 5 has the experts of a layer in one tensor, gate and up merged, where it saves them unconverted.
    halves = {".mlp.experts.gate_up_proj": (".mlp.experts.gate_proj", ".mlp.experts.up_proj")}
    renamed = {
        ".block_sparse_moe.experts.w1.": ".mlp.experts.gate_proj.",
        ".block_sparse_moe.experts.w2.": ".mlp.experts.down_proj.",
        ".block_sparse_moe.experts.w3.": ".mlp.experts.up_proj.",
    }


def llama3_factors(family: Family) -> Output:
    """What each frequency is divided by, in Llama 3.1's way of stretching the context, one for each pair of a head.

    Short waves stay, long ones are divided by the whole factor, between the two it changes smoothly.
    """
    import numpy as np

    c, rope = family.config, family.config.rope
    factor, low, high = (rope.number(n) for n in ("factor", "low_freq_factor", "high_freq_factor"))
    context = family._original_context()
    theta = rope.theta if rope.theta is not None else 10000.0
    if min(factor, low, context, theta) <= 0 or high <= low:
        raise c.bad("its llama3 RoPE has impossible factors")
    frequencies = 1.0 / (theta ** (np.arange(0, c.head, 2, dtype=np.float32) / c.head))
    found = []
    for wave in 2 * math.pi / frequencies:
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    values = np.array(found, dtype=np.float32)
    return Output("rope_freqs.weight", values.shape, values=values)


FAMILIES = (Llama, Mixtral)
