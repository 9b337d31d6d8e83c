"""A model's tensors by their names in a GGUF, from either kind of source, and the data file they are written to.

Tensors stream through in blocks of a few megabytes: memory does not grow with the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from localllm.convert.gguf import as_float32, encode
from localllm.convert.onnx.blocks import LAYOUTS, Layout, pack
from localllm.convert.outputs import BLOCK, Output
from localllm.errors import BadModelFile
from localllm.formats import gguf

if TYPE_CHECKING:
    import numpy as np

FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# Types that ONNX Runtime's blocks cannot hold, and floats can.
WIDENED = {"IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS", "TQ1_0", "TQ2_0"}
_ALIGNMENT = 4096  # so that a file mapped into memory is used in place
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` is row-major; `blocks` yields some rows at a time as uint8 (rows, bytes of a row) of the ggml `type`."""

    name: str
    type: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        return self.shape[-1]

    def floats(self) -> Iterator[np.ndarray]:
        """Its numbers in float32, some rows at a time: (rows, columns)."""
        from gguf import GGMLQuantizationType, quants

        for block in self.blocks():
            if self.type in FLOATS:
                yield as_float32(block.view(FLOATS[self.type]), self.type)
            else:
                found = quants.dequantize(block, GGMLQuantizationType[self.type])
                yield found.reshape(-1, self.columns)

    def whole(self) -> np.ndarray:
        """A small tensor in float32, in its shape."""
        import numpy as np

        return np.concatenate(list(self.floats())).reshape(self.shape)

    def as_type(self, kind: str) -> Tensor:
        """The same quantized or rounded to another type, as llama.cpp does it for the file of that type."""
        if kind == self.type:
            return self

        def blocks() -> Iterator[np.ndarray]:
            output = Output(self.name, self.shape)
            for block in self.floats():
                yield encode(block, "F32", kind.lower(), output).reshape(len(block), -1)

        return Tensor(self.name, kind, self.shape, blocks)


def of_output(output: Output) -> Tensor:
    """A checkpoint's tensor, in float32."""

    def blocks() -> Iterator[np.ndarray]:
        for dtype, block in output.blocks():
            flat = block if block.ndim > 1 else block.reshape(1, -1)
            yield encode(flat, dtype, "f32", output).reshape(len(flat), -1)

    return Tensor(output.name, "F32", output.shape, blocks)


def of_header(header: gguf.Header) -> dict[str, Tensor]:
    """The tensors of a GGUF file. Raises BadModelFile for types that no graph can hold."""
    return {tensor.name: _stored(header.path, tensor) for tensor in header.tensors}


def _stored(path: Path, tensor: gguf.Tensor) -> Tensor:
    if not (tensor.type in FLOATS or tensor.type in LAYOUTS or tensor.type in WIDENED):
        raise BadModelFile(
            f"{path}: the tensor {tensor.name!r} is of the type {tensor.type}, which no graph can hold",
            "export a file of another type, or the original checkpoint",
        )
    shape = tuple(reversed(tensor.shape))
    rows = math.prod(shape[:-1])

    def blocks() -> Iterator[np.ndarray]:
        import numpy as np

        data = np.memmap(path, np.uint8, "r", tensor.offset, (rows, tensor.size // rows))
        step = max(1, BLOCK // 4 // data.shape[1])
        for start in range(0, rows, step):
            yield np.array(data[start : start + step])

    return Tensor(tensor.name, tensor.type, shape, blocks)


@dataclass(frozen=True, slots=True)
class Region:
    """Where an initializer's data lie in the file; `dtype` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        import numpy as np

        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Matrix:
    """Where a matrix of (rows, columns) lies: as `values` alone in floats, or in blocks of a `layout`."""

    rows: int
    columns: int
    values: Region
    layout: Layout | None = None
    scales: Region | None = None
    offsets: Region | None = None


Writer = Callable[[IO[bytes]], Iterator[int]]


@dataclass
class DataFile:
    """What will be written, and where; `floats` is numpy's name of the type of what is not quantized."""

    floats: str = "float32"
    size: int = 0
    _writers: list[Writer] = field(default_factory=list)

    def region(self, name: str, dtype: str, shape: Iterable[int]) -> Region:
        found = Region(name, dtype, tuple(shape), -(-self.size // _ALIGNMENT) * _ALIGNMENT)
        self.size = found.offset + found.size
        return found

    def array(self, name: str, shape: Iterable[int], make: Callable[[], np.ndarray], dtype: str = "") -> Region:
        """An array that is made when it is written."""
        region = self.region(name, dtype or self.floats, shape)

        def write(file: IO[bytes]) -> Iterator[int]:
            import numpy as np

            file.seek(region.offset)
            file.write(np.ascontiguousarray(make().reshape(region.shape), region.dtype).data)
            yield region.size

        self._writers.append(write)
        return region

    def vector(self, *tensors: Tensor) -> Region:
        """A tensor of few numbers, or several in a row."""
        import numpy as np

        def make() -> np.ndarray:
            return np.concatenate([tensor.whole().reshape(-1) for tensor in tensors])

        return self.array(tensors[0].name, (sum(t.rows * t.columns for t in tensors),), make)

    def matrix(self, *tensors: Tensor) -> Matrix:
        """A matrix, or several of one type below each other."""
        first, rows = tensors[0], sum(tensor.rows for tensor in tensors)
        name, columns = first.name.removesuffix(".weight"), first.columns
        if first.type in FLOATS:
            region = self.region(f"{name}.weight", self.floats, (rows, columns))
            self._writers.append(_float_writer(region, tensors))
            return Matrix(rows, columns, region)
        layout = LAYOUTS[first.type]
        blocks = columns // layout.block
        values = self.region(f"{name}.values", "uint8", (rows, blocks, layout.width(layout.block)))
        scales = self.region(f"{name}.scales", "float32", (rows, blocks))
        offsets = self.region(f"{name}.offsets", "float32", (rows, blocks)) if layout.offset else None
        self._writers.append(_block_writer((values, scales, offsets), tensors))
        return Matrix(rows, columns, values, layout, scales, offsets)

    def write(self, path: Path, report: Report) -> None:
        """Write everything. Raises OSError, BadModelFile."""
        done = 0
        with path.open("wb") as file:
            for writer in self._writers:
                for written in writer(file):
                    done += written
                    report(min(done, self.size), self.size)
            file.truncate(self.size)


def _float_writer(region: Region, tensors: tuple[Tensor, ...]) -> Writer:
    def write(file: IO[bytes]) -> Iterator[int]:
        import numpy as np

        file.seek(region.offset)
        for tensor in tensors:
            for block in tensor.floats():
                data = _rounded(block, region.dtype, tensor.name)
                file.write(np.ascontiguousarray(data).data)
                yield data.nbytes

    return write


def _rounded(block: np.ndarray, dtype: str, name: str) -> np.ndarray:
    import numpy as np

    try:
        with np.errstate(over="raise"):
            return block.astype(dtype, copy=False)
    except FloatingPointError:
        hint = "choose --quant f32"
        raise BadModelFile(f"{name} has numbers that are too large for float16", hint) from None


def _block_writer(regions: tuple[Region, Region, Region | None], tensors: tuple[Tensor, ...]) -> Writer:
    def write(file: IO[bytes]) -> Iterator[int]:
        places = [region.offset if region else 0 for region in regions]
        for tensor in tensors:
            for block in tensor.blocks():
                packed = pack(block, tensor.type)
                for i, data in enumerate((packed.values, packed.scales, packed.offsets)):
                    if data is not None:
                        file.seek(places[i])
                        file.write(data.data)
                        places[i] += data.nbytes
                        yield data.nbytes

    return write
