"""Small checkpoints of every family, their weights random and the same on every machine.

What belongs to a case (configuration, shapes, tokens, expected logits) was written once by data/make_checkpoints.py with
transformers; the weights follow from a tensor's name, so they need not be kept.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent.parent / "data" / "checkpoints"
UNSTRIPPED = {"single_word": False, "lstrip": False, "rstrip": False}  # of an added token, as it is written
NAMES = sorted(p.stem for p in DATA.glob("*.json"))


def weights(name: str, shape: tuple[int, ...], *, norm: float = 1.0) -> np.ndarray:
    """Float32 values of a size that keeps activations alive: norms around `norm`, matrices by the rows they add up.

    What makes the logits keeps them between -1 and 1: llama.cpp looks GELU up in a table of float16, whose error alone
    comes to 3e-3 where they are four times as large.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(("bias", ".beta")):
        values *= 0.1
    elif len(shape) == 1:
        values = norm + 0.1 * values
    elif any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
        values *= 0.03
    else:
        values /= np.sqrt(shape[-1])
    return values.astype(np.float32)


@lru_cache
def case(name: str) -> dict[str, Any]:
    """`config`, `shapes` by tensor, `tokens` (64 ids), `greedy` (the 32 that follow), `norm`."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return found


def expected(name: str) -> np.ndarray:
    """What transformers computed in float32, (64, vocabulary); of encoders the last hidden state."""
    with np.load(DATA / f"{name}.npz") as file:
        return np.asarray(file["logits"])


def write(
    folder: Path, name: str, *, dtype: str = "F32", config: Mapping[str, Any] | None = None, vocabulary: int = 288
) -> Path:
    """A case as a folder with config.json, model.safetensors and a tokenizer."""
    found = case(name)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**(config or found["config"]), "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    write_safetensors(folder / "model.safetensors", tensors(name, vocabulary), dtype)
    write_tokenizer(folder, vocabulary)
    return folder


def tensors(name: str, vocabulary: int = 288) -> dict[str, np.ndarray]:
    """A case's weights by their names in the checkpoint."""
    found = case(name)
    shapes = {n: tuple(vocabulary if size == 288 else size for size in shape) for n, shape in found["shapes"].items()}
    return {n: weights(n, shape, norm=found["norm"]) for n, shape in shapes.items()}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, offset = [], 0
    for name, values in tensors.items():
        data = _as(values, dtype).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def _as(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2")
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype])


def byte_alphabet() -> list[str]:
    """GPT-2's characters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + others.index(b)) for b in range(256)]


def write_tokenizer(folder: Path, size: int, **changed: Any) -> dict[str, Any]:
    """A byte-level BPE tokenizer of `size` tokens: bytes, a few merges, the rest unused."""
    tokens = byte_alphabet()
    merges = [["t", "h"], ["th", "e"], ["i", "n"], ["a", "n"]]
    tokens += ["".join(m) for m in merges] + ["<|end|>", "<|begin|>"]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": tokens.index(t), "content": t, "special": True, "normalized": False, **UNSTRIPPED}
            for t in ("<|end|>", "<|begin|>")
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    } | changed
    assert len(tokens) <= size
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"eos_token": "<|end|>", "bos_token": "<|begin|>", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tokenizer
