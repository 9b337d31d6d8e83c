"""GPT-2, whose matrices lie the other way round, and GPT-NeoX (Pythia), whose heads hold query, key and value each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localllm.convert import rows
from localllm.convert.checkpoint import Stored
from localllm.convert.config import Config
from localllm.convert.family import Family, Value
from localllm.convert.outputs import Piece

if TYPE_CHECKING:
    import numpy as np

_TURNED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


class GPT2(Family):
    architecture = "gpt2"
    names = {"GPT2LMHeadModel", "GPT2Model"}
    defaults = {"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    activations = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"}
    ropes = {"default"}

    def check(self) -> None:
        super().check()
        c, why = self.config, "llama.cpp scales GPT-2's attention by the size of a head alone"
        c.require("scale_attn_by_inverse_layer_idx", c.flag("scale_attn_by_inverse_layer_idx"), (False,), why)

    @property
    def feed_forward(self) -> int:
        return self.config.size("n_inner") if self.config.has("n_inner") else 4 * self.config.hidden

    def piece(self, name: str, source: Stored) -> Piece:
        return Piece(source, transposed=name.endswith(_TURNED))


def _by_kind(config: Config, source: Stored) -> np.ndarray:
    return rows.by_head_to_by_kind(source.shape[0], config.heads)


class GPTNeoX(Family):
    architecture = "gptneox"
    names = {"GPTNeoXForCausalLM"}
    defaults = {"max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "tie_word_embeddings": False,
                "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True}  # fmt: skip
    activations = {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"}
    ropes = {"default", "linear"}
    orders = {"query_key_value": _by_kind}

    def metadata(self) -> dict[str, Value]:
        c = self.config
        return super().metadata() | {
            "attention.head_count_kv": c.heads,
            "rope.dimension_count": int(c.rope.partial * c.head),
            "use_parallel_residual": c.flag("use_parallel_residual"),
        }


FAMILIES = (GPT2, GPTNeoX)
