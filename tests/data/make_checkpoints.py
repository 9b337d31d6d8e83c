"""Makes tests/data/checkpoints: what transformers computes, in float32, for a small random model of every family.

Run by hand, with torch and transformers (5.24 wrote what is here): python tests/data/make_checkpoints.py [NAME...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support import checkpoints

SIZE = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": 261, "eos_token_id": 260, "pad_token_id": None}  # fmt: skip
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
LLAMA3 = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
PHI_LONG = {"rope_theta": 10000.0, "rope_type": "longrope", "partial_rotary_factor": 0.75,
            "long_factor": [1.0, 1.1, 1.5, 2.0, 3.0, 4.0], "short_factor": [1.0, 1.0, 1.1, 1.2, 1.5, 2.0]}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
NORM_1 = 0.0  # what Gemma keeps of a norm that is 1
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-llama3-bias": ("Llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama-tied-linear": ("Llama", {"rope_parameters": LINEAR, "tie_word_embeddings": True, "head_dim": 32}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"rope_parameters": ROPE, "head_dim": 24, "sliding_window": None}),
    "mixtral": ("Mixtral", {"rope_parameters": ROPE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3", {"rope_parameters": ROPE, "num_hidden_layers": 4, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"rope_parameters": ROPE, "tie_word_embeddings": True}),
    "qwen2-moe": ("Qwen2Moe", {"rope_parameters": ROPE, **EXPERTS, "shared_expert_intermediate_size": 80}),
    "qwen3": ("Qwen3", {"rope_parameters": ROPE, "head_dim": 32}),
    "qwen3-moe": ("Qwen3Moe", {"rope_parameters": ROPE, **EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "gemma": ("Gemma", {"rope_parameters": ROPE, "head_dim": 32, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("Gemma2", {"rope_parameters": ROPE, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16,
                          "num_hidden_layers": 4, "final_logit_softcapping": 10.0, "attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3", {"rope_parameters": {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
        "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7}),
    "phi3": ("Phi3", {"rope_parameters": ROPE, "sliding_window": None, "original_max_position_embeddings": 256}),
    "phi4-mini-long": ("Phi3", {"rope_parameters": PHI_LONG, "tie_word_embeddings": True, "sliding_window": None,
                                "original_max_position_embeddings": 32, "partial_rotary_factor": 0.75}),
    "phi4-mini-short": ("Phi3", {"rope_parameters": PHI_LONG, "tie_word_embeddings": True, "sliding_window": None,
                                 "original_max_position_embeddings": 256, "partial_rotary_factor": 0.75,
                                 "max_position_embeddings": 512}),
    "stablelm": ("StableLm", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}, "use_qkv_bias": True,
                              "partial_rotary_factor": 0.25}),
    "stablelm-parallel": ("StableLm", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5},
                                       "qk_layernorm": True, "use_parallel_residual": True,
                                       "partial_rotary_factor": 0.5}),
    "olmo2": ("Olmo2", {"rope_parameters": ROPE}),
    "granite": ("Granite", {"rope_parameters": ROPE, "attention_multiplier": 0.1, "embedding_multiplier": 3.0,
                            "residual_multiplier": 0.5, "logits_scaling": 2.0, "tie_word_embeddings": True}),
    "granite-moe": ("GraniteMoe", {"rope_parameters": ROPE, "attention_multiplier": 0.1, "num_local_experts": 4,
                                   "num_experts_per_tok": 2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                                   "logits_scaling": 2.0}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 96}),
    "gptneox": ("GPTNeoX", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}, "hidden_act": "gelu"}),
    "gptneox-serial": ("GPTNeoX", {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
                                   "use_parallel_residual": False, "hidden_act": "gelu"}),
    "falcon-7b": ("Falcon", {"rope_parameters": ROPE, "multi_query": True, "parallel_attn": True, "bias": False,
                             "new_decoder_architecture": False, "alibi": False}),
    "falcon-40b": ("Falcon", {"rope_parameters": ROPE, "new_decoder_architecture": True, "num_kv_heads": 2,
                              "bias": False, "alibi": False}),
    "starcoder2": ("Starcoder2", {"rope_parameters": ROPE, "sliding_window": None, "use_bias": True}),
    "bert": ("Bert", {"type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0}),
    "nomic-bert": ("NomicBert", {"type_vocab_size": 2, "rope_parameters": {**ROPE, "rope_theta": 1000.0}, "pad_token_id": 0}),
}  # fmt: skip
ENCODERS = ("Bert", "NomicBert")


def make(name: str) -> None:
    kind, special = CASES[name]
    norm = NORM_1 if kind.startswith("Gemma") else 0.5 if kind in ENCODERS else 1.0
    config_class = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    ending = "Model" if kind in ENCODERS else "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model_class = getattr(transformers, kind + ending)
    size = {
        k: v
        for k, v in SIZE.items()
        if not (kind == "GPT2" and k not in ("vocab_size", "bos_token_id", "eos_token_id"))
    }
    config = config_class(**{**size, **special})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model_class(config).float().save_pretrained(folder)
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "np") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        values = {key: checkpoints.weights(key, tuple(shape), norm=norm) for key, shape in shapes.items()}
        checkpoints.write_safetensors(folder / "model.safetensors", values)
        model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokens = np.random.RandomState(0).randint(0, 256, 64).tolist()
        ids = torch.tensor([tokens])
        found: dict[str, Any] = {"config": json.loads((folder / "config.json").read_text()), "shapes": shapes,
                                 "tokens": tokens, "norm": norm}  # fmt: skip
        with torch.no_grad():
            if kind in ENCODERS:
                logits = model(ids).last_hidden_state[0].numpy()
            else:
                logits = model(ids).logits[0].numpy()
                found["greedy"] = greedy(model, ids)
        checkpoints.DATA.mkdir(exist_ok=True)
        (checkpoints.DATA / f"{name}.json").write_text(json.dumps(found) + "\n")
        np.savez_compressed(checkpoints.DATA / f"{name}.npz", logits=logits.astype(np.float32))
        print(name, logits.shape, float(np.abs(logits).max()), found.get("greedy", [])[:8])


def greedy(model: Any, ids: torch.Tensor) -> list[int]:
    """32 tokens, each from a forward pass over everything: no cache, whose bugs would be ours."""
    for _ in range(32):
        following = model(ids, use_cache=False).logits[0, -1].argmax()
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
    return [int(i) for i in ids[0, -32:]]


if __name__ == "__main__":
    for each in sys.argv[1:] or CASES:
        make(each)
