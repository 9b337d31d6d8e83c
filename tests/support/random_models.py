"""GGUF files of several architectures with as many layers and as much width as a test wants, and zeros for weights.

Their headers are sound and llama.cpp loads them; the data is a hole in the file, so that they take no space and no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.gguf_files import ARRAY, F32, I32, STRING, U32, pair, tensor

Shape = tuple[int, ...]
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34)}


@dataclass(frozen=True)
class Model:
    """`kv` heads of `head` elements for `heads` queries; `experts` of which two answer; `window` of sliding layers."""

    architecture: str
    layers: int = 8
    width: int = 512
    feed_forward: int = 1536
    heads: int = 8
    kv: int = 2
    head: int = 64
    vocabulary: int = 8192
    experts: int = 0
    window: int = 0
    weights: str = "F16"
    tied: bool = False

    def __str__(self) -> str:
        return f"{self.architecture} {self.weights}" + (f" {self.experts} experts" if self.experts else "")


def write(path: Path, model: Model) -> Path:
    metadata = _metadata(model)
    rows, offset = [], 0
    for name, shape in _tensors(model):
        kind, block, size = TYPES[model.weights if len(shape) > 1 and "norm" not in name else "F32"]
        rows.append(tensor(name, shape, kind, offset))
        count = 1
        for dimension in shape:
            count *= dimension
        offset += -(-count // block * size // 32) * 32
    head = b"GGUF" + (3).to_bytes(4, "little") + len(rows).to_bytes(8, "little") + len(metadata).to_bytes(8, "little")
    data = head + b"".join(metadata) + b"".join(rows)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + -len(data) % 32 + offset)
    return path


def _metadata(m: Model) -> list[bytes]:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *(f"t{i}" for i in range(m.vocabulary - 259)),
    ]
    kinds = [2, 3, 3, *([6] * 256), *([1] * (m.vocabulary - 259))]
    numbers = {
        "block_count": m.layers,
        "context_length": 131072,
        "embedding_length": m.width,
        "feed_forward_length": m.feed_forward,
        "attention.head_count": m.heads,
        "attention.head_count_kv": m.kv,
        "attention.key_length": m.head,
        "attention.value_length": m.head,
        "rope.dimension_count": m.head,
        "vocab_size": m.vocabulary,
    }
    if m.experts:
        numbers |= {"expert_count": m.experts, "expert_used_count": 2, "expert_feed_forward_length": m.feed_forward}
    if m.window:
        numbers |= {"attention.sliding_window": m.window}
    return [
        pair("general.architecture", STRING, m.architecture),
        *(pair(f"{m.architecture}.{key}", U32, value) for key, value in numbers.items()),
        pair(f"{m.architecture}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        pair("tokenizer.ggml.model", STRING, "llama"),
        pair("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        pair("tokenizer.ggml.scores", ARRAY, (F32, [0.0] * m.vocabulary)),
        pair("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        pair("tokenizer.ggml.bos_token_id", U32, 1),
        pair("tokenizer.ggml.eos_token_id", U32, 2),
    ]


def _tensors(m: Model) -> list[tuple[str, Shape]]:
    found: list[tuple[str, Shape]] = [
        ("token_embd.weight", (m.width, m.vocabulary)),
        ("output_norm.weight", (m.width,)),
    ]
    if not m.tied:
        found.append(("output.weight", (m.width, m.vocabulary)))
    for layer in range(m.layers):
        found += [(f"blk.{layer}.{name}", shape) for name, shape in _layer(m).items()]
    return found


def _layer(m: Model) -> dict[str, Shape]:
    queries, keys = m.heads * m.head, m.kv * m.head
    layer: dict[str, Shape] = {
        "attn_norm.weight": (m.width,),
        "ffn_norm.weight": (m.width,),
        "attn_output.weight": (queries, m.width),
    }
    if m.architecture == "phi3":
        layer |= {"attn_qkv.weight": (m.width, queries + 2 * keys), "ffn_up.weight": (m.width, 2 * m.feed_forward)}
        return layer | {"ffn_down.weight": (m.feed_forward, m.width)}
    layer |= {"attn_q.weight": (m.width, queries), "attn_k.weight": (m.width, keys), "attn_v.weight": (m.width, keys)}
    if m.architecture == "qwen2":
        layer |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if m.architecture in ("qwen3", "qwen3moe", "gemma3"):
        layer |= {"attn_q_norm.weight": (m.head,), "attn_k_norm.weight": (m.head,)}
    if m.architecture in ("gemma2", "gemma3"):
        layer |= {"post_attention_norm.weight": (m.width,), "post_ffw_norm.weight": (m.width,)}
    if m.experts:
        up = (m.width, m.feed_forward, m.experts)
        layer |= {"ffn_gate_inp.weight": (m.width, m.experts), "ffn_gate_exps.weight": up, "ffn_up_exps.weight": up}
        return layer | {"ffn_down_exps.weight": (m.feed_forward, m.width, m.experts)}
    up2 = (m.width, m.feed_forward)
    return layer | {"ffn_gate.weight": up2, "ffn_up.weight": up2, "ffn_down.weight": (m.feed_forward, m.width)}
