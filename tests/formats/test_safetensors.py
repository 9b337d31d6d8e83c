"""The header of a safetensors file, sound and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.safetensors import Tensor, read_header

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
        packed({"a": {**A, "data_offsets": [0]}}),
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


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_header(tmp_path / "none")
    with pytest.raises(BadModelFile, match="cannot be read"):
        read_header(tmp_path)
