"""OLMo 2: norms behind attention and feed-forward, and over all queries and keys of a layer."""

from __future__ import annotations

from localllm.convert.family import Family


class Olmo2(Family):
    architecture = "olmo2"
    names = {"Olmo2ForCausalLM"}
    defaults = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    ropes = {"default"}


FAMILIES = (Olmo2,)
