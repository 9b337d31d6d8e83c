"""Pure arithmetic: a model's header and a context length -> bytes of memory, and whether and where they fit.

What is counted is what llama.cpp allocates when the engine opens a model: the mapped weights, the copies of some of
them that its CPU backend keeps in another order, the KV cache, and the buffer a micro-batch is computed in. The rules
follow llama.cpp's sources (llama-kv-cache*.cpp, llama-model.cpp); `tests/test_fit.py` holds them against what the
library reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from localllm.errors import BadModelFile, OutOfMemory
from localllm.formats.gguf import TENSOR_TYPES, TYPE_IDS, Header
from localllm.hardware import Memory

DEFAULT_CONTEXT = 8192  # tokens, where the user names no number and the model was trained for more
UBATCH = 512  # tokens that llama.cpp computes at once
GPU_RESERVE = 512 << 20  # what a driver and a desktop want for themselves
DECODE_EFFICIENCY = 0.5
_CELLS = 256  # the KV cache is a multiple of so many tokens
_SMALLEST_CONTEXT = 512

# Architectures whose layers look at a window of tokens, but for every nth: n, and whether that one comes first.
_WINDOWS = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "llama4": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
_FIXED_WINDOW = {"llama4": 8192}
_DEFAULT_WINDOW = {"gemma2": 4096, "llama4": 8192, "smallthinker": 4096}

# Bits per weight of what llama.cpp's quantizer makes of a checkpoint whose sizes are usual (embeddings included).
BITS_PER_WEIGHT = {"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model wants: its weights, the KV cache at the chosen context, and buffers to compute in.

    `repacked` is the part of the weights that is held a second time, in an order that the processor likes better; the
    first copy is mapped and not read again. `active` is what one token reads of the weights.
    """

    weights: int
    kv_cache: int
    compute: int
    layers: int
    repacked: int = 0
    active: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.repacked + self.kv_cache + self.compute


class Verdict(Enum):
    FITS = "needs no more than what is free now"
    TIGHT = "needs more than what is free, but no more than there is: other programs must give way"
    NO = "cannot be held"


NeedAt = Callable[[int, str, str], Need]
"""Context in tokens, types of the K and the V cache -> what it takes."""


def estimate(
    header: Header,
    context: int,
    type_k: str,
    type_v: str,
    *,
    flash_attention: bool = True,
    repacked_types: frozenset[str] = frozenset(),
) -> Need:
    """What a GGUF needs; `repacked_types` are those that llama.cpp repacks on this processor (`hardware`)."""
    shape = _Shape.of_header(header)
    copied = sum(t.size for t in header.tensors if t.type in repacked_types and _is_repacked(t.name, t.shape))
    return Need(
        sum(t.size for t in header.tensors),
        shape.kv_cache(context, type_k, type_v),
        shape.compute(context, flash_attention=flash_attention),
        shape.layers,
        copied,
        _active(header),
    )


def estimate_checkpoint(
    config: Mapping[str, Any], parameters: int, type_name: str, context: int, type_k: str, type_v: str
) -> Need:
    """The same for a Hugging Face checkpoint converted to `type_name`. Raises BadModelFile for a config of nonsense."""
    shape = _Shape.of_config(config)
    weights = int(parameters * BITS_PER_WEIGHT[type_name] / 8)
    return Need(weights, shape.kv_cache(context, type_k, type_v), shape.compute(context), shape.layers, 0, weights)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What of a model decides its buffers. `kv` has each layer's elements of keys and values; (0, 0) keeps none."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    query: int
    vocabulary: int
    kv: tuple[tuple[int, int], ...]
    sliding: tuple[bool, ...]
    window: int
    state: int

    @classmethod
    def of_header(cls, header: Header) -> _Shape:
        get = header.get
        layers, width = int(get("block_count", 0)), int(get("embedding_length", 0))
        heads = _per_layer(get("attention.head_count", 1), layers)
        kv_heads = _per_layer(get("attention.head_count_kv", get("attention.head_count", 1)), layers)
        most = max(heads, default=1) or 1
        key = int(get("attention.key_length", width // most))
        value = int(get("attention.value_length", key))
        if get("attention.key_length_mla") is not None:
            value = 0  # DeepSeek's latent attention keeps values and keys as one
        if interval := int(get("full_attention_interval", 0)):
            kv_heads = [n if (i + 1) % interval == 0 else 0 for i, n in enumerate(kv_heads)]
        own = layers - int(get("attention.shared_kv_layers", 0))
        kv = [(n * key, n * value) if i < own else (0, 0) for i, n in enumerate(kv_heads)]
        used = max(1, int(get("expert_used_count", 1)))
        expert = used * max(_per_layer(get("expert_feed_forward_length", 0), layers), default=0)
        dense = max(_per_layer(get("feed_forward_length", 4 * width), layers), default=0)
        if get("expert_count", 0) and not expert:
            expert = used * dense
        tokens = next((t.shape[-1] for t in header.tensors if t.name == "token_embd.weight"), 0)
        return cls(
            layers, width, expert or dense, most, most * key, tokens, tuple(kv), _sliding(header, layers),
            _window(header), _recurrent_state(header, kv_heads),
        )  # fmt: skip

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> _Shape:
        text = config.get("text_config")
        values: Mapping[str, Any] = text if isinstance(text, Mapping) else config

        def number(key: str, default: int | None = None) -> int:
            value = values.get(key, default)
            value = default if value is None else value
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 24:
                raise BadModelFile(f"config.json has {key} {value!r}", "is it a language model's?")
            return value

        layers, width, heads = number("num_hidden_layers"), number("hidden_size"), number("num_attention_heads")
        if layers > 1 << 12:
            raise BadModelFile(f"config.json has {layers} layers", "is it a language model's?")
        head = number("head_dim", max(1, width // heads))
        kv = number("num_key_value_heads", heads) * head
        feed_forward = number("intermediate_size", 4 * width)
        if isinstance(values.get("num_experts_per_tok"), int):
            feed_forward = number("moe_intermediate_size", feed_forward) * number("num_experts_per_tok")
        kinds = values.get("layer_types")
        sliding = tuple(k == "sliding_attention" for k in kinds[:layers]) if isinstance(kinds, list) else ()
        window = number("sliding_window") if any(sliding) else 0
        sliding += (False,) * (layers - len(sliding))
        return cls(
            layers, width, feed_forward, heads, heads * head, number("vocab_size"), ((kv, kv),) * layers, sliding,
            window, 0,
        )  # fmt: skip

    def cells(self, context: int) -> tuple[int, int]:
        """Tokens that the cache holds of layers that look at all of them, and of those with a window."""
        whole = _round_up(context)
        return whole, _round_up(min(whole, self.window + UBATCH)) if self.window else whole

    def kv_cache(self, context: int, type_k: str, type_v: str) -> int:
        whole, window = self.cells(context)
        total = self.state
        for (key, value), slides in zip(self.kv, self.sliding, strict=True):
            total += (row_bytes(type_k, key) + row_bytes(type_v, value)) * (window if slides else whole)
        return total

    def compute(self, context: int, *, flash_attention: bool = True) -> int:
        """The activations that live at once in the widest part of a layer, the masks, and a row of logits."""
        batch = min(UBATCH, _round_up(context))
        whole, window = self.cells(context)
        seen = whole + (window if any(self.sliding) else 0)
        # Gate, up and their product, beside the residual and its norm; what attention left of narrow holes is lost.
        wide = 3 * self.feed_forward + (4 if self.feed_forward > self.width else 2) * self.width
        kv = max((key + value for key, value in self.kv), default=0)
        narrow = 3 * self.width + 2 * self.query + kv
        if flash_attention:
            activations, mask = max(wide, narrow), 2
        else:  # every head's scores of every token, and a mask in 32 bits
            activations, mask = max(wide, narrow + self.heads * whole), 4
        return batch * (4 * activations + mask * seen) + 2 * 4 * self.vocabulary


def row_bytes(type_name: str, elements: int) -> int:
    """Bytes of a row in a ggml type."""
    _, block, size = TENSOR_TYPES[TYPE_IDS[type_name.upper()]]
    return -(-elements // block) * size


def tokens_per_second(need: Need, bandwidth: float) -> float:
    """How fast tokens come, where memory sets the pace: each reads the active weights and half of a full cache.

    `bandwidth` is in bytes a second. Real runs reach a part of that bound: from 0.35 to 0.52 of it where this was
    measured (SmolLM2 in Q4_1 and Q4_0, Gemma 3 270M in Q4_K_M), hence DECODE_EFFICIENCY.
    """
    return DECODE_EFFICIENCY * bandwidth / max(1, need.active + need.kv_cache // 2)


def layers_on_gpu(need: Need, free: int) -> int:
    """How many of `need.layers` + 1 (the output) fit into `free` bytes of GPU memory, with their part of the cache."""
    room = free - GPU_RESERVE - need.compute
    if room <= 0 or not need.layers:
        return 0
    per_layer = (need.weights + need.kv_cache) / (need.layers + 1)
    return min(need.layers + 1, int(room / per_layer))


def verdict(need: Need, memory: Memory, on_gpu: int = 0) -> Verdict:
    """Whether what stays off the GPU, where `on_gpu` layers are, can be held.

    Mapped weights can be dropped and read again, so they must fit into all of the memory; the rest into what is free.
    """
    share = 1 - on_gpu / (need.layers + 1)
    fixed = share * (need.kv_cache + need.repacked) + need.compute
    mapped = share * (need.weights - need.repacked)
    if fixed > memory.available or fixed + mapped > memory.total:
        return Verdict.NO
    return Verdict.FITS if fixed + share * need.weights <= memory.available else Verdict.TIGHT


def require_memory(
    name: str, need_at: NeedAt, context: int, types: tuple[str, str], on_gpu: int, memory: Memory
) -> None:
    """Raise OutOfMemory where the verdict is NO: the system would kill the process in mid-load."""
    need = need_at(context, *types)
    if verdict(need, memory, on_gpu) is not Verdict.NO:
        return
    raise OutOfMemory(
        f"{name} needs {_gib(need.weights + need.repacked)} for weights and {_gib(need.kv_cache + need.compute)} for a "
        f"context of {context}; {_gib(memory.available)} of {_gib(memory.total)} are free",
        _way_out(need_at, context, types, on_gpu, memory),
    )


def _way_out(need_at: NeedAt, context: int, types: tuple[str, str], on_gpu: int, memory: Memory) -> str:
    """The option that would make it fit."""

    def fits(tokens: int, key: str, value: str) -> bool:
        return verdict(need_at(tokens, key, value), memory, on_gpu) is not Verdict.NO

    if types == ("f16", "f16") and fits(context, "q8_0", "q8_0"):
        return "--cache-type-k q8_0 --cache-type-v q8_0 would fit"
    low, high = _SMALLEST_CONTEXT // _CELLS, context // _CELLS
    if not fits(low * _CELLS, *types):
        return "take a smaller quantization, or a smaller model"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _CELLS, *types) else (low, middle)
    return f"--context {low * _CELLS} would fit"


def _is_repacked(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with, eight rows at a time; the embedding is only looked up."""
    return len(shape) > 1 and shape[1] % 8 == 0 and name != "token_embd.weight"


def _active(header: Header) -> int:
    experts, used = int(header.get("expert_count", 0)), int(header.get("expert_used_count", 0))
    share = used / experts if experts else 1.0
    tied = all(t.name != "output.weight" for t in header.tensors)
    total = 0.0
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and not tied:
            continue
        total += tensor.size * (share if "_exps." in tensor.name else 1.0)
    return int(total)


def _window(header: Header) -> int:
    name = header.architecture
    if name not in _WINDOWS:
        return 0  # some others tell a window that llama.cpp does not use
    return _FIXED_WINDOW.get(name) or int(header.get("attention.sliding_window", _DEFAULT_WINDOW.get(name, 0)))


def _sliding(header: Header, layers: int) -> tuple[bool, ...]:
    """Which layers look at a window of tokens only."""
    if not _window(header):
        return (False,) * layers
    period, first = _WINDOWS[header.architecture]
    pattern = header.get("attention.sliding_window_pattern", period)
    if isinstance(pattern, tuple):
        flags = tuple(bool(flag) for flag in pattern[:layers])
        return flags + (False,) * (layers - len(flags))
    period = int(pattern)
    if not period:
        return (True,) * layers
    return tuple(i % period != 0 if first else i % period < period - 1 for i in range(layers))


def _recurrent_state(header: Header, kv_heads: list[int]) -> int:
    """Bytes of what layers without attention remember of all that went before (Mamba, LFM2 and the like)."""
    get = header.get
    layers = sum(1 for n in kv_heads if n == 0) or (len(kv_heads) if header.architecture == "falcon-h1" else 0)
    if "mamba" in header.architecture:
        layers = len(kv_heads)
    inner, state = int(get("ssm.inner_size", 0)), int(get("ssm.state_size", 0))
    convolved = max(0, int(get("ssm.conv_kernel", 1)) - 1) * (inner + 2 * int(get("ssm.group_count", 0)) * state)
    short = max(0, int(get("shortconv.l_cache", 1)) - 1) * int(get("embedding_length", 0))
    return 4 * layers * (convolved + inner * state + short)


def _per_layer(value: int | tuple[int, ...], layers: int) -> list[int]:
    return [*value, *[0] * layers][:layers] if isinstance(value, tuple) else [int(value)] * layers


def _round_up(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
