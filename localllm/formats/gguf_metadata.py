"""What a GGUF's metadata holds, and which of its values the native loader must never see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localllm.errors import BadModelFile

MAX_LAYERS = 512  # llama.cpp aborts the process above this
NO_TOKEN = 0xFFFFFFFF  # how converters write that a special token does not exist


@dataclass(frozen=True, slots=True)
class Array:
    """A metadata array too long to keep: its value type, its length and where its items begin in the file."""

    type: int
    length: int
    offset: int


# Values that the native loader trusts: a wrong one divides by zero, aborts, or asks for absurd amounts of memory.
_POSITIVE = {
    "block_count": MAX_LAYERS,
    "embedding_length": 1 << 20,
    "context_length": 1 << 31,
    "attention.head_count": 1 << 16,
    "attention.head_count_kv": 1 << 16,
    "attention.key_length": 1 << 16,
    "attention.value_length": 1 << 16,
    "rope.dimension_count": 1 << 16,
    "vocab_size": 1 << 24,
}
_NEVER_PER_LAYER = ("block_count", "embedding_length", "context_length", "vocab_size")
_HEADS = ("attention.head_count", "attention.head_count_kv")
# Converters write that these have no heads; hybrids say so layer by layer, in an array.
WITHOUT_ATTENTION = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")


def check(metadata: Mapping[str, Any], bad: Callable[[str], BadModelFile]) -> None:
    """Raises what `bad` makes of the reason, where a model's metadata would harm llama.cpp's loader."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise bad("it does not name its architecture")
    for key, limit in _POSITIVE.items():
        value = metadata.get(f"{architecture}.{key}")
        items = value if isinstance(value, tuple) and key not in _NEVER_PER_LAYER else (value,)
        least = 0 if key in _HEADS and (isinstance(value, tuple) or architecture in WITHOUT_ATTENTION) else 1
        if value is not None and not all(
            isinstance(i, int) and not isinstance(i, bool) and least <= i <= limit for i in items
        ):
            raise bad(f"{architecture}.{key} is {value!r}")
    for key, value in metadata.items():
        if key.endswith("epsilon") and not (isinstance(value, float) and 0 <= value < 1):
            raise bad(f"{key} is {value!r}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None:
        count = tokens.length if isinstance(tokens, Array) else len(tokens)
        _check_vocabulary(metadata, count, bad)


def _check_vocabulary(metadata: Mapping[str, Any], count: int, bad: Callable[[str], BadModelFile]) -> None:
    for key, value in metadata.items():
        if not key.startswith("tokenizer.ggml."):
            continue
        wrong = key.endswith("_token_id") and (not isinstance(value, int) or not 0 <= value < count)
        if wrong and value != NO_TOKEN:
            raise bad(f"{key} is {value!r} and the vocabulary has {count} tokens")
        if key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            length = value.length if isinstance(value, Array) else len(value) if isinstance(value, tuple) else -1
            if length != count:
                raise bad(f"{key} has {length} items and the vocabulary {count} tokens")
