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
    """`kv` heads of `head` elements for `heads` queries; `used` of `experts` answer; `window` of sliding layers.

    Some architectures need more than these numbers say; `_special` has it.
    """

    architecture: str
    layers: int = 8
    width: int = 512
    feed_forward: int = 1536
    heads: int = 8
    kv: int = 2
    head: int = 64
    vocabulary: int = 8192
    experts: int = 0
    used: int = 2
    window: int = 0
    weights: str = "F16"
    tied: bool = False

    def __str__(self) -> str:
        return f"{self.architecture} {self.weights}" + (f" {self.experts} experts" if self.experts else "")


def write(path: Path, model: Model) -> Path:
    metadata = _metadata(model)
    rows, offset = [], 0
    for name, shape in _tensors(model):
        kind, block, size = TYPES[model.weights if _is_quantized(name, shape) else "F32"]
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
    numbers: dict[str, int | list[int]] = {
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
        numbers |= {"expert_count": m.experts, "expert_used_count": m.used}
        numbers |= {"expert_feed_forward_length": m.feed_forward}
    if m.window:
        numbers |= {"attention.sliding_window": m.window}
    numbers |= _special(m)
    return [
        pair("general.architecture", STRING, m.architecture),
        *(_number(f"{m.architecture}.{key}", value) for key, value in numbers.items()),
        pair(f"{m.architecture}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        pair("tokenizer.ggml.model", STRING, "llama"),
        pair("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        pair("tokenizer.ggml.scores", ARRAY, (F32, [0.0] * m.vocabulary)),
        pair("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        pair("tokenizer.ggml.bos_token_id", U32, 1),
        pair("tokenizer.ggml.eos_token_id", U32, 2),
    ]


def _number(key: str, value: int | list[int]) -> bytes:
    return pair(key, ARRAY, (U32, value)) if isinstance(value, list) else pair(key, U32, value)


# Of the latent attention of DeepSeek: the ranks, and what of a head turns with the position.
LATENT, QUERY_LATENT, TURNING = 256, 384, 64
STATE, GROUPS, KERNEL = 64, 2, 4  # of the layers that carry a state from token to token
RECURRENT = ("lfm2", "granitehybrid", "qwen3next")


def has_attention(m: Model, layer: int) -> bool:
    """Whether a layer attends to earlier tokens; in mixed models every fourth does, in pure recurrent ones none."""
    return m.architecture != "mamba2" and (m.architecture not in RECURRENT or layer % 4 == 3)


def _slides(m: Model, layer: int) -> bool:
    return m.architecture == "gemma4" and layer % 3 != 2


def _special(m: Model) -> dict[str, int | list[int]]:
    """The numbers that only some architectures have."""
    name, found = m.architecture, dict[str, int | list[int]]()
    if name in ("lfm2", "granitehybrid"):
        found["attention.head_count_kv"] = [m.kv if has_attention(m, i) else 0 for i in range(m.layers)]
    if name == "lfm2":
        found["shortconv.l_cache"] = 3
    if name == "mamba2":
        found |= {"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}
    if name in ("mamba2", "granitehybrid", "qwen3next"):
        found |= {"ssm.conv_kernel": KERNEL, "ssm.inner_size": 2 * m.width, "ssm.state_size": STATE}
        found |= {"ssm.time_step_rank": 2 * m.width // STATE, "ssm.group_count": GROUPS}
    if name == "qwen3next":
        found["full_attention_interval"] = 4
    if name == "deepseek2":
        found |= {"attention.head_count_kv": 1, "attention.kv_lora_rank": LATENT, "rope.dimension_count": TURNING}
        found |= {"attention.key_length": LATENT + TURNING, "attention.value_length": LATENT}
        found |= {"attention.key_length_mla": m.head + TURNING, "attention.value_length_mla": m.head}
        found |= {"attention.q_lora_rank": QUERY_LATENT, "expert_shared_count": 1, "leading_dense_block_count": 0}
    if name == "gemma4":
        found |= {"attention.sliding_window_pattern": [int(_slides(m, i)) for i in range(m.layers)]}
        found |= {"attention.key_length": 2 * m.head, "attention.value_length": 2 * m.head}
        found |= {"attention.key_length_swa": m.head, "attention.value_length_swa": m.head}
        found |= {"attention.shared_kv_layers": 2, "embedding_length_per_layer_input": 0}
        found |= {"rope.dimension_count": 2 * m.head, "rope.dimension_count_swa": m.head}
    return found


def _is_quantized(name: str, shape: Shape) -> bool:
    small = ("norm", "bias", "conv1d", "shortconv.conv", "ssm_a", "ssm_d", "ffn_gate_inp", "sinks")
    return len(shape) > 1 and not any(word in name for word in small)


def _tensors(m: Model) -> list[tuple[str, Shape]]:
    last = "token_embd_norm.weight" if m.architecture == "lfm2" else "output_norm.weight"
    found: list[tuple[str, Shape]] = [("token_embd.weight", (m.width, m.vocabulary)), (last, (m.width,))]
    if not m.tied:
        found.append(("output.weight", (m.width, m.vocabulary)))
    if m.architecture == "gemma4":
        found.append(("rope_freqs.weight", (m.head,)))
    for layer in range(m.layers):
        found += [(f"blk.{layer}.{name}", shape) for name, shape in _layer(m, layer).items()]
    return found


def _layer(m: Model, number: int) -> dict[str, Shape]:
    norms: dict[str, Shape] = {"attn_norm.weight": (m.width,), "ffn_norm.weight": (m.width,)}
    if m.architecture in ("gemma2", "gemma3", "gemma4", "qwen3next", "gpt-oss"):
        norms["post_attention_norm.weight"] = (m.width,)
    if m.architecture in ("gemma2", "gemma3", "gemma4"):
        norms["post_ffw_norm.weight"] = (m.width,)
    if m.architecture in ("qwen3next", "gpt-oss"):  # theirs is the one after the attention
        del norms["ffn_norm.weight"]
    if m.architecture == "mamba2":
        return {"attn_norm.weight": (m.width,), **_state_space(m)}
    if m.architecture == "deepseek2":
        return norms | _latent_attention(m) | _feed_forward(m)
    if has_attention(m, number):
        return norms | _attention(m, number) | _feed_forward(m)
    return norms | _recurrence(m) | _feed_forward(m)


def _attention(m: Model, number: int) -> dict[str, Shape]:
    head = m.head * (2 if m.architecture == "gemma4" and not _slides(m, number) else 1)
    queries, keys = m.heads * head, m.kv * head
    layer: dict[str, Shape] = {"attn_output.weight": (queries, m.width)}
    if m.architecture == "phi3":
        return layer | {"attn_qkv.weight": (m.width, queries + 2 * keys)}
    asked = 2 * queries if m.architecture == "qwen3next" else queries  # with its gate
    layer |= {"attn_q.weight": (m.width, asked), "attn_k.weight": (m.width, keys), "attn_v.weight": (m.width, keys)}
    if m.architecture in ("qwen2", "gpt-oss"):
        layer |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if m.architecture == "gpt-oss":
        layer |= {"attn_output.bias": (m.width,), "attn_sinks.weight": (m.heads,)}
    if m.architecture in ("qwen3", "qwen3moe", "gemma3", "gemma4", "lfm2", "qwen3next"):
        layer |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    return layer


def _latent_attention(m: Model) -> dict[str, Shape]:
    return {
        "attn_q_a_norm.weight": (QUERY_LATENT,),
        "attn_kv_a_norm.weight": (LATENT,),
        "attn_q_a.weight": (m.width, QUERY_LATENT),
        "attn_q_b.weight": (QUERY_LATENT, m.heads * (m.head + TURNING)),
        "attn_kv_a_mqa.weight": (m.width, LATENT + TURNING),
        "attn_k_b.weight": (m.head, LATENT, m.heads),
        "attn_v_b.weight": (LATENT, m.head, m.heads),
        "attn_output.weight": (m.heads * m.head, m.width),
    }


def _state_space(m: Model) -> dict[str, Shape]:
    inner, heads = 2 * m.width, 2 * m.width // STATE
    convolved = inner + 2 * GROUPS * STATE
    return {
        "ssm_in.weight": (m.width, inner + convolved + heads),
        "ssm_conv1d.weight": (KERNEL, convolved),
        "ssm_conv1d.bias": (convolved,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads),
        "ssm_d": (1, heads),
        "ssm_norm.weight": (inner // GROUPS, GROUPS),
        "ssm_out.weight": (inner, m.width),
    }


def _recurrence(m: Model) -> dict[str, Shape]:
    if m.architecture == "granitehybrid":
        return _state_space(m)
    if m.architecture == "lfm2":
        return {
            "shortconv.conv.weight": (3, m.width),
            "shortconv.in_proj.weight": (m.width, 3 * m.width),
            "shortconv.out_proj.weight": (m.width, m.width),
        }
    values, heads, keys = 2 * m.width, 2 * m.width // STATE, GROUPS * STATE
    return {
        "attn_qkv.weight": (m.width, 2 * keys + values),
        "attn_gate.weight": (m.width, values),
        "ssm_conv1d.weight": (KERNEL, 2 * keys + values),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_ba.weight": (m.width, 2 * heads),
        "ssm_norm.weight": (STATE,),
        "ssm_out.weight": (values, m.width),
    }


def _feed_forward(m: Model) -> dict[str, Shape]:
    up, down = (m.width, m.feed_forward), (m.feed_forward, m.width)
    if not m.experts and m.architecture == "phi3":
        return {"ffn_up.weight": (m.width, 2 * m.feed_forward), "ffn_down.weight": down}
    if not m.experts:
        return {"ffn_gate.weight": up, "ffn_up.weight": up, "ffn_down.weight": down}
    layer: dict[str, Shape] = {
        "ffn_gate_inp.weight": (m.width, m.experts),
        "ffn_gate_exps.weight": (*up, m.experts),
        "ffn_up_exps.weight": (*up, m.experts),
        "ffn_down_exps.weight": (*down, m.experts),
    }
    if m.architecture in ("deepseek2", "qwen3next"):
        layer |= {"ffn_gate_shexp.weight": up, "ffn_up_shexp.weight": up, "ffn_down_shexp.weight": down}
    if m.architecture == "qwen3next":
        layer |= {"ffn_gate_inp_shexp.weight": (m.width,)}
    if m.architecture == "gpt-oss":
        layer |= {"ffn_gate_inp.bias": (m.experts,), "ffn_down_exps.bias": (m.width, m.experts)}
        layer |= {"ffn_gate_exps.bias": (m.feed_forward, m.experts), "ffn_up_exps.bias": (m.feed_forward, m.experts)}
    return layer
