"""An ONNX model edited in memory: logits of the last position only, data where they really lie.

A prompt of 512 tokens wants one row of logits, and the product with the vocabulary's matrix is a fifth of the work of a
small model. A Gather of the last position goes before that product, or before all that works on each position by itself
since the last attention; the rest stays byte for byte what it is. Constants inside of the file are named as external
data of the file itself, so that they are mapped and not copied, whatever their size. In the Hub's cache files are links
to others, which ONNX Runtime refuses: there the others are named.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localllm.formats.onnx import Model, Node, external_file
from localllm.formats.protobuf import Buffer, Field, encoded, fields, text

_GRAPH, _NODES, _CONSTANTS, _OUTPUTS = 7, 1, 5, 12
_PRODUCTS = {"MatMul", "FusedMatMul", "MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_SINGLE = {"Cast", "Mul", "Div", "Add", "Tanh", "Identity", "Clip", "Where", "FusedMatMulActivation"}
# Operators that work on each position by itself, where the axis that they name is the last. What they take and give has
# three dimensions, as the logits have, and the position is the second.
_ALONE = {
    "MatMul", "FusedMatMul", "MatMulNBits", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization", "Mul",
    "Sigmoid", "SimplifiedLayerNormalization", "QuickGelu", "Gelu", "FastGelu", "Add", "Split", "AveragePool",
}  # fmt: skip
_WIDE = {"GroupQueryAttention", "MultiHeadAttention", "Attention", *_ALONE}
_SMALL = 1024  # bytes of a constant that stays inside
_LAST, _PICKED = "localllm/last", "localllm/last/"
_INT32, _INT64 = 6, 7


@dataclass(frozen=True, slots=True)
class Edited:
    """A model's bytes, the folder in which its data lie, and whether its logits are those of the last position only."""

    data: bytes
    folder: Path
    last_only: bool


def edited(model: Model, logits: str | None) -> Edited | None:
    """The model with `logits` (where they are named) for the last position only; None where the file is right as it is.

    A graph that works on all positions together behind its product with the vocabulary keeps them all.
    """
    product = _product(model, logits) if logits else None
    if product is None and not model.path.is_symlink():
        return None
    tail = _tail(model, product) if product else None
    with model.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parts = []
        for one in fields(data, 0, len(data)):
            if one.number == _GRAPH:
                parts.append(encoded(_GRAPH, b"".join(_graph(data, one, model, tail, logits or ""))))
            else:
                parts.append(data[one.begin : one.stop])
        return Edited(b"".join(parts), model.path.resolve().parent, product is not None)


def _product(model: Model, logits: str) -> Node | None:
    """The product with the vocabulary's matrix, of (batch, positions, width), reached from the logits backwards.

    Only operators that work on each position by itself may lie between.
    """
    makers = {output: node for node in model.nodes for output in node.outputs if output}
    users: dict[str, int] = {}
    for node in model.nodes:
        for name in set(node.inputs):
            users[name] = users.get(name, 0) + 1
    name = logits
    constants = set(model.tensors) | {o for n in model.nodes if n.operator == "Constant" for o in n.outputs}
    seen: set[str] = set()
    while name in makers and name not in seen:  # a graph that goes in a circle is refused by whoever loads it
        seen.add(name)
        node = makers[name]
        if node.operator in _PRODUCTS:
            weights = node.inputs[1] in constants and not node.attributes.get("transA")
            return node if weights else None
        inputs = [i for i in node.inputs if i and i not in constants and not _is_scale(makers.get(i))]
        if node.operator not in _SINGLE or len(inputs) != 1 or users.get(name, 0) > (name != logits):
            return None
        name = inputs[0]
    return None


@dataclass(slots=True)
class _Tail:
    """Nodes that need see the last position only, by their outputs, and the values that come into them from before.

    `missing` are those of these values of which the last position has not been taken yet.
    """

    nodes: set[tuple[str, ...]]
    missing: set[str]
    picked: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.picked = frozenset(self.missing)


def _tail(model: Model, product: Node) -> _Tail:
    """The nodes between the last attention and the logits, as far as they are known to work on each position alone."""
    constants = set(model.tensors) | {o for n in model.nodes if n.operator == "Constant" for o in n.outputs}
    makers = {output: node for node in model.nodes for output in node.outputs if output}
    left_out: set[tuple[str, ...]] = set()
    while True:
        inside = _ending(model, product, constants, left_out)
        own = {output for node in inside for output in node.outputs}
        coming = {node.outputs: {n for n in _rows(node) if n and n not in constants} - own for node in inside}
        unclear = {
            outputs
            for outputs, names in coming.items()
            if outputs != product.outputs and any(n not in makers or makers[n].operator not in _WIDE for n in names)
        }
        if not unclear:
            return _Tail(set(coming), set().union(*coming.values()))
        left_out |= unclear


def _ending(model: Model, product: Node, constants: set[str], left_out: set[tuple[str, ...]]) -> list[Node]:
    """The product, and the nodes before it that nothing but these nodes needs."""
    results = {value.name for value in model.outputs}
    users: dict[str, set[tuple[str, ...]]] = {}
    for node in model.nodes:
        for name in node.inputs:
            users.setdefault(name, set()).add(node.outputs)
    inside = {product.outputs: product}
    for node in reversed(model.nodes):  # a node stands behind those that make its inputs
        used = {user for output in node.outputs if output for user in users.get(output, ())}
        if (
            node.operator in _ALONE
            and used
            and used <= inside.keys() - left_out
            and node.outputs not in left_out
            and not results & set(node.outputs)
            and _is_alone(node, constants)
        ):
            inside[node.outputs] = node
    return list(inside.values())


def _is_alone(node: Node, constants: set[str]) -> bool:
    axis = node.attributes.get("axis", 0 if node.operator == "Split" else -1)
    weights = node.inputs[1:] if node.operator in _PRODUCTS else ()
    turned = node.attributes.get("transA") or node.attributes.get("transBatchA")
    return axis in (-1, 2) and not turned and all(not name or name in constants for name in weights)


def _rows(node: Node) -> tuple[str, ...]:
    """The inputs of a node that have positions, among them constants."""
    return node.inputs[:1] if node.operator in _PRODUCTS else node.inputs


def _is_scale(node: Node | None) -> bool:
    """Whether a value is the scale that belongs to numbers quantized at run time."""
    return node is not None and node.operator == "Mul" and "scale" in " ".join((*node.inputs, *node.outputs)).lower()


def _graph(data: Buffer, graph: Field, model: Model, tail: _Tail | None, logits: str) -> Iterator[bytes]:
    for one in fields(data, graph.start, graph.stop):
        if one.number == _CONSTANTS:
            yield _outside(data, one, model)
        elif tail is None:
            yield data[one.begin : one.stop]
        elif one.number == _NODES and _outputs(data, one) in tail.nodes:
            yield from _of_tail(data, one, tail)
        elif one.number == _OUTPUTS and _name(data, one) == logits:
            yield encoded(_OUTPUTS, b"".join(_without_shape(data, one)))
        elif one.number != 13:  # what the file says of shapes between is found again
            yield data[one.begin : one.stop]
    if tail is None:
        return
    last = encoded(1, 1) + encoded(2, _INT64) + encoded(8, _LAST) + encoded(9, (2**64 - 1).to_bytes(8, "little"))
    yield encoded(_CONSTANTS, last)


def _of_tail(data: Buffer, node: Field, tail: _Tail) -> Iterator[bytes]:
    """A node that sees the last position only, behind the Gathers that take it where none has yet."""
    parts = []
    for one in fields(data, node.start, node.stop):
        name = text(data, one) if one.number == 1 else ""
        parts.append(encoded(1, _PICKED + name) if name in tail.picked else data[one.begin : one.stop])
        if name in tail.missing:
            tail.missing.remove(name)
            gather = encoded(1, name) + encoded(1, _LAST) + encoded(2, _PICKED + name) + encoded(4, "Gather")
            gather += encoded(3, _PICKED + name) + encoded(5, encoded(1, "axis") + encoded(3, 1) + encoded(20, 2))
            yield encoded(_NODES, gather)
    yield encoded(_NODES, b"".join(parts))


def _without_shape(data: Buffer, value: Field) -> Iterator[bytes]:
    """A ValueInfoProto whose tensor's type says nothing of its dimensions."""
    for one in fields(data, value.start, value.stop):
        if one.number != 2:
            yield data[one.begin : one.stop]
            continue
        kinds = b""
        for tensor in fields(data, one.start, one.stop):
            kept = [data[p.begin : p.stop] for p in fields(data, tensor.start, tensor.stop) if p.number != 2]
            kinds += encoded(tensor.number, b"".join(kept))
        yield encoded(2, kinds)


def _outside(data: Buffer, constant: Field, model: Model) -> bytes:
    """A constant, its data named as a part of the model's file where they are large, and by their real file's name."""
    kept, inside, kind = [], None, 0
    for one in fields(data, constant.start, constant.stop):
        kind = one.value if one.number == 2 else kind
        if one.number == 9 and one.stop - one.start >= _SMALL:
            inside = one
        elif one.number == 13:
            kept.append(encoded(13, _entry(data, one, model)))
        elif one.number != 14 or one.value:
            kept.append(data[one.begin : one.stop])
    if inside is not None and kind in (_INT32, _INT64):  # shapes are worked out from them
        kept.append(data[inside.begin : inside.stop])
    elif inside is not None:
        place = {"location": model.path.resolve().name, "offset": inside.start, "length": inside.stop - inside.start}
        kept += [encoded(13, encoded(1, key) + encoded(2, str(value))) for key, value in place.items()]
        kept.append(encoded(14, 1))
    return encoded(_CONSTANTS, b"".join(kept))


def _entry(data: Buffer, entry: Field, model: Model) -> bytes:
    """Where external data lie, a link's target in its place."""
    found = {one.number: text(data, one) for one in fields(data, entry.start, entry.stop)}
    value = found.get(2, "")
    if found.get(1) == "location" and model.path.is_symlink():
        value = external_file(model.path, value).resolve().name
    return encoded(1, found.get(1, "")) + encoded(2, value)


def _outputs(data: Buffer, node: Field) -> tuple[str, ...]:
    return tuple(text(data, one) for one in fields(data, node.start, node.stop) if one.number == 2)


def _name(data: Buffer, value: Field) -> str:
    return next((text(data, one) for one in fields(data, value.start, value.stop) if one.number == 1), "")
