"""An ONNX model -> the same with its matrices in 4 or 8 bits, by ONNX Runtime's own quantizer.

The constant matrices of MatMul become MatMulNBits in blocks of 32 along the input; embeddings that are gathered stay
as they are, as in the models that Optimum and transformers.js ship. The model is read whole, so it has to fit into the
memory. The target appears whole or not at all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm import hardware
from localllm.errors import BadModelFile, OutOfMemory, UsageError
from localllm.formats.onnx import TYPES, external_file, read_model
from localllm.whole import replacing

Report = Callable[[int, int], None]

BITS = {"q4": 4, "q8": 8}
_BLOCK = 32
_INT8 = 4  # the accuracy level at which activations are computed with in 8 bits, as llama.cpp does
_LARGEST = 1_900_000_000  # bytes of data in a file: protobuf reads 2 GiB, nodes and all; beyond, they lie beside it
_ALIGNMENT = 64
_SMALL = 1024  # bytes of a tensor that stays in the file all the same


@dataclass(frozen=True, slots=True)
class Quantized:
    """How many of a model's MatMul have a constant matrix and were quantized, and bytes before and after."""

    matrices: int
    before: int
    after: int


def find_kind(name: str) -> str:
    """A type by its name, in capitals or not. Raises UsageError."""
    if name.lower() not in BITS:
        raise UsageError(f"{name!r} is not a type for an ONNX model", f"the types are {', '.join(BITS)}")
    return name.lower()


def quantize(source: Path, sizes: int, target: Path, kind: str, report: Report, largest: int = _LARGEST) -> Quantized:
    """Write `source`, whose files have `sizes` bytes together, with matrices of `kind`; `report` counts MatMul.

    A model with more than `largest` bytes of data gets a file `<target>_data` beside it.
    Raises BadModelFile, OutOfMemory, OSError.
    """
    free = hardware.memory().available
    if 2 * sizes > free:  # what is read, and what is made of it
        raise OutOfMemory(
            f"{source.name} has {sizes >> 20} MiB and quantizing it takes twice that; {free >> 20} MiB are free",
            "convert the original checkpoint instead: localllm convert SRC --to onnx --quant " + kind,
        )
    model, count = _quantized(source, kind, report)
    if not count:
        raise BadModelFile(f"{source} has no matrices that could be quantized", "is it quantized already?")
    after = 0
    with replacing(target) as beside:
        # The sum, because protobuf cannot even tell the size of a message beyond 2 GiB.
        if sum(len(t.raw_data) for graph in _graphs(model.graph) for t in graph.initializer) > largest:
            # The data have their name before the model that needs them.
            with replacing(data_of(target)) as data:
                _move_data(model, data, data_of(target).name)
                target.unlink(missing_ok=True)  # an older model must never find the new data
            after = data_of(target).stat().st_size
        beside.write_bytes(model.SerializeToString())
        after += beside.stat().st_size
    return Quantized(count, sizes, after)


def size_of(source: Path) -> int:
    """Bytes of a model's files together, which are checked as for a run. Raises ModelNotFound, BadModelFile."""
    return read_model(source).total_size


def data_of(target: Path) -> Path:
    """Where the data of a model lie that is too large for one file."""
    return target.with_name(target.name + "_data")


def _quantized(source: Path, kind: str, report: Report) -> tuple[Any, int]:
    """The quantized ModelProto, and how many matrices were."""
    quantization = _quantizers()
    model = _read(source)
    for graph in _graphs(model.graph):
        _unfuse(graph)
    _require_numbers(model, source)
    quantizer = quantization.MatMulNBitsQuantizer(
        model, BITS[kind], _BLOCK, is_symmetric=kind == "q8", accuracy_level=_INT8, op_types_to_quantize=("MatMul",)
    )
    total = sum(node.op_type == "MatMul" for graph in _graphs(model.graph) for node in graph.node)
    watched = quantizer.node_quantizer = _Watched(quantizer.node_quantizer, total, report)
    quantizer.process()
    return quantizer.model.model, watched.changed


def _read(source: Path) -> Any:
    """The ModelProto with its data inside. What lies beside it is read from where a run would read it, and no farther.

    The onnx package's own reading knows no links, not even those of the Hub's cache.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        model = onnx.load(source, load_external_data=False)
    except DecodeError as error:
        raise BadModelFile(f"{source} cannot be read: {error}") from None
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            place = ExternalDataInfo(tensor)
            with external_file(source, place.location).open("rb") as file:
                file.seek(place.offset or 0)
                tensor.raw_data = file.read(-(-math.prod(tensor.dims) * TYPES[tensor.data_type][1] // 8))
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
    return model


def _tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto: initializers, and constants that are attributes of nodes."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for holder in (model.graph, *model.functions):
        for graph in _graphs(holder):
            for attribute in (attribute for node in graph.node for attribute in node.attribute):
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _require_numbers(model: Any, source: Path) -> None:
    """Raise BadModelFile where a matrix has NaN, which the quantizer would turn into numbers that look sound."""
    import numpy as np
    from onnx import numpy_helper

    graphs = list(_graphs(model.graph))
    used = {name for graph in graphs for node in graph.node if node.op_type == "MatMul" for name in node.input}
    for tensor in (tensor for graph in graphs for tensor in graph.initializer):
        if tensor.name in used and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise BadModelFile(f"{source}: the matrix {tensor.name[:80]!r} has elements that are no numbers")


def _unfuse(graph: Any) -> None:
    """Products with the transpose of a constant, as `convert --to onnx` writes them, become plain ones.

    The quantizer knows no other. Matrices that nobody uses any more it removes.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        settings = {attribute.name: attribute.f or attribute.i for attribute in node.attribute}
        if node.op_type != "FusedMatMul" or len(node.input) < 2 or settings not in _TRANSPOSED:
            continue
        if node.input[1] not in constants:
            continue
        turned = f"{node.input[1]}/transposed"
        if turned not in constants:
            values = numpy_helper.to_array(constants[node.input[1]]).T
            constants[turned] = numpy_helper.from_array(values.copy(), turned)
            graph.initializer.append(constants[turned])
        node.op_type, node.domain, node.input[1] = "MatMul", "", turned
        node.ClearField("attribute")


_TRANSPOSED = ({"transB": 1}, {"transB": 1, "alpha": 1.0})


class _Watched:
    """The quantizer of single nodes, with a count of what it did."""

    def __init__(self, inner: Any, total: int, report: Report) -> None:
        self._inner, self._total, self._report = inner, total, report
        self._seen = self.changed = 0

    def quantize(self, node: Any, graphs: list[Any]) -> list[Any]:
        found: list[Any] = self._inner.quantize(node, graphs)
        self.changed += any(each.op_type != node.op_type for each in found)
        self._seen += 1
        self._report(self._seen, self._total)
        return found


def _quantizers() -> Any:
    """ONNX Runtime's module. It sets up logging to the terminal when it is imported, unless somebody has before."""
    root = logging.getLogger()
    silent = logging.NullHandler()
    root.addHandler(silent)
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer
    finally:
        root.removeHandler(silent)
    logging.getLogger(matmul_nbits_quantizer.__name__).setLevel(logging.CRITICAL)
    return matmul_nbits_quantizer


def _graphs(graph: Any) -> Iterator[Any]:
    """A GraphProto, or a FunctionProto, and those inside of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _move_data(model: Any, path: Path, name: str) -> None:
    """Write the tensors' data to a file, in the order of the graph, and have the model find them under `name`."""
    import onnx
    from onnx import external_data_helper

    with path.open("wb") as file:
        for tensor in (t for graph in _graphs(model.graph) for t in graph.initializer):
            if not tensor.HasField("raw_data") or len(tensor.raw_data) < _SMALL:
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            external_data_helper.set_external_data(tensor, name, file.tell(), len(tensor.raw_data))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
