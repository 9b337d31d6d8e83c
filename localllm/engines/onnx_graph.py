"""What a decoder's ONNX graph takes and gives: which input is what, and how its cache of keys and values is passed on.

Pure. Names are read from the graph, or from genai_config.json where there is one; nothing is assumed that the graph
does not show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localllm.errors import BadModelFile
from localllm.formats.onnx import Model, Node, Value

_IDS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_BRANCH = "use_cache_branch"
_KEEP = ("num_logits_to_keep", "logits_to_keep")
_ENCODER_TYPES = {"token_type_ids"}
_FLOATS = ("f32", "f16", "bf16")
_INTEGERS = ("i64", "i32")
_MOST_TOKENS = 1 << 24  # of a vocabulary; the largest have 262,144


@dataclass(frozen=True, slots=True)
class Cache:
    """An input that takes what an output gave the step before.

    `shape` is for one sequence, with 0 at `axis`, the dimension that grows with each token; a state that does not grow
    (of a convolution, of a linear attention) has none. `shared` caches may be one buffer, written in place.
    """

    past: str
    present: str
    type: str
    shape: tuple[int, ...]
    axis: int | None
    shared: bool


@dataclass(frozen=True, slots=True)
class Interface:
    """The names and types of inputs and outputs, None where there is no such input.

    `vocabulary_size` is 0 where the graph does not tell; `longest` is the most tokens that its tables of rotary
    embeddings have room for, 0 without such tables.
    """

    ids: Value
    mask: Value | None
    positions: Value | None
    branch: str | None
    keep: Value | None
    caches: tuple[Cache, ...]
    logits: Value
    vocabulary_size: int
    longest: int

    @property
    def shared(self) -> bool:
        """Whether every cache is written in place, so that a step copies none of them."""
        return bool(self.caches) and all(cache.shared for cache in self.caches)

    @property
    def sliceable(self) -> bool:
        """Whether the caches can be cut back to any number of tokens."""
        return bool(self.caches) and all(cache.axis is not None for cache in self.caches)


def interface(model: Model, config: Mapping[str, Any], genai: Mapping[str, Any]) -> Interface:
    """Raises BadModelFile where the graph is no decoder of text, with the way out."""
    inputs, outputs = {v.name: v for v in model.inputs}, {v.name: v for v in model.outputs}
    names = _names(genai)
    ids, logits = inputs.get(names.get("input_ids", _IDS)), outputs.get(names.get("logits", "logits"))
    _require_decoder(model, inputs, outputs, ids, logits)
    assert ids is not None and logits is not None
    caches = find_caches(model, config, genai)
    known = {
        "mask": inputs.get(names.get("attention_mask", _MASK)),
        "positions": inputs.get(names.get("position_ids", _POSITIONS)),
        "branch": inputs.get(_BRANCH),
        "keep": next((inputs[name] for name in _KEEP if name in inputs), None),
    }
    used = {ids.name, *(v.name for v in known.values() if v), *(cache.past for cache in caches)}
    if unknown := sorted(set(inputs) - used):
        raise BadModelFile(
            f"{model.path} wants {', '.join(unknown)}, which no text gives it",
            "name a decoder with input_ids and logits",
        )
    for value in (ids, known["mask"], known["positions"]):
        if value is not None and (value.type not in _INTEGERS or len(value.shape) != 2):
            raise BadModelFile(f"{model.path}: its input {value.name} is not two-dimensional, of whole numbers")
    if logits.type not in _FLOATS or len(logits.shape) != 3:
        raise BadModelFile(f"{model.path}: its logits are not (batch, positions, vocabulary)")
    branch = known["branch"]
    size = logits.shape[2]
    if isinstance(size, int) and size > _MOST_TOKENS:
        raise BadModelFile(f"{model.path}: its logits are of {size:,} tokens, and no vocabulary has so many")
    return Interface(
        ids, known["mask"], known["positions"], branch.name if branch else None, known["keep"], caches, logits,
        size if isinstance(size, int) else _number(config, "vocab_size"), _table_length(model),
    )  # fmt: skip


def _names(genai: Mapping[str, Any]) -> dict[str, str]:
    decoder = _decoder(genai)
    tables = [decoder.get("inputs"), decoder.get("outputs")]
    return {k: v for table in tables if isinstance(table, dict) for k, v in table.items() if isinstance(v, str)}


def _decoder(genai: Mapping[str, Any]) -> dict[str, Any]:
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    return decoder if isinstance(decoder, dict) else {}


def _require_decoder(
    model: Model, inputs: Mapping[str, Value], outputs: Mapping[str, Value], ids: Value | None, logits: Value | None
) -> None:
    past = any(is_past(name) for name in inputs)
    hidden = {"last_hidden_state", "sentence_embedding", "token_embeddings", "pooler_output"} & set(outputs)
    if ids is not None and logits is None and hidden:
        raise BadModelFile(f"{model.path} is an encoder: it makes embeddings", "localllm embed uses it")
    if logits is not None and not past and (set(inputs) & _ENCODER_TYPES or _looks_masked(model)):
        raise BadModelFile(
            f"{model.path} is a masked language model: it fills gaps and continues nothing",
            "localllm fill-mask uses it",
        )
    if "encoder_hidden_states" in inputs or "inputs_embeds" in inputs:
        raise BadModelFile(f"{model.path} is one part of a model in several", "name a model that is one decoder")
    if ids is None or logits is None:
        raise BadModelFile(
            f"{model.path} is no decoder of text: it takes {_some(inputs)} and gives {_some(outputs)}",
            "name a model with input_ids and logits",
        )


def _looks_masked(model: Model) -> bool:
    """Whether nothing in the graph keeps a position from those after it; ONNX Runtime's own attention for encoders."""
    return any(node.operator == "Attention" and not node.attributes.get("unidirectional") for node in model.nodes)


def _some(names: Mapping[str, Value]) -> str:
    found = ", ".join(list(names)[:3]) or "nothing"
    return found + (", ..." if len(names) > 3 else "")


# The caches


def find_caches(model: Model, config: Mapping[str, Any], genai: Mapping[str, Any]) -> tuple[Cache, ...]:
    """The inputs that take what an output gave the step before. Raises BadModelFile."""
    pasts = sorted((v for v in model.inputs if is_past(v.name)), key=lambda v: _place(v.name))
    presents = sorted((v for v in model.outputs if _is_present(v.name)), key=lambda v: _place(v.name))
    if len(pasts) != len(presents):
        raise BadModelFile(f"{model.path} takes {len(pasts)} caches and gives {len(presents)}")
    pairs = list(zip(pasts, presents, strict=True))
    if any(_place(a.name) != _place(b.name) or a.type != b.type for a, b in pairs):
        raise BadModelFile(f"{model.path}: which of its outputs is which input's next value cannot be told")
    in_place = _in_place(model)
    fallback = _head_shape(model, config, genai)
    return tuple(_cache(model, a, b, fallback, shared=in_place.get(a.name) == b.name) for a, b in pairs)


def is_past(name: str) -> bool:
    return name.startswith(("past", "cache_", "conv_state", "recurrent_state"))


def _is_present(name: str) -> bool:
    return name.startswith(("present", "new_cache", "out_cache"))


def _place(name: str) -> tuple[tuple[int, ...], str]:
    """What is left of a cache's name without the words that make it one: numbers, then letters."""
    rest = re.sub(r"^(past_key_values|present_key_values|past|present)", "", name.lower())
    return tuple(map(int, re.findall(r"\d+", rest))), re.sub(r"[\d._]+", "", rest)


def _in_place(model: Model) -> dict[str, str]:
    """Past -> present of the attention nodes that accept one buffer for both."""
    found: dict[str, str] = {}
    for node in model.nodes:
        if node.operator == "GroupQueryAttention" and len(node.inputs) > 4 and len(node.outputs) > 2:
            found |= dict(zip(node.inputs[3:5], node.outputs[1:3], strict=True))
    return found


def _cache(model: Model, past: Value, present: Value, fallback: tuple[int, int], *, shared: bool) -> Cache:
    if past.type not in _FLOATS:
        raise BadModelFile(f"{model.path}: its cache {past.name} is of {past.type}", "take another quantization")
    if all(isinstance(n, int) for n in past.shape[1:]):  # a state
        return Cache(past.name, present.name, past.type, (1, *(int(n) for n in past.shape[1:])), None, False)
    if len(past.shape) != 4:
        raise BadModelFile(f"{model.path}: its cache {past.name} has {len(past.shape)} dimensions, and 4 are known")
    grows = 2 if not isinstance(past.shape[2], int) else 1 if not isinstance(past.shape[1], int) else 3
    heads = past.shape[1] if isinstance(past.shape[1], int) else fallback[0]
    width = past.shape[3] if isinstance(past.shape[3], int) else fallback[1]
    if grows != 2 or not heads or not width:
        raise BadModelFile(
            f"{model.path}: the shape of its cache {past.name} cannot be told", "keep config.json beside the model"
        )
    return Cache(past.name, present.name, past.type, (1, heads, 0, width), 2, shared)


def _head_shape(model: Model, config: Mapping[str, Any], genai: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of the cache and their width, by the configurations or the attention nodes; 0 where nothing tells."""
    decoder = _decoder(genai)
    heads = _number(decoder, "num_key_value_heads") or _number(config, "num_key_value_heads")
    width = _number(decoder, "head_size") or _number(config, "head_dim")
    queries = _number(config, "num_attention_heads") or _number(config, "n_head")
    if not width and queries:
        width = (_number(config, "hidden_size") or _number(config, "n_embd")) // queries
    for node in model.nodes:
        if node.operator == "GroupQueryAttention":
            attribute = node.attributes.get("kv_num_heads", 0)
            heads = heads or (attribute if isinstance(attribute, int) else 0)
            width = width or 2 * _table_of(model, node)[1]
            break
    return heads or queries, width


def _table_length(model: Model) -> int:
    """Rows of the tables of cosines that attention looks its positions up in."""
    rows = [_table_of(model, node)[0] for node in model.nodes if node.operator == "GroupQueryAttention"]
    return min(filter(None, rows), default=0)


def _table_of(model: Model, node: Node) -> tuple[int, int]:
    """Rows and columns of an attention's table of cosines, (0, 0) where it has none. Raises BadModelFile."""
    table = model.tensors.get(node.inputs[7]) if len(node.inputs) > 7 else None
    if table is None:
        return 0, 0
    if len(table.shape) != 2:
        raise BadModelFile(f"{model.path}: its table {table.name[:80]!r} of rotary embeddings has not two dimensions")
    return table.shape[0], table.shape[1]


def _number(table: Mapping[str, Any], key: str) -> int:
    value = table.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else 0
