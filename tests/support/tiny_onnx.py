"""Decoders of a few thousand weights as ONNX, in the three layouts that people have, with tokenizer and configuration.

Weights are drawn with a fixed seed; letters are made likelier than other bytes, and special tokens are never chosen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper

Layout = Literal["optimum", "genai", "own"]
WIDTH, HEADS, KV_HEADS, HEAD, LAYERS, CONTEXT = 32, 2, 1, 16, 2, 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MICROSOFT = "com.microsoft"
_KINDS = {"f32": (TensorProto.FLOAT, np.float32), "f16": (TensorProto.FLOAT16, np.float16)}


class Graph:
    """Collects nodes and constants; every call returns the name of what it made."""

    def __init__(self, kind: str) -> None:
        self.onnx_type, self.numpy_type = _KINDS[kind]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._draw = np.random.RandomState(7)

    def constant(self, values: np.ndarray, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, *shape: int) -> str:
        values = self._draw.standard_normal(shape) / np.sqrt(shape[0])
        return self.constant(values.astype(self.numpy_type), f"weight_{len(self.constants)}")

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(
        self, operator: str, *inputs: str, gives: tuple[str, ...] = (), domain: str = "", **attributes: object
    ) -> str:
        outputs = list(gives) or [f"value_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, domain=domain, **attributes))
        return outputs[0]

    def value(self, name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(shape))


def write(
    folder: Path,
    layout: Layout,
    *,
    positions: bool = False,
    kind: str = "f32",
    opset: int = 17,
    data: bool | None = None,
    name: str = "model.onnx",
) -> Path:
    """Write a model and what belongs to it; returns the model's path. `data` puts weights into a file beside it."""
    graph = Graph(kind)
    _body(graph, layout, positions=positions)
    inputs, outputs = _interface(graph, layout, positions=positions)
    made = helper.make_graph(graph.nodes, "tiny", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(_MICROSOFT, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8, producer_name="tests")
    path = folder / "onnx" / name if layout == "optimum" else folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "own" if data is None else data:
        onnx.save(model, path, save_as_external_data=True, location=name + ".data", size_threshold=1024)
    else:
        onnx.save(model, path)
    write_companions(folder, layout, positions=positions)
    return path


def write_companions(folder: Path, layout: Layout, *, positions: bool = False) -> None:
    write_tokenizer(folder)
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    if layout == "optimum":
        settings["chat_template"] = TEMPLATE
    else:
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "num_hidden_layers": LAYERS, "max_position_embeddings": CONTEXT,
        "eos_token_id": VOCABULARY - 1,
    }  # fmt: skip
    if layout != "genai":
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if layout != "optimum":
        (folder / "genai_config.json").write_text(json.dumps(_genai(positions=positions)), encoding="utf-8")


def _genai(*, positions: bool) -> dict[str, object]:
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    names |= {"position_ids": "position_ids"} if positions else {}
    names |= {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    decoder = {
        "filename": "model.onnx", "head_size": HEAD, "hidden_size": WIDTH, "inputs": names,
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS,
    }  # fmt: skip
    model = {
        "type": "llama", "decoder": decoder, "context_length": CONTEXT, "vocab_size": VOCABULARY,
        "eos_token_id": [VOCABULARY - 1, VOCABULARY - 3],
    }  # fmt: skip
    return {"model": model, "search": {"max_length": CONTEXT}}


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE without merges: a token a byte, and the special ones."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    made = tokenizers.Tokenizer(bpe)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in SPECIAL])
    made.save(str(folder / "tokenizer.json"))


def _interface(
    graph: Graph, layout: Layout, *, positions: bool
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    value, whole = graph.value, TensorProto.INT64
    inputs = [value("input_ids", whole, "batch", "sequence"), value("attention_mask", whole, "batch", "total")]
    inputs += [value("position_ids", whole, "batch", "sequence")] if positions else []
    outputs = [value("logits", graph.onnx_type, "batch", "sequence", VOCABULARY)]
    width: int | str = "kv_cache_dim" if layout == "genai" else HEAD
    for layer in range(LAYERS):
        for part in ("key", "value"):
            past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            inputs.append(value(past, graph.onnx_type, "batch", KV_HEADS, "past_sequence", width))
            outputs.append(value(present, graph.onnx_type, "batch", KV_HEADS, "total_sequence", width))
    return inputs, outputs


def _body(graph: Graph, layout: Layout, *, positions: bool) -> None:
    hidden = graph.add("Gather", graph.weight(VOCABULARY, WIDTH), "input_ids")
    place = _positions(graph, layout, positions=positions)
    if layout == "optimum":
        hidden = graph.add("Add", hidden, graph.add("Gather", graph.weight(CONTEXT, WIDTH), place))
    attend = _plain_attention if layout == "optimum" else _fused_attention
    for layer in range(LAYERS):
        made = attend(graph, hidden, layer, place)
        hidden = graph.add("Add", hidden, graph.add("MatMul", made, graph.weight(WIDTH, WIDTH)))
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bias = np.array([4.0 * (c.isascii() and c.islower()) for c in alphabet] + [-50.0] * len(SPECIAL))
    scores = graph.add("MatMul", hidden, graph.weight(WIDTH, VOCABULARY))
    graph.add("Add", scores, graph.constant(bias.astype(graph.numpy_type)), gives=("logits",))


def _positions(graph: Graph, layout: Layout, *, positions: bool) -> str:
    """position_ids, or in a plain graph what can be known without: the tokens before, counted in the cache."""
    if positions:
        return "position_ids"
    if layout != "optimum":
        return ""
    past = graph.add("Shape", "past_key_values.0.key", start=2, end=3)
    total = graph.add("Add", past, graph.add("Shape", "input_ids", start=1, end=2))
    one = graph.constant(np.array(1, np.int64))
    first, last = (graph.add("Squeeze", n, graph.integers(0)) for n in (past, total))
    return graph.add("Unsqueeze", graph.add("Range", first, last, one), graph.integers(0))


def _plain_attention(graph: Graph, hidden: str, layer: int, place: str) -> str:
    """Attention in the operators of the standard, the cache grown by Concat."""

    def heads(count: int) -> str:
        flat = graph.add("MatMul", hidden, graph.weight(WIDTH, count * HEAD))
        return graph.add("Transpose", graph.add("Reshape", flat, graph.integers(0, -1, count, HEAD)), perm=[0, 2, 1, 3])

    query = heads(HEADS)
    keys, values = (
        graph.add(
            "Concat", f"past_key_values.{layer}.{part}", heads(KV_HEADS), gives=(f"present.{layer}.{part}",), axis=2
        )
        for part in ("key", "value")
    )
    scores = graph.add("MatMul", query, graph.add("Transpose", keys, perm=[0, 1, 3, 2]))
    total = graph.add("Squeeze", graph.add("Shape", keys, start=2, end=3), graph.integers(0))
    zero, one = (graph.constant(np.array(n, np.int64)) for n in (0, 1))
    seen = graph.add(
        "LessOrEqual", graph.add("Range", zero, total, one), graph.add("Unsqueeze", place, graph.integers(1, 3))
    )
    least = graph.constant(np.array(-1e4, graph.numpy_type))
    weights = graph.add("Softmax", graph.add("Where", seen, scores, least), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, values), perm=[0, 2, 1, 3])
    return graph.add("Reshape", mixed, graph.integers(0, -1, WIDTH))


def _fused_attention(graph: Graph, hidden: str, layer: int, place: str) -> str:
    """GroupQueryAttention with the rotary embedding inside, or before it where there are position_ids."""
    angles = np.arange(CONTEXT)[:, None] / 10000 ** (np.arange(0, HEAD, 2) / HEAD)
    tables = [graph.constant(f(angles).astype(graph.numpy_type)) for f in (np.cos, np.sin)]
    query, key, value = (
        graph.add("MatMul", hidden, graph.weight(WIDTH, n * HEAD)) for n in (HEADS, KV_HEADS, KV_HEADS)
    )
    if place:
        query, key = (
            graph.add("RotaryEmbedding", x, place, *tables, domain=_MICROSOFT, num_heads=n)
            for x, n in ((query, HEADS), (key, KV_HEADS))
        )
    one, narrow = graph.integers(1), TensorProto.INT32
    lengths = graph.add("Sub", graph.add("ReduceSum", "attention_mask", one, keepdims=0), one)
    total = graph.add("Squeeze", graph.add("Shape", "attention_mask", start=1, end=2), graph.integers(0))
    counts = [graph.add("Cast", n, to=narrow) for n in (lengths, total)]
    pasts, presents = ([f"{n}.{layer}.{part}" for part in ("key", "value")] for n in ("past_key_values", "present"))
    return graph.add(
        "GroupQueryAttention", query, key, value, *pasts, *counts, *([] if place else tables),
        gives=(f"attention_{layer}", *presents), domain=_MICROSOFT, num_heads=HEADS, kv_num_heads=KV_HEADS,
        do_rotary=int(not place),
    )  # fmt: skip
