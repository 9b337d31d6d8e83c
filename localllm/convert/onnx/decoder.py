"""What of a decoder decides its graph, from a GGUF's metadata or a checkpoint's configuration told in a GGUF's words.

The families are those that share Llama's shape. What of it differs between them (which halves a rotation turns, extra
norms, caps, windows, layers without positions) was read in llama.cpp's sources (src/models/) and transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localllm.errors import BadModelFile, UnknownArchitecture
from localllm.shape import Shape, Values

# Architecture -> transformers' class and model type, of which the latter is onnxruntime-genai's name too.
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"), "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"), "smollm3": ("SmolLM3ForCausalLM", "smollm3"),
    "gemma": ("GemmaForCausalLM", "gemma"), "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"), "phi3": ("Phi3ForCausalLM", "phi3"),
}  # fmt: skip
_INTERLEAVED = ("llama", "smollm3")  # neighbours turn together, elsewhere an element of each half of a head
_WITHOUT_POSITIONS = {"smollm3": 4}  # every so manyth layer
_BIG = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose attention is scaled by the width for each head
_EPSILON = 1e-5
_MAX_CONTEXT = 1 << 20  # positions; the tables of cosines and sines have a row for each

Get = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Decoder:
    """Numbers of a model. `windows` has each layer's window in tokens, -1 where it sees all; a cap of 0 is none.

    `turning` elements of a head turn with the position; `turns` is whether a layer's do.
    """

    architecture: str
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    context: int
    epsilon: float
    scale: float
    windows: tuple[int, ...]
    turns: tuple[bool, ...]
    turning: int
    interleaved: bool
    attention_cap: float
    final_cap: float

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def turns_inside(self) -> bool:
        """Whether GroupQueryAttention turns heads of this shape itself."""
        return self.head % 16 == 0 and self.turning % 16 == 0

    @property
    def is_gemma(self) -> bool:
        return self.architecture.startswith("gemma")


def require_known(architecture: str, values: Mapping[str, Any]) -> None:
    """Whether the family is exported. Raises UnknownArchitecture."""
    experts = values.get("expert_count")
    if architecture in ARCHITECTURES and not experts:
        return
    what = f"{architecture} with {experts} experts" if experts else architecture
    raise UnknownArchitecture(
        f"the architecture {what!r:.80} is not exported to ONNX, only {', '.join(ARCHITECTURES)}",
        "localllm embed takes the GGUF; of BERT the checkpoint can be exported"
        if "bert" in architecture
        else "localllm run takes the GGUF, and localllm convert makes one",
    )


def read(architecture: str, table: Mapping[str, Any], vocabulary: int, window: int = 0) -> Decoder:
    """A decoder from metadata without the architecture's name in front.

    `window` is one that every layer has and that a GGUF does not tell. Raises UnknownArchitecture, BadModelFile.
    """
    require_known(architecture, table)
    values = Values(architecture, lambda key, default=0: table.get(key, default))
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(table.get(key), (list, tuple)):
            raise _bad(f"its {key} differs from layer to layer")
    shape = Shape.of(values, vocabulary)
    heads = values.number("attention.head_count")
    if not shape.layers or not heads or not shape.width:
        raise _bad("it lacks its number of layers, of heads or its width")
    head = values.number("attention.key_length", shape.width // heads)
    if values.number("attention.value_length", head) != head:
        raise _bad("its keys and values differ in length")
    if not head or head % 8:
        raise _bad(f"its heads have {head} elements, and ONNX Runtime's attention takes multiples of 8")
    kv_heads = values.number("attention.head_count_kv", heads)
    if not kv_heads or heads % kv_heads:
        raise _bad(f"its {heads} heads cannot share {kv_heads} of keys and values")
    context = values.number("context_length")
    if not 0 < context <= _MAX_CONTEXT:
        raise _bad(f"its context is {context} tokens")
    if architecture == "phi3":
        window = values.number("attention.sliding_window")
    windows = tuple(shape.window if slides else window or -1 for slides in shape.sliding)
    step = _WITHOUT_POSITIONS.get(architecture, shape.layers + 1)
    big = shape.layers == _BIG.get(architecture)
    return Decoder(
        architecture, shape.width, heads, kv_heads, head,
        values.number("feed_forward_length"), vocabulary, context,
        number(table, "attention.layer_norm_rms_epsilon", _EPSILON),
        (shape.width // heads if big else head) ** -0.5,
        tuple(-1 if w >= context else w for w in windows),
        tuple((layer + 1) % step != 0 for layer in range(shape.layers)),
        min(head, values.number("rope.dimension_count", head)), architecture in _INTERLEAVED,
        number(table, "attn_logit_softcapping", 50.0 if architecture == "gemma2" else 0.0),
        number(table, "final_logit_softcapping", 30.0 if architecture == "gemma2" else 0.0),
    )  # fmt: skip


def number(table: Mapping[str, Any], key: str, default: float) -> float:
    """A number of the metadata. Raises BadModelFile."""
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _bad(f"its {key} is {value!r:.40}")
    return float(value)


def _bad(reason: str) -> BadModelFile:
    return BadModelFile(f"the model cannot be exported to ONNX: {reason}")
