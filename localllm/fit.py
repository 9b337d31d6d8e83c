"""Pure arithmetic: a model's header and a context length -> bytes of memory, and whether and where they fit.

What is counted is what llama.cpp allocates when the engine opens a model: the mapped weights, the copies of some of
them that its CPU backend keeps in another order, the KV cache, and the buffer a micro-batch is computed in.
`tests/test_fit.py` holds it against what the library reports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from localllm.errors import OutOfMemory
from localllm.formats.gguf import Header
from localllm.formats.gguf_metadata import Array
from localllm.hardware import Memory
from localllm.shape import CELLS, Shape, Values, of_config

DEFAULT_CONTEXT = 8192  # tokens, where the user names no number and the model was trained for more
GPU_RESERVE = 512 << 20  # what a driver and a desktop want for themselves
DECODE_EFFICIENCY = 0.5  # of the bound that memory sets; see `tokens_per_second`
_SMALLEST_CONTEXT = 512
_STRING = 128  # bytes that llama.cpp's tables take for each token and each merge; measured as the process's growth


# Bits per weight of what llama.cpp's quantizer makes of a checkpoint, embeddings included, and the part of it that has
# the type of the name (others get more bits). Measured on a Llama of 32 layers, 1024 wide, with a vocabulary of 32768.
BITS_PER_WEIGHT = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.71, "Q4_K_M": 4.9, "Q4_K_S": 4.67,
    "Q4_0": 4.64, "IQ4_XS": 4.47, "Q3_K_M": 4.0,
}  # fmt: skip
_MAIN_PART = {"Q8_0": 0.93, "Q6_K": 0.93, "Q5_K_M": 0.72, "Q4_K_M": 0.68, "Q4_K_S": 0.80, "Q4_0": 0.84}

_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model wants: its weights, the KV cache at the chosen context, and what it takes to compute.

    That is the buffers of a micro-batch and of the logits, and the tables of the vocabulary.
    `repacked` is the part of the weights that is held a second time, in an order that the processor likes better; the
    first copy is mapped and not read again. `active` is what one token reads of the weights. Weights that are not
    `mapped` are read into memory of the process, once, in whichever order.
    """

    weights: int
    kv_cache: int
    compute: int
    layers: int
    repacked: int = 0
    active: int = 0
    mapped: bool = True

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
    mmap: bool = True,
    repacked_types: frozenset[str] = frozenset(),
) -> Need:
    """What a GGUF needs; `repacked_types` are those that llama.cpp repacks on this processor (`hardware`).

    Raises BadModelFile where the header's numbers are none.
    """
    values = Values(header.architecture, header.get)
    shape = Shape.of(values, next((t.shape[-1] for t in header.tensors if t.name == "token_embd.weight"), 0))
    # Layers that predict tokens ahead (MTP) stay on the disk.
    tensors = [t for t in header.tensors if not (m := _BLOCK.match(t.name)) or int(m[1]) < shape.layers]
    copied = sum(t.size for t in tensors if t.type in repacked_types and _is_repacked(t.name, t.shape)) if mmap else 0
    experts = values.number("expert_count")
    share = min(1.0, values.most("expert_used_count", 0) / experts) if experts else 1.0
    looked_up = {"per_layer_token_embd.weight"}
    if any(t.name == "output.weight" for t in tensors):  # else the embedding is the output too, and read whole
        looked_up.add("token_embd.weight")
    active = sum(t.size * (share if "_exps." in t.name else 1.0) for t in tensors if t.name not in looked_up)
    return Need(
        sum(t.size for t in tensors),
        shape.kv_cache(context, type_k, type_v, flash_attention=flash_attention),
        shape.compute(context, flash_attention=flash_attention) + vocabulary_tables(header),
        shape.layers,
        copied,
        int(active),
        mmap,
    )


def vocabulary_tables(header: Header) -> int:
    """Bytes of what llama.cpp keeps of the vocabulary, of which it reports nothing."""
    arrays = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    return _STRING * sum(a.length if isinstance(a, Array) else len(a) for a in arrays if isinstance(a, (Array, tuple)))


def estimate_checkpoint(
    config: Mapping[str, Any],
    parameters: int,
    type_name: str,
    context: int,
    type_k: str,
    type_v: str,
    *,
    repacked_types: frozenset[str] = frozenset(),
) -> Need:
    """The same for a Hugging Face checkpoint converted to `type_name`. Raises BadModelFile for a config of nonsense."""
    values, tied = of_config(config)
    shape = Shape.of(values, values.number("vocab_size"))
    weights = int(parameters * BITS_PER_WEIGHT[type_name] / 8)
    copied = weights * _MAIN_PART.get(type_name, 1.0) if re.sub("_[MS]$", "", type_name) in repacked_types else 0
    experts, width = values.number("expert_count"), shape.width
    inner = values.most("expert_feed_forward_length", 0) or values.most("feed_forward_length", 0)
    resting = 3 * shape.layers * width * inner * max(0, experts - values.most("expert_used_count", 0))
    looked_up = 0 if tied else shape.vocabulary * width
    active = max(0.0, 1 - (resting + looked_up) / max(1, parameters))
    return Need(
        weights,
        shape.kv_cache(context, type_k, type_v),
        shape.compute(context) + 2 * _STRING * shape.vocabulary,  # most have as many merges as tokens
        shape.layers,
        int(copied),
        int(weights * active),
    )


def tokens_per_second(need: Need, bandwidth: float) -> float:
    """How fast tokens come, where memory sets the pace: each reads the active weights and half of a full cache.

    `bandwidth` is in bytes a second. Real runs reach a part of that bound: of 51 GB/s on two cores, SmolLM2 135M in
    Q4_1 reached 0.35, in Q4_0 (which is repacked) 0.50, and Gemma 3 270M in Q4_K_M 0.51; hence DECODE_EFFICIENCY.
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
    own = need.repacked if need.mapped else need.weights
    fixed = share * (need.kv_cache + own) + need.compute
    read_again = share * (need.weights - own)
    if fixed > memory.available or fixed + read_again > memory.total:
        return Verdict.NO
    return Verdict.FITS if share * (need.total - need.compute) + need.compute <= memory.available else Verdict.TIGHT


def largest_context(need_at: NeedAt, limit: int, types: tuple[str, str], memory: Memory, on_gpu: int = 0) -> int:
    """The most tokens of context, a multiple of 256 up to `limit`, with which the verdict is not NO; 0 if none are."""
    low, high = 0, limit // CELLS + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = verdict(need_at(middle * CELLS, *types), memory, on_gpu) is not Verdict.NO
        low, high = (middle, high) if fits else (low, middle)
    return low * CELLS


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
    """The options that would make it fit."""
    less = largest_context(need_at, context, types, memory, on_gpu)
    found = [f"--context {less}"] if less >= _SMALLEST_CONTEXT else []
    if types == ("f16", "f16") and verdict(need_at(context, "q8_0", "q8_0"), memory, on_gpu) is not Verdict.NO:
        found.append("--cache-type-k q8_0 --cache-type-v q8_0")
    return " or ".join(found) + " would fit" if found else "take a smaller quantization, or a smaller model"


def _is_repacked(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with, eight rows at a time; the embedding is only looked up."""
    return len(shape) > 1 and shape[1] % 8 == 0 and name != "token_embd.weight"


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
