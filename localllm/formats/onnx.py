"""Reads and checks an ONNX model: its interface, its nodes and where its tensors lie, before native code sees it.

Follows onnx.proto (github.com/onnx/onnx). Tensor data is not read: of each tensor the place is kept, in the file itself
or in one beside it. Such external data must lie in the model's own folder; a path that leads out of it, a symbolic link
(but the Hub cache's own) and a hard link are refused, because native code would read whatever they point to.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.protobuf import Buffer, Field, fields, integers, signed, text

MAX_DEPTH = 16  # of graphs inside of nodes
MAX_NODES = 1_000_000
# TensorProto's types: id -> name and bits of an element.
TYPES = {
    1: ("f32", 32), 2: ("u8", 8), 3: ("i8", 8), 4: ("u16", 16), 5: ("i16", 16), 6: ("i32", 32), 7: ("i64", 64),
    8: ("string", 0), 9: ("bool", 8), 10: ("f16", 16), 11: ("f64", 64), 12: ("u32", 32), 13: ("u64", 64),
    14: ("c64", 64), 15: ("c128", 128), 16: ("bf16", 16), 17: ("f8e4m3fn", 8), 18: ("f8e4m3fnuz", 8), 19: ("f8e5m2", 8),
    20: ("f8e5m2fnuz", 8), 21: ("u4", 4), 22: ("i4", 4), 23: ("f4e2m1", 4), 24: ("f8e8m0", 8), 25: ("u2", 2),
    26: ("i2", 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output: a number for a dimension that is known, a name (or "") for one that is not."""

    name: str
    type: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant. Its `size` bytes lie at `offset` of `file`; `file` is None where they are in the model as numbers."""

    name: str
    type: str
    shape: tuple[int, ...]
    file: Path | None
    offset: int
    size: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """`attributes` has the numbers and short texts among them."""

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Model:
    """The main graph; `external` are the files beside it that hold its tensors."""

    path: Path
    size: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]
    external: tuple[Path, ...]

    @property
    def total_size(self) -> int:
        """Bytes of the file and of the data beside it."""
        return self.size + sum(path.stat().st_size for path in self.external)

    @property
    def parameters(self) -> int:
        """Weights, each once: what is packed counts with the numbers that are in it, scales and tables do not."""
        return sum(self.weights.values())

    @property
    def kind(self) -> str:
        """The type that most of the weights have: f32, f16, bf16, i8, or q4, q8 and so on for packed ones."""
        packed = {n.inputs[1]: f"q{n.attributes.get('bits', 4)}" for n in self.nodes if n.operator == "MatMulNBits"}
        found: dict[str, int] = {}
        for name, count in self.weights.items():
            kind = packed.get(name, self.tensors[name].type)
            found[kind] = found.get(kind, 0) + count
        return max(found, key=found.__getitem__, default="unknown")

    def twice(self) -> int:
        """Weights of an embedding that stand here a second time, as the matrix of a product."""
        weights = self.weights
        looked_up = {
            weights[n.inputs[0]]: n.inputs[0]
            for n in self.nodes
            if n.operator in ("Gather", "GatherBlockQuantized") and n.inputs[0] in weights
        }
        largest = max(looked_up, default=0)
        again = [n for n, count in weights.items() if count == largest and n != looked_up.get(largest)]
        return largest if again else 0

    @property
    def weights(self) -> dict[str, int]:
        """Constants that are weights, and how many each holds; what has several names counts under the last."""
        counted = {name: t.elements for name, t in self.tensors.items() if t.type in _WEIGHTS}
        for node in self.nodes:
            packed, rest = _PACKED.get(node.operator, (None, ()))
            for position in rest:
                if position < len(node.inputs):
                    counted.pop(node.inputs[position], None)
            name = node.inputs[packed] if packed is not None and packed < len(node.inputs) else ""
            if name in counted:
                counted[name] = _unpacked(node, self.tensors[name])
        places = {(t.file, t.offset) if t.file else (None, name): name for name, t in self.tensors.items()}
        names = set(places.values())
        return {name: count for name, count in counted.items() if name in names}


_WEIGHTS = ("f32", "f16", "bf16", "f64", "u8", "i8", "u4", "i4", "u2", "i2")
# Operator -> the input whose numbers are packed (where they are), and those that are no weights.
_PACKED: dict[str, tuple[int | None, tuple[int, ...]]] = {
    "MatMulNBits": (1, (2, 3)),
    "GatherBlockQuantized": (0, (2, 3)),
    "GroupQueryAttention": (None, (7, 8)),
    "RotaryEmbedding": (None, (2, 3)),
    "DequantizeLinear": (None, (1, 2)),
    "DynamicQuantizeMatMul": (None, (2, 3)),
    "MatMulIntegerToFloat": (None, (2, 3, 4, 5)),
    "MatMulInteger": (None, (2, 3)),
}

_BINARY = {
    "MatMul", "FusedMatMul", "MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "Gather",
    "GatherBlockQuantized",
}  # fmt: skip


def _unpacked(node: Node, tensor: Tensor) -> int:
    if node.operator == "MatMulNBits":
        rows, columns = node.attributes.get("N", 0), node.attributes.get("K", 0)
        return int(rows) * int(columns) or tensor.elements
    bits = node.attributes.get("bits", 4)
    return tensor.elements * (8 // int(bits)) if tensor.type == "u8" and bits in (1, 2, 4) else tensor.elements


def read_model(path: Path) -> Model:
    """Read and check a model. Raises ModelNotFound, BadModelFile."""
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise _bad(path, "it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).model()
    except FileNotFoundError:
        raise ModelNotFound(f"no such file: {path}") from None
    except (OSError, OverflowError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}", "check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise _bad(path, str(error)) from None


def external_file(model: Path, location: str) -> Path:
    """The file beside a model that a tensor names. Raises BadModelFile where it leads out of the model's folder."""
    parts = PurePosixPath(location.replace("\\", "/")).parts
    windows = PureWindowsPath(location)
    if not parts or "\0" in location or parts[0] == "/" or windows.drive or windows.root or ".." in parts:
        raise _hostile(model, location, "which is not in its folder")
    path = model.parent.joinpath(*parts)
    try:
        status = path.lstat()
    except OSError:
        raise BadModelFile(
            f"{path}, which holds data of {model.name}, is missing", "bring it too: both belong together"
        ) from None
    folder = model.parent
    if path.is_symlink():
        # In the Hub's cache the model is a link as well, and both lead to the same folder of blobs.
        if not model.is_symlink() or path.resolve().parent != model.resolve().parent:
            raise _hostile(model, location, "which is a symbolic link")
        return path
    for above in path.parents:
        if above == folder:
            break
        if above.is_symlink():
            raise _hostile(model, location, "which lies behind a symbolic link")
    if not path.is_file():
        raise _hostile(model, location, "which is no regular file")
    if status.st_nlink > 1:
        raise _hostile(model, location, "which is a hard link", "copy it: then it is the model's own")
    return path


def _hostile(model: Path, location: str, reason: str, hint: str = "do not trust where it comes from") -> BadModelFile:
    return BadModelFile(f"{model} takes data from {location[:100]!r}, {reason}", hint)


def _bad(path: Path, reason: str) -> BadModelFile:
    return BadModelFile(f"{path} is not a sound ONNX file: {reason}")


@dataclass(slots=True)
class _Reader:
    path: Path
    data: Buffer
    external: dict[str, tuple[Path, int]] = field(default_factory=dict)
    nodes_left: int = MAX_NODES

    def model(self) -> Model:
        size = len(self.data)
        version, producer, opsets = 0, "", {}
        graphs: list[Field] = []
        for one in fields(self.data, 0, size):
            if one.number == 1 and not one.wire:
                version = one.value
            elif one.number == 2:
                producer = text(self.data, one)
            elif one.number == 7:
                graphs.append(one)
            elif one.number == 8:
                domain, opset = self._opset(one)
                opsets[domain] = opset
            elif one.number == 20:
                self._training(one)
            elif one.number == 25:
                self._function(one)
        if not version or len(graphs) != 1 or not opsets:
            raise ValueError("it has no version, no graph or no operators")
        inputs, outputs, nodes, tensors = self._graph(graphs[0])
        files = tuple(path for path, _ in self.external.values())
        given = tuple(value for value in inputs if value.name not in tensors)
        return Model(self.path, size, version, opsets, producer, given, outputs, nodes, tensors, files)

    def _opset(self, message: Field) -> tuple[str, int]:
        domain, version = "", 0
        for one in fields(self.data, message.start, message.stop):
            if one.number == 1:
                domain = text(self.data, one)
            elif one.number == 2:
                version = one.value
        return ("" if domain == "ai.onnx" else domain), version

    def _graph(
        self, message: Field
    ) -> tuple[tuple[Value, ...], tuple[Value, ...], tuple[Node, ...], dict[str, Tensor]]:
        inputs, outputs, nodes = [], [], []
        tensors: dict[str, Tensor] = {}
        for one in fields(self.data, message.start, message.stop):
            if one.number == 1:
                nodes.append(self._node(one, 0))
            elif one.number == 5:
                tensor = self._tensor(one)
                tensors[tensor.name] = tensor
            elif one.number == 11:
                inputs.append(self._value(one))
            elif one.number == 12:
                outputs.append(self._value(one))
            elif one.number == 15:
                self._sparse(one)
        return tuple(inputs), tuple(outputs), tuple(nodes), tensors

    def _node(self, message: Field, depth: int) -> Node:
        self.nodes_left -= 1
        if self.nodes_left < 0:
            raise ValueError(f"it has more than {MAX_NODES} nodes")
        found: dict[int, list[str]] = {1: [], 2: [], 4: [], 7: []}
        attributes: dict[str, int | str] = {}
        for one in fields(self.data, message.start, message.stop):
            if one.number in found:
                found[one.number].append(text(self.data, one))
            elif one.number == 5:
                name, value = self._attribute(one, depth)
                if value is not None:
                    attributes[name] = value
        operator, domain = "".join(found[4]), "".join(found[7])
        if operator in _BINARY and len(found[1]) < 2:
            raise ValueError(f"a node {operator} has {len(found[1])} inputs, and it takes two")
        if operator in _PACKED and any(isinstance(attributes.get(name), str) for name in ("N", "K", "bits")):
            raise ValueError(f"a node {operator} has text where its sizes belong")
        return Node(operator, domain, tuple(found[1]), tuple(found[2]), attributes)

    def _attribute(self, message: Field, depth: int) -> tuple[str, int | str | None]:
        name = ""
        value: int | str | None = None
        for one in fields(self.data, message.start, message.stop):
            if one.number == 1:
                name = text(self.data, one)
            elif one.number == 3 and not one.wire:
                value = signed(one.value)
            elif one.number == 4 and one.stop - one.start < 200:
                value = bytes(self.data[one.start : one.stop]).decode(errors="replace")
            elif one.number in (5, 10):
                self._tensor(one)
            elif one.number in (6, 11):
                self._inner_graph(one, depth + 1)
            elif one.number in (22, 23):
                self._sparse(one)
        return name, value

    def _inner_graph(self, message: Field, depth: int) -> None:
        """A graph inside of a node: its tensors are looked at, and no more."""
        if depth > MAX_DEPTH:
            raise ValueError(f"its graphs are nested more than {MAX_DEPTH} deep")
        for one in fields(self.data, message.start, message.stop):
            if one.number == 1:
                self._node(one, depth)
            elif one.number == 5:
                self._tensor(one)
            elif one.number == 15:
                self._sparse(one)

    def _training(self, message: Field) -> None:
        for one in fields(self.data, message.start, message.stop):
            if one.number in (1, 2):
                self._inner_graph(one, 1)

    def _function(self, message: Field) -> None:
        for one in fields(self.data, message.start, message.stop):
            if one.number == 7:
                self._node(one, 1)
            elif one.number == 11:
                self._attribute(one, 1)

    def _sparse(self, message: Field) -> None:
        for one in fields(self.data, message.start, message.stop):
            if one.number in (1, 2):
                self._tensor(one)

    def _value(self, message: Field) -> Value:
        """ValueInfoProto: name, and a type whose first field is that of a tensor."""
        name, kind = "", ""
        shape: list[int | str] = []
        for one in fields(self.data, message.start, message.stop):
            if one.number == 1:
                name = text(self.data, one)
            elif one.number == 2:
                for tensor in self._inside(one, 1):
                    for part in fields(self.data, tensor.start, tensor.stop):
                        if part.number == 1:
                            kind = TYPES.get(part.value, ("unknown", 0))[0]
                        elif part.number == 2:
                            shape = [self._dimension(d) for d in self._inside(part, 1)]
        return Value(name, kind, tuple(shape))

    def _inside(self, message: Field, number: int) -> Iterator[Field]:
        return (one for one in fields(self.data, message.start, message.stop) if one.number == number)

    def _dimension(self, message: Field) -> int | str:
        for one in fields(self.data, message.start, message.stop):
            if one.number == 1 and signed(one.value) >= 0:
                return one.value
            if one.number == 2:
                return text(self.data, one)
        return ""

    def _tensor(self, message: Field) -> Tensor:
        name, kind, where = "", 0, 0
        shape: list[int] = []
        inside: Field | None = None
        entries: dict[str, str] = {}
        for one in fields(self.data, message.start, message.stop):
            if one.number == 1:
                shape += integers(self.data, one)
            elif one.number == 2:
                kind = one.value
            elif one.number == 8:
                name = text(self.data, one)
            elif one.number == 9:
                inside = one
            elif one.number == 13:
                entries.update([self._entry(one)])
            elif one.number == 14:
                where = one.value
        if kind not in TYPES or any(not 0 <= n < 1 << 40 for n in shape) or len(shape) > 64:
            raise ValueError(f"the tensor {name[:80]!r} has a type or a shape that is none")
        type_name, bits = TYPES[kind]
        size = -(-math.prod(shape) * bits // 8)
        if where or entries:
            return self._outside(name, type_name, tuple(shape), size, entries)
        if inside is None:
            return Tensor(name, type_name, tuple(shape), None, 0, size)
        if bits and inside.stop - inside.start != size:
            raise ValueError(f"the tensor {name[:80]!r} has {inside.stop - inside.start} bytes, and its shape {size}")
        return Tensor(name, type_name, tuple(shape), self.path, inside.start, size)

    def _entry(self, message: Field) -> tuple[str, str]:
        found = {one.number: text(self.data, one) for one in fields(self.data, message.start, message.stop)}
        return found.get(1, ""), found.get(2, "")

    def _outside(self, name: str, kind: str, shape: tuple[int, ...], size: int, entries: dict[str, str]) -> Tensor:
        location = entries.get("location", "")
        if location not in self.external:
            path = external_file(self.path, location)
            self.external[location] = path, path.stat().st_size
        path, there = self.external[location]
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        except ValueError:
            raise ValueError(f"the tensor {name[:80]!r} lies where no place is") from None
        if length != size or offset < 0 or offset + length > there:
            raise ValueError(
                f"the tensor {name[:80]!r} has {length} bytes at {offset} of {path.name}, which has {there}; "
                f"its shape takes {size}"
            )
        return Tensor(name, kind, shape, path, offset, size)
