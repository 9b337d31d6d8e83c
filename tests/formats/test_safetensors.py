"""The header of a safetensors file, sound and broken."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.safetensors import Tensor, read_header, read_index, read_stream

A = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
B = {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}


def packed(table: Any, data: int = 16, length: int | None = None) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def read(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    return read_header(path)


def test_a_sound_file(tmp_path: Path) -> None:
    table = {"__metadata__": {"format": "pt"}, "b": B, "a": A}
    header = read(tmp_path, packed(table))
    base = len(packed(table)) - 16
    assert header.tensors == (Tensor("a", "BF16", (2, 3), base, 12), Tensor("b", "F32", (), base + 12, 4))
    assert (header.parameters, header.metadata) == (7, {"format": "pt"})
    assert read(tmp_path, packed({}, 0)).tensors == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05",
        packed({}, 0, length=1 << 62),
        packed({"a": A}, 12, length=10_000),
        packed(b"not json", 0),
        packed(b"[" * 50_000, 0),
        packed([], 0),
        packed({"a": 7}),
        packed({"a": {**A, "dtype": "F12"}}),
        packed({"a": {**A, "dtype": []}}),
        packed({"a": {**A, "shape": 5}}),
        packed({"a": {**A, "shape": [-2, -3]}}),
        packed({"a": {**A, "shape": [2.0, 3]}}),
        packed({"a": {**A, "shape": [True, 6]}}),
        packed({"a": {**A, "shape": [1 << 40, 1 << 40]}}),
        packed({"a": {**A, "shape": [2] * 10_000}}),
        packed({"a": {**A, "data_offsets": [0]}}),
        packed(b'{"a": %s, "a": %s}' % ((json.dumps(A).encode(),) * 2), 12),
        packed(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', 4),
        packed(b'{"a": {"dtype": "U8", "shape": [%s], "data_offsets": [0, 4]}}' % (b"9" * 5000), 4),
        packed({"a": {**A, "data_offsets": [12, 0]}}),
        packed({"a": A, "b": {**B, "data_offsets": [8, 12]}}),
        packed({"a": A, "b": {**B, "data_offsets": [13, 17]}}, 17),
        packed({"a": A, "b": B}, 15),
        packed({"a": A, "b": B}, 17),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadModelFile, match="is not a sound safetensors file"):
        read(tmp_path, data)


def test_an_empty_tensor_lies_where_the_next_begins(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
    header = read(tmp_path, packed({"a": A, "none": empty}, 12))
    assert [t.name for t in header.tensors] == ["none", "a"]


def test_of_a_stream_the_header_is_read_and_no_more(tmp_path: Path) -> None:
    data = packed({"a": A, "b": B})
    stream = io.BytesIO(data[:-16])
    header = read_stream(stream, len(data), tmp_path / "m.safetensors")
    assert header.tensors == read(tmp_path, data).tensors
    assert stream.tell() == len(data) - 16
    with pytest.raises(BadModelFile):
        read_stream(io.BytesIO(data[:40]), len(data), tmp_path / "m.safetensors")


def test_an_index() -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    text = json.dumps({"metadata": {"total_size": 16}, "weight_map": shards}).encode()
    index = read_index(text, Path("model.safetensors.index.json"))
    assert (index.shards, index.total_size, index.files) == (shards, 16, sorted(shards.values()))
    assert read_index(json.dumps({"weight_map": shards}).encode(), Path("i")).total_size is None


@pytest.mark.parametrize(
    "table",
    [
        [],
        {},
        {"weight_map": {}},
        {"weight_map": {"a": 7}},
        {"weight_map": {"a": "../x.safetensors"}},
        {"weight_map": {"a": "/etc/x.safetensors"}},
        {"weight_map": {"a": "C:x.safetensors"}},
        {"weight_map": {"a": "b\\x.safetensors"}},
        {"weight_map": {"a": "pytorch_model.bin"}},
        {"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": -1}},
        {"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": "16"}},
        {"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": float("nan")}},
    ],
)
def test_a_broken_index_is_refused(table: Any) -> None:
    with pytest.raises(BadModelFile, match="is not a sound"):
        read_index(json.dumps(table).encode(), Path("model.safetensors.index.json"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_header(tmp_path / "none")
    with pytest.raises(BadModelFile, match="cannot be read"):
        read_header(tmp_path)
