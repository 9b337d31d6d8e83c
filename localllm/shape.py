"""What of a model decides the buffers that llama.cpp allocates for it, from a GGUF's numbers or a checkpoint's.

The rules follow llama.cpp's sources (llama-kv-cache*.cpp, llama-hparams.cpp, models/); what they say of activations was
found by measuring. Not counted: the caches of sparse attention's indexers (DeepSeek 3.2, GLM 5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localllm.errors import BadModelFile
from localllm.formats.gguf import TENSOR_TYPES, TYPE_IDS
from localllm.formats.gguf_metadata import WITHOUT_ATTENTION

UBATCH = 512  # tokens that llama.cpp computes at once
CELLS = 256  # the KV cache is a multiple of so many tokens


# Architectures whose layers look at a window of tokens but for every nth: n, whether that one comes first, and the
# window where the file tells none. Where n is 0 an array in the file has the layers. Others' windows are not used.
_WINDOWS = {
    "afmoe": (4, False, 0), "cohere2": (4, False, 0), "cohere2moe": (4, True, 0), "exaone-moe": (4, False, 128),
    "exaone4": (4, False, 4096), "gemma2": (2, False, 4096), "gemma3": (6, False, 0), "gemma3n": (5, False, 0),
    "gemma4": (0, False, 0), "gpt-oss": (2, False, 0), "granite_swa": (0, False, 0), "laguna": (4, True, 0),
    "lfm2": (0, False, 0), "llama4": (4, False, 8192), "maple": (0, False, 0), "mellum": (4, False, 0),
    "mimo2": (0, False, 0), "muse-glimmer": (4, False, 0), "olmo2": (4, False, 0), "plamo3": (8, False, 0),
    "smallthinker": (4, True, 0), "spark2_5": (0, False, 0), "step35": (0, False, 0),
}  # fmt: skip
_FIXED_WINDOW = {"llama4": 8192, "smallthinker": 4096}  # whatever the file says, unless it says 0
_GEMMA3N_OWN = 20  # its later layers use the cache of these
# Every fourth layer attends, the others carry a state by the delta rule; the file may say otherwise.
_DELTA_NETS = ("qwen3next", "qwen35", "qwen35moe")

# config.json's names of what a GGUF's metadata has.
_CONFIG_KEYS = {
    "num_hidden_layers": "block_count", "hidden_size": "embedding_length", "vocab_size": "vocab_size",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length", "moe_intermediate_size": "expert_feed_forward_length",
    "num_experts": "expert_count", "num_local_experts": "expert_count", "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count", "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern", "num_kv_shared_layers": "attention.shared_kv_layers",
    "full_attention_interval": "full_attention_interval", "conv_L_cache": "shortconv.l_cache",
    "linear_key_head_dim": "ssm.state_size", "linear_num_key_heads": "ssm.group_count",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
}  # fmt: skip
# What must be there, and how large it may be.
_REQUIRED = {"num_hidden_layers": 4096, "hidden_size": 1 << 20, "num_attention_heads": 1 << 16, "vocab_size": 1 << 24}
# A configuration's model_type, without "_text" and "_moe", where a GGUF's architecture has another name.
_ARCHITECTURES = {"gpt_oss": "gpt-oss", "qwen3_next": "qwen3next", "qwen3_5": "qwen35", "olmo3": "olmo2"}


@dataclass(frozen=True, slots=True)
class Values:
    """A model's numbers by their names in a GGUF; they come from strangers, so their types and ranges are checked."""

    architecture: str
    get: Callable[..., Any]

    def number(self, key: str, default: int = 0) -> int:
        return self._checked(key, self.get(key, default))

    def per_layer(self, key: str, layers: int, default: int | list[int] = 0) -> list[int]:
        value = self.get(key, default)
        if not isinstance(value, (list, tuple)):
            return [self._checked(key, value)] * layers
        return [*(self._checked(key, v) for v in value), *[0] * layers][:layers]

    def most(self, key: str, default: int) -> int:
        """A number, or the largest of an array."""
        value = self.get(key, default)
        return (
            max(self.per_layer(key, len(value)), default=0)
            if isinstance(value, (list, tuple))
            else self._checked(key, value)
        )

    def _checked(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise BadModelFile(f"the model says {key} {value!r:.80}, which cannot be", "is it a language model's?")
        return int(value)


def of_config(config: Mapping[str, Any]) -> tuple[Values, bool]:
    """A checkpoint's configuration in a GGUF's words, and whether its embedding is its output too."""
    text = config.get("text_config")
    given: Mapping[str, Any] = text if isinstance(text, Mapping) else config

    def number(key: str, default: int = 0) -> int:
        value = default if given.get(key) is None else given[key]
        least, most = (1, _REQUIRED[key]) if key in _REQUIRED else (0, 1 << 24)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadModelFile(f"config.json has {key} {value!r:.80}", "is it a language model's?")
        return value

    found: dict[str, Any] = {
        name: number(key) for key, name in _CONFIG_KEYS.items() if key in _REQUIRED or key in given
    }
    # A key that is there and null says as little as none.
    found = {k: v for k, v in found.items() if v or k == "attention.sliding_window"}
    layers, heads, kinds = found["block_count"], found["attention.head_count"], given.get("layer_types")
    found["ssm.inner_size"] = number("linear_num_value_heads") * number("linear_value_head_dim")
    found["ssm.time_step_rank"] = number("linear_num_value_heads")
    if isinstance(kinds, list):
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
        keeps = [isinstance(kind, str) and "attention" in kind and kind != "linear_attention" for kind in kinds]
        kv = found.get("attention.head_count_kv", heads)
        found["attention.head_count_kv"] = [kv * k for k in keeps] if len(kinds) == layers else kv
    if rank := number("kv_lora_rank"):
        turning = number("qk_rope_head_dim")
        found |= {"attention.head_count_kv": 1, "attention.key_length": rank + turning, "attention.value_length": rank}
        found |= {"attention.key_length_mla": number("qk_nope_head_dim") + turning}
    kind = str(given.get("model_type", "")).removesuffix("_text").removesuffix("_moe")
    values = Values(_ARCHITECTURES.get(kind, kind), found.get)
    return values, given.get("tie_word_embeddings", config.get("tie_word_embeddings")) is True


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides its buffers.

    `kv` has each layer's elements of keys and values; (0, 0) keeps none. `state` is in bytes. `narrow` and `wide` are
    the numbers that live at once, for every token of a micro-batch, in an attention and in whatever else is widest.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    kv: tuple[tuple[int, int], ...]
    sliding: tuple[bool, ...]
    window: int
    state: int
    narrow: int
    wide: int

    @classmethod
    def of(cls, values: Values, vocabulary: int) -> Shape:
        number, name = values.number, values.architecture
        layers = max(0, number("block_count") - number("nextn_predict_layers"))
        width = number("embedding_length")
        heads = values.per_layer("attention.head_count", layers, 0 if name in WITHOUT_ATTENTION else 1)
        kv_heads = values.per_layer("attention.head_count_kv", layers, heads)
        interval = number("full_attention_interval", 4 if name in _DELTA_NETS else 1) or 1
        kv_heads = [n if (i + 1) % interval == 0 else 0 for i, n in enumerate(kv_heads)]
        most = max(heads, default=0)
        key = number("attention.key_length", width // max(1, heads[0] if heads else 0))
        value = number("attention.value_length", key)
        latent = number("attention.key_length_mla")  # DeepSeek's latent attention keeps values and keys as one
        sizes = (key, 0 if latent else value)
        narrow_sizes = number("attention.key_length_swa", key), number("attention.value_length_swa", value)
        window, sliding = _windows(values, layers)
        own = _GEMMA3N_OWN if name == "gemma3n" else layers - number("attention.shared_kv_layers")
        kv = [
            (n * k, n * v) if i < own else (0, 0)
            for i, (n, slides) in enumerate(zip(kv_heads, sliding, strict=True))
            for k, v in (narrow_sizes if slides else sizes,)
        ]
        query = 2 * most * key + max((k + v for k, v in kv), default=0)
        if latent:  # the queries as they come, by rank, and both parts put together
            query = most * (latent + 2 * key) + 2 * key
        elif number("shortconv.l_cache"):
            query = max(query, 4 * width)
        return cls(
            layers, width, most, vocabulary, tuple(kv), sliding, window, _state(values, kv_heads, width, heads),
            3 * width + query, max(_feed_forward(values, width), _recurrence(values, width)),
        )  # fmt: skip

    def cells(self, context: int) -> tuple[int, int]:
        """Tokens that the cache holds of layers that look at all of them, and of those with a window."""
        whole = round_up(context)
        return whole, min(whole, round_up(self.window + UBATCH)) if self.window else whole

    def kv_cache(self, context: int, type_k: str, type_v: str, *, flash_attention: bool = True) -> int:
        whole, window = self.cells(context)
        widest = max((value for _, value in self.kv), default=0)
        total = self.state
        for (key, value), slides in zip(self.kv, self.sliding, strict=True):
            # Without flash attention values lie transposed, and every layer's has the size of the largest.
            kept = value if flash_attention or not value else widest
            total += (row_bytes(type_k, key) + row_bytes(type_v, kept)) * (window if slides else whole)
        return total

    def compute(self, context: int, *, flash_attention: bool = True) -> int:
        """The activations that live at once in the widest part of a layer, the masks, and two rows of logits."""
        whole, window = self.cells(context)
        slides = {slides for (key, _), slides in zip(self.kv, self.sliding, strict=True) if key}
        masks = [window if s else whole for s in slides]  # one for all the layers that see the same
        if flash_attention or not masks:
            activations, mask = max(self.wide, self.narrow), 2
        else:  # every head's scores of every token, and a mask in 32 bits
            activations, mask = max(self.wide, self.narrow + self.heads * max(masks)), 4
        return min(UBATCH, whole) * (4 * activations + mask * sum(masks)) + 2 * 4 * self.vocabulary


def _feed_forward(values: Values, width: int) -> int:
    """Numbers a token: gate, up and their product beside the residual and its norm, the experts' answers in a mixture.

    The allocator puts them into the holes that the attention left, if they are small enough: found by measuring.
    """
    inner = values.most("feed_forward_length", 4 * width)
    if not values.number("expert_count"):
        return 3 * inner + (4 if inner > width else 2) * width
    used = values.most("expert_used_count", 1)
    inner = used * (values.most("expert_feed_forward_length", 0) or inner)
    answers = used * width
    return 4 * width + (3 * inner if inner > width else 0) + (answers if answers > 2 * inner else 0)


def _recurrence(values: Values, width: int) -> int:
    """Numbers a token of a layer without attention: the projections, the convolution, its results, the state."""
    inner, state, groups = (values.number(f"ssm.{key}") for key in ("inner_size", "state_size", "group_count"))
    if not inner:
        return 0
    grouped, carried = groups * state, inner * state // UBATCH
    if values.architecture in _DELTA_NETS:
        return width + max(6 * inner + 2 * grouped, inner + 3 * (inner + 2 * grouped)) + carried
    return width + 6 * inner + 6 * grouped + values.number("ssm.time_step_rank") + 2 * carried


def _state(values: Values, kv_heads: list[int], width: int, heads: list[int]) -> int:
    """Bytes of what layers without attention remember of all that went before, in 32 bits."""
    number, name = values.number, values.architecture
    dense = values.per_layer("feed_forward_length", len(kv_heads))
    layers = sum(n == 0 and not (name.startswith("nemotron_h") and ff) for n, ff in zip(kv_heads, dense, strict=True))
    if name == "falcon-h1" or name in WITHOUT_ATTENTION:
        layers = len(kv_heads)
    inner, state = number("ssm.inner_size"), number("ssm.state_size")
    shifted = max(0, number("ssm.conv_kernel", 1) - 1)
    size = shifted * (inner + 2 * number("ssm.group_count") * state) + inner * state
    size += max(0, number("shortconv.l_cache", 1) - 1) * width
    if head := number("kda.head_dim"):  # Kimi
        size = (3 * shifted + head) * head * max(heads, default=0)
    if head := number("wkv.head_size"):  # RWKV
        size = (number("token_shift_count", 2) + head) * width
    return 4 * layers * size


def row_bytes(type_name: str, elements: int) -> int:
    """Bytes of a row in a ggml type."""
    _, block, size = TENSOR_TYPES[TYPE_IDS[type_name.upper()]]
    return -(-elements // block) * size


def _windows(values: Values, layers: int) -> tuple[int, tuple[bool, ...]]:
    """How many tokens sliding layers look back at (0 where none do), and which layers those are."""
    name, key = values.architecture, "attention.sliding_window_pattern"
    period, first, default = _WINDOWS.get(name, (0, False, 0))
    window = values.number("attention.sliding_window", default)
    small_exaone = name == "exaone4" and values.number("block_count") != 64
    if name not in _WINDOWS or not window or small_exaone:
        return 0, (False,) * layers
    if isinstance(values.get(key, period), (list, tuple)):
        slides = tuple(map(bool, values.per_layer(key, layers)))
    elif period := values.number(key, period):
        slides = tuple(i % period != 0 if first else i % period < period - 1 for i in range(layers))
    else:
        slides = (True,) * layers
    return _FIXED_WINDOW.get(name, window), slides


def round_up(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS
