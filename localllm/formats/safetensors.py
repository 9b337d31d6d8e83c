"""Reads and checks the header of a safetensors file, and the index of a checkpoint in several of them.

Follows the format's description: eight bytes of length, that many of JSON, then the data; every tensor's bytes are
where `data_offsets` says, without gaps and without overlaps. Tensor data is not read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from localllm.errors import BadModelFile, ModelNotFound

MAX_HEADER = 100 << 20  # bytes, the format's own limit
MAX_DIMENSIONS = 64  # no tensor has as many; the product of a million takes for ever
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
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


@dataclass(frozen=True, slots=True)
class Index:
    """A checkpoint in shards: the file that has each tensor, and the bytes of all tensors where the index tells."""

    shards: dict[str, str]
    total_size: int | None

    @property
    def files(self) -> list[str]:
        return sorted(set(self.shards.values()))


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; raises ModelNotFound or BadModelFile."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return read_stream(file, size, path)
    except FileNotFoundError:
        raise ModelNotFound(f"no such file: {path}") from None
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}", "check its permissions") from None


def read_stream(file: BinaryIO, size: int, path: Path) -> Header:
    """The same of a stream that stands at the beginning of a file of `size` bytes; no more than the header is read."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise _bad(path, f"its header claims {length} bytes")
    table = _parse(path, file.read(length))
    metadata = table.pop("__metadata__", {})
    tensors = [_tensor(path, name, row, 8 + length) for name, row in table.items()]
    tensors.sort(key=lambda t: (t.offset, t.size))  # an empty one before that which begins where it lies
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise _bad(path, f"the data of {tensor.name[:80]!r} begins at {tensor.offset} and not at {end}")
        end += tensor.size
    if end != size:
        raise _bad(path, f"it has {size} bytes and its header speaks of {end}")
    texts = {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}
    return Header(path, tuple(tensors), texts)


def read_index(data: bytes, path: Path) -> Index:
    """Check a model.safetensors.index.json, whose shards must lie beside it. Raises BadModelFile."""
    if len(data) > MAX_HEADER:
        raise _bad(path, f"it has {len(data)} bytes")
    table = _parse(path, data)
    shards, metadata = table.get("weight_map"), table.get("metadata")
    if not isinstance(shards, dict) or not shards:
        raise _bad(path, "it has no weight_map")
    for name in shards.values():
        # A plain name: what leads out of the folder, or into another, was not made by a converter.
        if not isinstance(name, str) or not name.endswith(".safetensors") or set(name) & set("/\\:\0"):
            raise _bad(path, f"it names the shard {name!r:.80}")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total is not None and (
        not isinstance(total, (int, float)) or isinstance(total, bool) or not 0 <= total < 1 << 62
    ):
        raise _bad(path, f"its total_size is {total!r:.80}")
    return Index(shards, None if total is None else int(total))


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _bad(path, "a name occurs twice in its JSON")
        return found

    try:
        table = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise _bad(path, "its JSON is none") from None
    if not isinstance(table, dict):
        raise _bad(path, "its JSON is no object")
    return table


def _tensor(path: Path, name: str, row: Any, base: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
        bits = BITS[dtype]
        numbers = (*shape, start, stop)
    except (TypeError, KeyError, ValueError):
        raise _bad(path, f"the tensor {name[:80]!r} is not described as one") from None
    if len(shape) > MAX_DIMENSIONS or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in numbers
    ):
        raise _bad(path, f"the tensor {name[:80]!r} has sizes that are no sizes")
    if stop - start != -(-math.prod(shape) * bits // 8):
        raise _bad(path, f"the tensor {name[:80]!r} has {stop - start} bytes, and its shape another number")
    return Tensor(name, dtype, shape, base + start, stop - start)


def _bad(path: Path, reason: str) -> BadModelFile:
    return BadModelFile(f"{path} is not a sound safetensors file: {reason}")
