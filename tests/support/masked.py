"""A small BertForMaskedLM with random weights, the same on every machine, and a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import checkpoints

DATA = Path(__file__).parents[1] / "data"
SHAPES_FILE = DATA / "masked.json"
CONFIG: dict[str, Any] = {
    "vocab_size": 1200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip

_AROUND = {
    "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2],
}  # fmt: skip


def described() -> dict[str, Any]:
    """`shapes` by tensor; `expected`: of each text of sentences.MASKED, of each mask, transformers' candidates."""
    found: dict[str, Any] = json.loads(SHAPES_FILE.read_text())
    return found


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "architectures": ["BertForMaskedLM"], "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: checkpoints.weights(name, tuple(shape)) for name, shape in described()["shapes"].items()}
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    tokenizer = json.loads((DATA / "tokenizers" / "wordpiece.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": _AROUND}))
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("unk", "cls", "sep", "pad", "mask")}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
