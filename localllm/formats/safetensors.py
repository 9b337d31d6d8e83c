"""Reads and checks the header of a safetensors file: names, dtypes, shapes and places of its tensors.

Follows the format's description: eight bytes of length, that many of JSON, then the data; every tensor's bytes are
where `data_offsets` says, without gaps and without overlaps. Tensor data is not read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, ModelNotFound

MAX_HEADER = 100 << 20  # bytes, the format's own limit
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """`offset` counts from the file's begin, in bytes; `shape` is in row-major order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; raises ModelNotFound or BadModelFile."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise _bad(path, f"its header claims {length} bytes")
            table = json.loads(file.read(length))
    except FileNotFoundError:
        raise ModelNotFound(f"no such file: {path}") from None
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
    except (ValueError, RecursionError):
        raise _bad(path, "its header is not JSON") from None
    if not isinstance(table, dict):
        raise _bad(path, "its header is no object")
    metadata = table.pop("__metadata__", {})
    tensors = sorted((_tensor(path, name, row, 8 + length) for name, row in table.items()), key=lambda t: t.offset)
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise _bad(path, f"the data of {tensor.name!r} begins at {tensor.offset} and not at {end}")
        end += tensor.size
    if end != size:
        raise _bad(path, f"it has {size} bytes and its header speaks of {end}")
    texts = {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}
    return Header(path, tuple(tensors), texts)


def _tensor(path: Path, name: str, row: Any, base: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
        bits = BITS[dtype]
        numbers = (*shape, start, stop)
    except (TypeError, KeyError, ValueError):
        raise _bad(path, f"the tensor {name[:80]!r} is not described as one") from None
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in numbers):
        raise _bad(path, f"the tensor {name[:80]!r} has sizes that are no sizes")
    if stop - start != -(-math.prod(shape) * bits // 8):
        raise _bad(path, f"the tensor {name[:80]!r} has {stop - start} bytes, and its shape another number")
    return Tensor(name, dtype, shape, base + start, stop - start)


def _bad(path: Path, reason: str) -> BadModelFile:
    return BadModelFile(f"{path} is not a sound safetensors file: {reason}")
