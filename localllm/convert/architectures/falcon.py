"""Falcon 7B and 40B: queries in groups with their key and value, all in one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localllm.convert import rows
from localllm.convert.checkpoint import Stored
from localllm.convert.config import Config
from localllm.convert.family import Family, Value

if TYPE_CHECKING:
    import numpy as np


def _kv_heads(c: Config) -> int:
    if c.flag("new_decoder_architecture") or c.has("n_head_kv"):  # which only the 40B of the oldest files has
        return c.size("num_kv_heads", "n_head_kv") if c.has("num_kv_heads", "n_head_kv") else c.heads
    return 1 if c.flag("multi_query") else c.heads


def _by_kind(c: Config, source: Stored) -> np.ndarray:
    return rows.by_group_to_by_kind(source.shape[0], c.heads, _kv_heads(c))


class Falcon(Family):
    architecture = "falcon"
    names = {"FalconForCausalLM", "RWForCausalLM"}
    defaults = {"max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
                "multi_query": True, "parallel_attn": True, "rope_theta": 10000.0}  # fmt: skip
    activations = {"gelu"}
    ropes = {"default", "linear"}
    orders = {"query_key_value": _by_kind}

    def check(self) -> None:
        super().check()
        c = self.config
        c.require("alibi", c.flag("alibi"), (False,), "llama.cpp's Falcon has rotary positions")
        parallel = c.flag("parallel_attn") or c.flag("new_decoder_architecture")
        c.require("parallel_attn", parallel, (True,), "llama.cpp's Falcon attends beside its feed-forward")

    @property
    def feed_forward(self) -> int:
        c = self.config
        return c.size("ffn_hidden_size") if c.has("ffn_hidden_size") else 4 * c.hidden

    def metadata(self) -> dict[str, Value]:
        return super().metadata() | {
            "attention.head_count_kv": _kv_heads(self.config),
            "tensor_data_layout": "jploski",
        }


FAMILIES = (Falcon,)
