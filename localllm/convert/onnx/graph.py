"""A decoder's graph of ONNX Runtime's fused operators.

    ids -> embedding -> [norm -> attention (+) -> norm -> feed-forward (+)] a layer -> norm -> logits

Inputs: `input_ids` (batch, positions) and `attention_mask` (batch, positions so far) int64, and a layer's
`past_key_values.N.key` and `.value` (batch, KV heads, positions before, head). Outputs: `logits` (batch, positions,
vocabulary) and `present.N.key` and `.value`, with which past may share a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import onnx_ir as ir

from localllm.convert.onnx.builder import MICROSOFT, Builder
from localllm.convert.onnx.decoder import Decoder
from localllm.convert.onnx.rope import Tables
from localllm.convert.onnx.weights import Region, Tensor
from localllm.errors import BadModelFile

Past = tuple[ir.Value, ir.Value]


class Graph:
    """Builds the graph of `model` out of `tensors`, each of which it takes: one that is left over is an error."""

    def __init__(self, model: Decoder, tensors: Mapping[str, Tensor], tables: Mapping[int, Tables], b: Builder) -> None:
        self.m, self.b = model, b
        self._left = dict(tensors)
        self._tables = {window: self._store(table, window) for window, table in tables.items()}
        self._stretched = next((t for t in tables.values() if t.short is not None), None)

    def build(self) -> ir.Model:
        """Raises BadModelFile for a tensor that is missing, misshapen or unknown."""
        m, b = self.m, self.b
        ids = _input("input_ids", ir.DataType.INT64, ["batch", "positions"])
        mask = _input("attention_mask", ir.DataType.INT64, ["batch", "total"])
        cache: list[str | int] = ["batch", m.kv_heads, "past", m.head]
        pasts = [
            tuple(_input(f"past_key_values.{i}.{part}", b.floats, cache) for part in ("key", "value"))
            for i in range(m.layers)
        ]
        self._count(ids, mask)
        matrix = b.data.matrix(self._take("token_embd.weight", m.vocabulary, m.hidden))
        head = matrix
        if "output.weight" in self._left:
            head = b.data.matrix(self._take("output.weight", m.vocabulary, m.hidden))
        x = b.rows(ids, matrix)
        if m.is_gemma:
            x = b.op("Mul", [x, b.number(m.hidden**0.5)])
        normed = b.norm(x, self._vector("blk.0.attn_norm.weight", m.hidden), m.epsilon)
        outputs: dict[str, ir.Value] = {}
        for layer, (key, value) in enumerate(pasts):
            tensors = f"blk.{layer}."
            y, outputs[f"present.{layer}.key"], outputs[f"present.{layer}.value"] = self._attention(
                tensors, layer, normed, (key, value)
            )
            normed, x = self._join(x, y, f"{tensors}post_attention_norm.weight", f"{tensors}ffn_norm.weight")
            following = f"blk.{layer + 1}.attn_norm.weight" if layer + 1 < m.layers else "output_norm.weight"
            y = self._feed_forward(tensors, normed)
            normed, x = self._join(x, y, f"{tensors}post_ffw_norm.weight", following)
        logits = b.product(normed, head)
        if m.final_cap:
            logits = b.op("Mul", [b.op("Tanh", [b.op("Div", [logits, b.number(m.final_cap)])]), b.number(m.final_cap)])
        if self._left:
            raise _bad(f"the tensor {next(iter(self._left))!r:.80} has no place in a graph of {m.architecture!r}")
        outputs = {"logits": logits, **outputs}
        present = ["batch", m.kv_heads, "total", m.head]
        shapes = dict.fromkeys(outputs, present) | {"logits": ["batch", "positions", m.vocabulary]}
        return b.model([ids, mask, *(v for past in pasts for v in past)], outputs, m.architecture, shapes)

    # --- tensors ----------------------------------------------------------------------------------------------------

    def _take(self, name: str, *shape: int) -> Tensor:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise _bad(f"it lacks the tensor {name!r}")
        if tensor.shape != shape:
            raise _bad(f"the tensor {name!r} has the shape {tensor.shape} instead of {shape}")
        return tensor

    def _vector(self, name: str, size: int) -> Region:
        return self.b.data.vector(self._take(name, size))

    def _project(self, x: ir.Value, *parts: tuple[str, int], columns: int) -> list[ir.Value]:
        """x through some matrices, each given by its name and rows: in one product where they are of one type."""
        b = self.b
        tensors = [self._take(f"{name}.weight", rows, columns) for name, rows in parts]
        biases = [self._take(f"{name}.bias", rows) if f"{name}.bias" in self._left else None for name, rows in parts]
        groups = [slice(0, len(parts))]
        if len({t.type for t in tensors}) > 1 or len({bias is None for bias in biases}) > 1:
            groups = [slice(i, i + 1) for i in range(len(parts))]
        found = []
        for group in groups:
            present = [bias for bias in biases[group] if bias is not None]
            bias = b.data.vector(*present) if present else None
            found.append(b.product(x, b.data.matrix(*tensors[group]), bias))
        return found

    # --- parts of a layer -------------------------------------------------------------------------------------------

    def _join(self, x: ir.Value, y: ir.Value, between: str, following: str) -> tuple[ir.Value, ir.Value]:
        """Add what a part of a layer found to what went into it, and norm it for the next part."""
        m, b = self.m, self.b
        if between in self._left:
            y = b.norm(y, self._vector(between, m.hidden), m.epsilon)
        return b.add_and_norm(x, y, self._vector(following, m.hidden), m.epsilon)

    def _feed_forward(self, prefix: str, x: ir.Value) -> ir.Value:
        m, b = self.m, self.b
        if f"{prefix}ffn_gate.weight" in self._left:
            parts = [(f"{prefix}ffn_gate", m.inner), (f"{prefix}ffn_up", m.inner)]
        else:
            parts = [(f"{prefix}ffn_up", 2 * m.inner)]
        found = self._project(x, *parts, columns=m.hidden)
        if len(found) == 1:
            found = list(b.ops("Split", found, 2, axis=-1, num_outputs=2))
        gate, up = found
        gate = (
            b.op("Gelu", [gate], approximate="tanh") if m.is_gemma else b.op("QuickGelu", [gate], MICROSOFT, alpha=1.0)
        )
        (y,) = self._project(b.op("Mul", [gate, up]), (f"{prefix}ffn_down", m.hidden), columns=m.inner)
        return y

    def _attention(self, prefix: str, layer: int, x: ir.Value, past: Past) -> Sequence[ir.Value]:
        """What the layer's attention found, and its keys and values."""
        m, b = self.m, self.b
        queries, keys = m.heads * m.head, m.kv_heads * m.head
        if f"{prefix}attn_qkv.weight" in self._left:
            found = self._project(x, (f"{prefix}attn_qkv", queries + 2 * keys), columns=m.hidden)
        else:
            parts = ((f"{prefix}attn_q", queries), (f"{prefix}attn_k", keys), (f"{prefix}attn_v", keys))
            found = self._project(x, *parts, columns=m.hidden)
        if f"{prefix}attn_q_norm.weight" in self._left:
            found = self._parted(found)
            found[0] = self._norm_heads(found[0], f"{prefix}attn_q_norm.weight", m.heads)
            found[1] = self._norm_heads(found[1], f"{prefix}attn_k_norm.weight", m.kv_heads)
        window = m.windows[layer]
        inside = m.turns[layer] and m.turns_inside
        if m.turns[layer] and not inside:
            found = self._turn(found, window)
        inputs = [*found, *[None] * (3 - len(found)), *past, self._before, self._total]
        if inside:
            inputs += [*self._tables[window], *([self._positions] if self._stretched else [])]
        attributes = {"num_heads": m.heads, "kv_num_heads": m.kv_heads, "do_rotary": int(inside)}
        attributes |= {"rotary_interleaved": int(m.interleaved), "local_window_size": window}
        y, key, value = b.ops(
            "GroupQueryAttention", inputs, 3, MICROSOFT, **attributes, scale=m.scale, softcap=m.attention_cap
        )
        (y,) = self._project(y, (f"{prefix}attn_output", m.hidden), columns=queries)
        return y, key, value

    def _parted(self, found: list[ir.Value]) -> list[ir.Value]:
        """Queries, keys and values apart."""
        m, b = self.m, self.b
        sizes = [m.heads * m.head, m.kv_heads * m.head, m.kv_heads * m.head]
        return found if len(found) > 1 else list(b.ops("Split", [*found, b.constant(sizes)], 3, axis=-1))

    def _turn(self, found: list[ir.Value], window: int) -> list[ir.Value]:
        """Queries and keys turned by their positions, where their shape is none that the attention turns."""
        m, b = self.m, self.b
        query, key, value = self._parted(found)
        query, key = (
            b.op(
                "RotaryEmbedding", [x, self._positions, *self._tables[window]], MICROSOFT,
                num_heads=heads, rotary_embedding_dim=m.turning, interleaved=int(m.interleaved),
            )
            for x, heads in ((query, m.heads), (key, m.kv_heads))
        )  # fmt: skip
        return [query, key, value]

    def _norm_heads(self, x: ir.Value, name: str, heads: int) -> ir.Value:
        m, b = self.m, self.b
        parted = b.op("Reshape", [x, b.constant([0, 0, heads, m.head])])
        normed = b.norm(parted, self._vector(name, m.head), m.epsilon)
        return b.op("Reshape", [normed, b.constant([0, 0, heads * m.head])])

    # --- positions --------------------------------------------------------------------------------------------------

    def _store(self, table: Tables, window: int) -> tuple[ir.Value, ir.Value]:
        name = "" if window == -1 else ".sliding"
        cos, sin = (
            self.b.data.array(f"{which}{name}", table.shape, partial(table.rows, which)) for which in ("cos", "sin")
        )
        return self.b.stored(cos), self.b.stored(sin)

    def _count(self, ids: ir.Value, mask: ir.Value) -> None:
        """How many tokens come before the last of each text, and how many there are, as the attention wants it."""
        b = self.b
        counts = b.op("ReduceSum", [mask, b.constant([1])], keepdims=0)
        self._before = b.op("Cast", [b.op("Sub", [counts, b.constant([1])])], to=ir.DataType.INT32)
        total = b.op("Gather", [b.op("Shape", [mask]), b.constant(1)], axis=0)
        self._total = b.op("Cast", [total], to=ir.DataType.INT32)
        if self._stretched is None and self.m.turns_inside:
            return
        shape = b.op("Shape", [ids])
        first = b.op("Sub", [total, b.op("Gather", [shape, b.constant(1)], axis=0)])
        positions = b.op("Range", [first, total, b.constant(1)])
        if self._stretched is not None:
            original = b.constant(self._stretched.original)
            beyond = b.op("Cast", [b.op("Greater", [total, original])], to=ir.DataType.INT64)
            positions = b.op("Add", [positions, b.op("Mul", [beyond, original])])
        self._positions = b.op("Expand", [positions, shape])


def _input(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _bad(reason: str) -> BadModelFile:
    return BadModelFile(f"the model cannot be exported to ONNX: {reason}")
