"""Writes tiny GGUF files, sound and broken, by the format description; splits a real one into shards."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from localllm.formats.gguf import TENSOR_TYPES, read_header

U16, U32, I32, F32, STRING, ARRAY, U64 = 2, 4, 5, 6, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        item, items = content
        return struct.pack("<IQ", item, len(items)) + b"".join(value(item, i) for i in items)
    return struct.pack({U16: "<H", U32: "<I", I32: "<i", F32: "<f", U64: "<Q"}[kind], content)


def pair(key: str, kind: int, content: Any) -> bytes:
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


METADATA = [
    pair("general.architecture", STRING, "llama"),
    pair("llama.block_count", U32, 1),
    pair("llama.context_length", U32, 128),
    pair("llama.embedding_length", U32, 64),
    pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "c"])),
    pair("tokenizer.ggml.scores", ARRAY, (F32, [0.0, 1.0, 2.0])),
    pair("tokenizer.ggml.bos_token_id", U32, 1),
]
TENSORS = [tensor("token_embd.weight", (64, 3), 0, 0), tensor("output.weight", (64, 3), 8, 768)]
DATA_SIZE = 768 + 3 * 64 // 32 * 34


def gguf(
    metadata: list[bytes] = METADATA,
    tensors: list[bytes] = TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = DATA_SIZE,
) -> bytes:
    tensor_count, metadata_count = counts or (len(tensors), len(metadata))
    header = magic + struct.pack("<IQQ", version, tensor_count, metadata_count) + b"".join(metadata + tensors)
    return header + bytes(-len(header) % 32 + data)


def split(source: Path, folder: Path, stem: str, count: int) -> list[Path]:
    """Split a GGUF as llama.cpp's gguf-split does: all metadata in the first shard, tensors shared out in order."""
    header = read_header(source)
    data = source.read_bytes()
    (metadata_count,) = struct.unpack_from("<Q", data, 16)
    metadata = data[24 : data.index(text(header.tensors[0].name) + struct.pack("<I", len(header.tensors[0].shape)))]
    kinds = {name: id for id, (name, _, _) in TENSOR_TYPES.items()}
    paths = []
    for number in range(count):
        part = header.tensors[number * len(header.tensors) // count : (number + 1) * len(header.tensors) // count]
        own = [
            pair("split.no", U16, number),
            pair("split.count", U16, count),
            pair("split.tensors.count", I32, len(header.tensors)),
        ]
        rows, blob = [], b""
        for t in part:
            rows.append(tensor(t.name, t.shape, kinds[t.type], len(blob)))
            blob += data[t.offset : t.offset + t.size]
            blob += bytes(-len(blob) % 32)
        counts = (len(rows), len(own) + (metadata_count if number == 0 else 0))
        head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + (metadata if number == 0 else b"") + b"".join(own + rows)
        path = folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf"
        path.write_bytes(head + bytes(-len(head) % 32) + blob)
        paths.append(path)
    return paths
