"""ggml's blocks, repacked, stand for the very same numbers, and ONNX Runtime's operators compute with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from localllm.convert.onnx.blocks import LAYOUTS, pack, unpack
from localllm.convert.onnx.builder import DATA, Builder, save
from localllm.convert.onnx.weights import WIDENED, DataFile, Tensor, of_header
from localllm.formats.gguf import TENSOR_TYPES, TYPE_IDS
from localllm.formats.gguf import Tensor as Stored

ROWS, COLUMNS = 24, 512
# Where a block has numbers in float16, which random bytes would make infinite.
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_1": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208,), "MXFP4": ()}  # fmt: skip


def random_rows(kind: str) -> np.ndarray:
    """Rows of a type, every number and every bit of them random."""
    draw = np.random.RandomState(len(kind) + TYPE_IDS[kind])
    _, block, size = TENSOR_TYPES[TYPE_IDS[kind]]
    data = draw.randint(0, 256, (ROWS * COLUMNS // block, size)).astype(np.uint8)
    for start in HALVES.get(kind, (0,)):
        data[:, start : start + 2] = draw.standard_normal((len(data), 1)).astype("<f2").view(np.uint8)
    if kind == "MXFP4":
        data[:, 0] = draw.randint(110, 140, len(data))
    return data.reshape(ROWS, -1)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_nothing_is_lost(kind: str) -> None:
    data = random_rows(kind)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(ROWS, COLUMNS)
    found = unpack(pack(data, kind), LAYOUTS[kind])
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", [*LAYOUTS, "F32", "BF16"])
def test_products_and_rows(kind: str, tmp_path: Path) -> None:
    """A matrix as the output and, at once, as the embedding: one set of weights."""
    draw = np.random.RandomState(1)
    values = draw.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    data = random_rows(kind) if kind in LAYOUTS else gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(ROWS, COLUMNS)

    def blocks() -> Iterator[np.ndarray]:
        rows = np.ascontiguousarray(data).view(np.uint8).reshape(ROWS, -1)
        yield rows[:10]
        yield rows[10:]

    file = DataFile()
    b = Builder(file, 0)
    matrix = file.matrix(Tensor("m.weight", kind, (ROWS, COLUMNS), blocks))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, "n", COLUMNS]))
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "m"]))
    outputs = {"product": b.product(x, matrix), "rows": b.rows(ids, matrix)}
    shapes = {"product": [1, "n", ROWS], "rows": [1, "m", COLUMNS]}
    save(b.model([x, ids], outputs, "one", shapes), tmp_path / "model.onnx")
    file.write(tmp_path / DATA, lambda done, total: None)
    assert (tmp_path / DATA).stat().st_size == file.size
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = draw.standard_normal((1, 3, COLUMNS)).astype(np.float32)
    product, rows = session.run(None, {"x": inputs, "ids": np.array([[5, 0, 23, 5]])})
    assert np.abs(rows[0] - expected[[5, 0, 23, 5]]).max() <= 1e-6 * np.abs(expected).max()
    exact = inputs[0].astype(np.float64) @ expected.T.astype(np.float64)
    assert np.abs(product[0] - exact).max() <= 1e-5 * (np.abs(inputs[0]) @ np.abs(expected.T)).max()


@pytest.mark.parametrize("kind", sorted(WIDENED))
def test_types_that_no_block_holds_become_floats(kind: str, tmp_path: Path) -> None:
    """Small bytes, so that no scale is infinite."""
    block, size = TENSOR_TYPES[TYPE_IDS[kind]][1:]
    data = np.random.RandomState(5).randint(0, 60, (ROWS, size)).astype(np.uint8)
    path = tmp_path / "blocks"
    path.write_bytes(data.tobytes())
    header = SimpleNamespace(path=path, tensors=[Stored("a.weight", (block, ROWS), kind, 0, data.size)])
    whole = of_header(header)["a.weight"].as_type("F32").whole()
    assert np.array_equal(whole, gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]))
    assert np.isfinite(whole).all() and np.abs(whole).max() > 0
