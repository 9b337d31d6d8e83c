"""Nodes and initializers of a graph, on top of onnx_ir: what several parts of a model need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from localllm.convert.onnx.weights import DataFile, Matrix, Region

OPSET = 21
MICROSOFT = "com.microsoft"
DATA = "model.onnx.data"
_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "uint8": ir.DataType.UINT8}


class Builder:
    """Collects nodes; `accuracy` is MatMulNBits' level (0: exact, 4: activations in 8 bits, as llama.cpp has them)."""

    def __init__(self, data: DataFile, accuracy: int) -> None:
        self.data, self.accuracy = data, accuracy
        self.tape = Tape()
        self.floats = _TYPES[data.floats]
        self._regions: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._means: dict[tuple[ir.Value, int], ir.Value] = {}

    def op(self, kind: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.tape.op(kind, inputs, attributes or None, domain=domain)

    def ops(
        self, kind: str, inputs: Sequence[ir.Value | None], outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        return self.tape.op_multi_out(kind, inputs, attributes or None, domain=domain, num_outputs=outputs)

    def constant(self, values: Any, dtype: str = "int64") -> ir.Value:
        """A small array in the graph itself."""
        array = np.asarray(values, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self.tape.initializer(ir.tensor(array, name=name))
        return self._constants[key]

    def number(self, value: float) -> ir.Value:
        """A scalar of the activations' type."""
        return self.constant(value, self.data.floats)

    def stored(self, region: Region, shape: tuple[int, ...] | None = None) -> ir.Value:
        """An initializer in the data file; with a `shape` the same bytes under another one."""
        key = (region.name, shape or region.shape)
        if key not in self._regions:
            name = region.name if shape is None or shape == region.shape else f"{region.name}.rows"
            tensor = ir.ExternalTensor(
                DATA, region.offset, region.size, _TYPES[region.dtype], shape=ir.Shape(key[1]), name=name
            )
            self._regions[key] = self.tape.initializer(tensor)
        return self._regions[key]

    # --- matrices ---------------------------------------------------------------------------------------------------

    def product(self, x: ir.Value, matrix: Matrix, bias: Region | None = None) -> ir.Value:
        """x (batch, positions, columns) times the matrix's transpose -> (batch, positions, rows)."""
        if matrix.layout is None:
            y = self.op("FusedMatMul", [x, self.stored(matrix.values)], MICROSOFT, transB=1)
        else:
            y = self._quantized(x, matrix)
        return y if bias is None else self.op("Add", [y, self.stored(bias)])

    def _quantized(self, x: ir.Value, matrix: Matrix) -> ir.Value:
        layout = matrix.layout
        assert layout is not None and matrix.scales is not None
        inputs = [x, self.stored(matrix.values), self.stored(matrix.scales)]
        y = self.op(
            "MatMulNBits", inputs, MICROSOFT, K=matrix.columns, N=matrix.rows, bits=layout.bits,
            block_size=layout.block, accuracy_level=self.accuracy,
        )  # fmt: skip
        if matrix.offsets is None:
            return y
        inputs = [self._block_means(x, layout.block), self.stored(matrix.offsets)]
        moved = self.op("FusedMatMul", inputs, MICROSOFT, transB=1, alpha=float(layout.block))
        return self.op("Add", [y, moved])

    def _block_means(self, x: ir.Value, block: int) -> ir.Value:
        """The means of x over each block, made once for all the matrices that x goes through.

        They are sums divided by a power of two; to pool is one node, and to part and sum two.
        """
        if (x, block) not in self._means:
            self._means[x, block] = self.op("AveragePool", [x], kernel_shape=[block], strides=[block])
        return self._means[x, block]

    def rows(self, ids: ir.Value, matrix: Matrix) -> ir.Value:
        """The rows of a matrix that `ids` (batch, positions) name -> (batch, positions, columns)."""
        layout, columns = matrix.layout, matrix.columns
        if layout is None:
            return self.op("Gather", [self.stored(matrix.values), ids])
        assert matrix.scales is not None
        values = self.stored(matrix.values, (matrix.rows, layout.width(columns)))
        x = self.op(
            "GatherBlockQuantized", [values, ids, self.stored(matrix.scales)], MICROSOFT,
            bits=layout.bits, block_size=layout.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        if matrix.offsets is None:
            return x
        parted = self.op("Reshape", [x, self.constant([0, 0, -1, layout.block])])
        offsets = self.op("Gather", [self.stored(matrix.offsets), ids])
        moved = self.op("Add", [parted, self.op("Unsqueeze", [offsets, self.constant([-1])])])
        return self.op("Reshape", [moved, self.constant([0, 0, columns])])

    # --- norms ------------------------------------------------------------------------------------------------------

    def norm(self, x: ir.Value, weight: Region, epsilon: float) -> ir.Value:
        inputs = [x, self.stored(weight)]
        return self.op("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=epsilon, stash_type=1)

    def add_and_norm(self, x: ir.Value, y: ir.Value, weight: Region, epsilon: float) -> tuple[ir.Value, ir.Value]:
        """x + y normed, and x + y itself."""
        inputs = [x, y, self.stored(weight)]
        normed, _, _, total = self.ops("SkipSimplifiedLayerNormalization", inputs, 4, MICROSOFT, epsilon=epsilon)
        return normed, total

    # --- the whole --------------------------------------------------------------------------------------------------

    def model(
        self, inputs: Sequence[ir.Value], outputs: Mapping[str, ir.Value], name: str, shapes: Mapping[str, Any]
    ) -> ir.Model:
        """The model; `shapes` are those of the outputs."""
        for key, value in outputs.items():
            value.name, value.type, value.shape = key, ir.TensorType(self.floats), ir.Shape(shapes[key])
        graph = ir.Graph(
            inputs, list(outputs.values()), nodes=self.tape.nodes, initializers=self.tape.initializers,
            opset_imports={"": OPSET, MICROSOFT: 1}, name=name,
        )  # fmt: skip
        return ir.Model(graph, ir_version=10, producer_name="localllm")


def save(model: ir.Model, path: Path) -> None:
    """Write the graph, whose initializers lie in the data file beside it."""
    path.write_bytes(ir.to_proto(model).SerializeToString())
