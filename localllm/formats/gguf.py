"""Reads and checks a GGUF file's header: metadata and the table of tensors.

Follows the format description in ggml's `docs/gguf.md` (versions 2 and 3, little-endian). Every count, length and
offset is checked against the size of the file before it is believed, so that a truncated or hostile file becomes a
`BadModelFile` with the reason, and never reaches the native loader. Tensor data is not read; long arrays are skipped
and kept as `Array`, to be read on demand.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.gguf_metadata import Array, check

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 63
MAX_METADATA = 1 << 16
MAX_TENSORS = 1 << 20
MAX_HEADER = 256 << 20  # bytes of a remote file that are fetched to find where its header ends
SHORT_ARRAY = 1024

# ggml's tensor types: id -> name, elements per block, bytes per block.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
TYPE_IDS = {name: id for id, (name, _, _) in TENSOR_TYPES.items()}

# Metadata value types: id -> struct format. 8 is a string, 9 an array.
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
STRING, ARRAY = 8, 9
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` is in ggml's order (the fastest dimension first); `offset` counts from the file's begin, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    file_size: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of this architecture: `get("context_length")` is `llama.context_length` in a Llama file."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_header(path: Path, *, any_kind: bool = False) -> Header:
    """Read and check the header of a GGUF file; raises ModelNotFound or BadModelFile.

    With `any_kind` it need not be a model: an importance matrix has no architecture.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                raise BadModelFile(f"{path} is not a GGUF file: {_describe(start)}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data, len(data)).header(any_kind=any_kind)
    except FileNotFoundError:
        raise ModelNotFound(f"no such file: {path}") from None
    except IsADirectoryError:
        raise BadModelFile(f"{path} is a folder, not a GGUF file") from None
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}", "check its permissions") from None


def read_model(path: Path) -> Header:
    """The header of a model, with the tensors of all its shards where it is split. Raises as `read_header`."""
    return merged(read_shards(path))


def read_shards(path: Path) -> list[Header]:
    """The headers of a model's files, the first of which has all metadata. Raises as `read_header`."""
    header = read_header(path)
    if header.metadata.get("split.no", 0):
        raise BadModelFile(f"{path} is not the first shard of its model", "name the first, -00001-of-...")
    count = header.metadata.get("split.count", 1)
    match = _SHARD.fullmatch(path.name)
    if count == 1 or match is None:
        return [header]
    if not isinstance(count, int) or count != int(match["count"]) or int(match["index"]) != 1:
        raise BadModelFile(f"{path} is the first of {count!r} shards, and its name says otherwise", "rename it")
    names = (f"{match['stem']}-{i:05}-of-{count:05}.gguf" for i in range(2, count + 1))
    return [header, *(read_header(path.with_name(name)) for name in names)]


class Growing(Protocol):
    """A file that arrives from its beginning: `prefix` is what is here, `grow(n)` brings at least its first n bytes."""

    prefix: bytearray

    def __len__(self) -> int: ...
    def grow(self, minimum: int) -> None: ...


def read_remote_header(data: Growing, name: str) -> Header:
    """Read and check the header of a GGUF file of which no more than the header is fetched. Raises BadModelFile."""
    data.grow(len(MAGIC))
    if data.prefix[:4] != MAGIC:
        raise BadModelFile(f"{name} is not a GGUF file: {_describe(bytes(data.prefix[:4]))}")
    return _Reader(Path(name), bytes(data.prefix), len(data), data).header()


def merged(headers: list[Header]) -> Header:
    """The header of a model in shards: the first one's metadata, the tensors of all."""
    return replace(headers[0], tensors=tuple(tensor for header in headers for tensor in header.tensors))


def _describe(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start == MAGIC[::-1]:
        return "it is big-endian, which this machine cannot run"
    if start[:2] == b"PK":
        return "it is a zip archive, perhaps a PyTorch checkpoint"
    if start[:1] == b"<" or start == b"vers":
        return "it is a text, perhaps a web page or a Git LFS pointer instead of the model"
    if start in (b"ggml", b"tjgg", b"lmgg", b"ggjt", b"ggla"):
        return "it is an old GGML file, from before GGUF"
    return f"it begins with {start!r}"


class _Reader:
    """Walks through the header. `position` never passes the end of the file, which has `size` bytes.

    Of those `data` may hold a beginning only; then more of it is asked of `source` where it ends.
    """

    def __init__(self, path: Path, data: mmap.mmap | bytes, size: int, source: Growing | None = None) -> None:
        self.path, self.data, self.size, self.source = path, data, size, source
        self.here = len(data)
        self.position = len(MAGIC)

    def header(self, *, any_kind: bool = False) -> Header:
        version = self.u32()
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise self.bad(f"GGUF version {version} is not one of {known}")
        tensor_count, metadata_count = self.u64(), self.u64()
        if metadata_count > MAX_METADATA or tensor_count > MAX_TENSORS:
            raise self.bad(f"it claims {metadata_count} metadata values and {tensor_count} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self.text(MAX_KEY_BYTES, "a metadata key")
            if key in metadata:
                raise self.bad(f"the metadata key {key!r} occurs twice")
            metadata[key] = self.value(self.u32(), key)
        tensors = self.tensors(tensor_count, metadata)
        header = Header(self.path, self.size, metadata, tensors)
        if not any_kind and not metadata.get("split.no", 0):  # only the first shard has more than its tensors
            check(metadata, self.bad)
        return header

    def tensors(self, count: int, metadata: dict[str, Any]) -> tuple[Tensor, ...]:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise self.bad(f"general.alignment is {alignment!r}, not a power of two")
        rows = [self.tensor_row() for _ in range(count)]
        base = -(-self.position // alignment) * alignment
        names: set[str] = set()
        tensors = []
        end = base if rows else self.position  # a vocabulary alone need not be filled up
        for name, shape, type_id, offset in rows:
            if name in names:
                raise self.bad(f"the tensor {name!r} occurs twice")
            names.add(name)
            type_name, block, block_bytes = TENSOR_TYPES[type_id]
            elements = 1
            for dimension in shape:
                elements *= dimension
            if shape[0] % block:
                raise self.bad(f"rows of {name!r} have {shape[0]} elements, not a multiple of {block} ({type_name})")
            if offset % alignment:
                raise self.bad(f"the data of {name!r} is not aligned to {alignment} bytes")
            size = elements // block * block_bytes
            end = max(end, base + offset + size)
            tensors.append(Tensor(name, shape, type_name, base + offset, size))
        if end > self.size:
            raise self.bad(f"it is truncated: {self.size} bytes of {end} are here")
        return tuple(tensors)

    def tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text(MAX_NAME_BYTES, "a tensor's name")
        dimensions = self.u32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.bad(f"the tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.u64() for _ in range(dimensions))
        if any(not 0 < d < 1 << 40 for d in shape):
            raise self.bad(f"the tensor {name!r} has the shape {shape}")
        type_id = self.u32()
        if type_id not in TENSOR_TYPES:
            raise self.bad(f"the tensor {name!r} has the unknown type {type_id}")
        return name, shape, type_id, self.u64()

    def value(self, type_id: int, key: str) -> Any:
        if type_id in SCALARS:
            scalar = SCALARS[type_id]
            start = self.skip(scalar.size)  # which may replace `data`
            return scalar.unpack_from(self.data, start)[0]
        if type_id == STRING:
            return self.text(self.size, f"the value of {key!r}")
        if type_id != ARRAY:
            raise self.bad(f"the value of {key!r} has the unknown type {type_id}")
        item_type, length = self.u32(), self.u64()
        array = Array(item_type, length, self.position)
        if item_type in SCALARS:
            self.skip(length * SCALARS[item_type].size)
        elif item_type == STRING:
            self.skip_strings(length, key)
        else:
            raise self.bad(f"the array {key!r} holds items of the unknown type {item_type}")
        return tuple(read_array(self.data, array)) if length <= SHORT_ARRAY else array

    def skip_strings(self, count: int, key: str) -> None:
        # The longest walk of the header (a vocabulary has up to 262,144 tokens and as many merges), hence no calls.
        unpack, position, left = _U64.unpack_from, self.position, count
        unique = key == "tokenizer.ggml.tokens"  # llama.cpp aborts the process where a token occurs twice
        texts: list[bytes] = []
        while left:
            data, here = self.data, self.here
            try:
                for left in range(left, 0, -1):  # noqa: B007, B020  # goes on from where more was needed
                    start = position + 8
                    end = start + unpack(data, position)[0]
                    if end > here:
                        break
                    if unique:
                        texts.append(data[start:end])
                    position = end
                else:
                    break
            except struct.error:
                end = position + 8
            if end > self.size:
                raise self.bad(f"it is truncated, or the array {key!r} claims more than the file holds")
            self.fetch(end)
        if unique and b"\0" in b"".join(texts):  # where C ends a string, two may be one
            raise self.bad("a token of the vocabulary holds a NUL byte")
        if unique and (same := count - len(set(texts))):
            raise self.bad(f"{same} tokens of the vocabulary occur twice")
        self.position = position

    def text(self, limit: int, what: str) -> str:
        length = self.u64()
        if length > limit:
            raise self.bad(f"{what} claims to be {length} bytes long")
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            raise self.bad(f"{what} is not UTF-8") from None

    def u32(self) -> int:
        start = self.skip(4)
        return int(_U32.unpack_from(self.data, start)[0])

    def u64(self) -> int:
        start = self.skip(8)
        return int(_U64.unpack_from(self.data, start)[0])

    def skip(self, count: int) -> int:
        start = self.position
        if count > self.size - start:
            raise self.bad("it is truncated: the header does not end within the file")
        if start + count > self.here:
            self.fetch(start + count)
        self.position = start + count
        return start

    def fetch(self, end: int) -> None:
        """Have the first `end` bytes of a file that arrives."""
        if end > MAX_HEADER:
            raise self.bad("its header is larger than 256 MiB")
        if self.source is not None:
            self.source.grow(end)
            self.data = bytes(self.source.prefix)
            self.here = len(self.data)
        if end > self.here:
            raise self.bad("it is truncated: less of it arrived than its size says")

    def bad(self, reason: str) -> BadModelFile:
        return BadModelFile(f"{self.path} is not a sound GGUF file: {reason}")


def read_array(data: mmap.mmap | bytes, array: Array) -> Iterator[Any]:
    """The items of a checked array; `data` is the whole file."""
    position = array.offset
    if array.type in SCALARS:
        scalar = SCALARS[array.type]
        for index in range(array.length):
            yield scalar.unpack_from(data, position + index * scalar.size)[0]
        return
    for _ in range(array.length):
        (length,) = _U64.unpack_from(data, position)
        position += 8
        yield data[position : position + length].decode(errors="replace")
        position += length
