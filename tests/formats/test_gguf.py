"""The header's reader: right on the real file, and an error of ours for every broken one."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.gguf import merged, read_array, read_header, read_remote_header
from localllm.formats.gguf_metadata import Array
from tests.support.gguf_files import (
    ARRAY,
    DATA_SIZE,
    F32,
    METADATA,
    STRING,
    TENSORS,
    U32,
    U64,
    gguf,
    pair,
    tensor,
    text,
)


def read(tmp_path: Path, data: bytes):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    return read_header(path)


def test_the_real_file(model_path: Path) -> None:
    header = read_header(model_path)
    assert header.architecture == "llama"
    assert header.parameters == 134_515_008
    assert header.get("block_count") == 30
    assert header.get("context_length") == 8192
    assert len(header.tensors) == 272
    assert "<|im_start|>" in header.metadata["tokenizer.chat_template"]
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Array)
    first = [t for t, _ in zip(read_array(model_path.read_bytes(), tokens), range(3), strict=False)]
    assert sum(t.size for t in header.tensors) == model_path.stat().st_size - header.tensors[0].offset
    assert first == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_a_tiny_file(tmp_path: Path) -> None:
    header = read(tmp_path, gguf())
    assert header.metadata["tokenizer.ggml.tokens"] == ("a", "b", "c")
    assert [(t.name, t.shape, t.type, t.size) for t in header.tensors] == [
        ("token_embd.weight", (64, 3), "F32", 768),
        ("output.weight", (64, 3), "Q8_0", 204),
    ]
    assert header.parameters == 384


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = gguf()
    for length in range(len(whole)):
        with pytest.raises(BadModelFile):
            read(tmp_path, whole[:length])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"<!doctype html>", "web page"),
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"FUGG" + bytes(40), "big-endian"),
        (b"ggml" + bytes(40), "old GGML"),
        (gguf(version=1), "version 1"),
        (gguf(version=1 << 24), "version 16777216"),
        (gguf(counts=(2, 2**63)), "9223372036854775808 metadata values"),
        (gguf(counts=(2**40, 7)), "1099511627776 tensors"),
        (gguf(counts=(2, 8)), "truncated|claims|tensor|type"),
        (gguf([]), "does not name its architecture"),
        (gguf([pair("general.architecture", U32, 3)]), "does not name its architecture"),
        (gguf([*METADATA, METADATA[0]]), "'general.architecture' occurs twice"),
        (gguf([METADATA[0], struct.pack("<Q", 2**60)]), "a metadata key claims to be"),
        (gguf([text(b"\xff\xfe") + struct.pack("<I", U32) + bytes(4)]), "not UTF-8"),
        (gguf([METADATA[0], text("k") + struct.pack("<I", 99)]), "unknown type 99"),
        (gguf([METADATA[0], text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)]), "items of the unknown type 9"),
        (gguf([METADATA[0], text("k") + struct.pack("<IIQ", ARRAY, U64, 2**61)]), "truncated"),
        (gguf([METADATA[0], text("k") + struct.pack("<IIQ", ARRAY, STRING, 2**61)]), "claims more"),
        (gguf([METADATA[0], text("k") + struct.pack("<IIQQ", ARRAY, STRING, 1, 2**64 - 1)]), "claims more"),
        (gguf([METADATA[0], pair("general.alignment", U32, 3)]), "not a power of two"),
        (gguf([METADATA[0], pair("llama.block_count", U32, 0)]), "llama.block_count is 0"),
        (gguf([METADATA[0], pair("llama.block_count", U32, 2**31)]), "llama.block_count is 2147483648"),
        (gguf([METADATA[0], pair("llama.attention.head_count", STRING, "x")]), "head_count is 'x'"),
        (gguf([*METADATA[:6], pair("tokenizer.ggml.bos_token_id", U32, 3)]), "bos_token_id is 3"),
        (gguf([METADATA[0], METADATA[4], pair("tokenizer.ggml.scores", ARRAY, (U32, [1]))]), "scores has 1 items"),
        (gguf([METADATA[0], pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "a"]))]), "1 tokens .* occur twice"),
        (gguf([METADATA[0], pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "a\0"]))]), "holds a NUL byte"),
        (gguf([METADATA[0], pair("llama.attention.layer_norm_rms_epsilon", F32, -1.0)]), "epsilon is -1.0"),
        (gguf(tensors=[TENSORS[0], TENSORS[0]]), "'token_embd.weight' occurs twice"),
        (gguf(tensors=[tensor("x", (64,) * 5, 0, 0)]), "has 5 dimensions"),
        (gguf(tensors=[tensor("x", (0,), 0, 0)]), r"has the shape \(0,\)"),
        (gguf(tensors=[tensor("x", (2**63, 2**63), 0, 0)]), "has the shape"),
        (gguf(tensors=[tensor("x", (33,), 8, 0)]), "not a multiple of 32"),
        (gguf(tensors=[tensor("x", (32,), 77, 0)]), "unknown type 77"),
        (gguf(tensors=[tensor("x", (32,), 0, 7)]), "not aligned"),
        (gguf(tensors=[tensor("x", (32,), 0, 2**62)]), "truncated"),
        (gguf(data=DATA_SIZE - 1), "truncated: .* bytes of .* are here"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(BadModelFile, match=reason):
        read(tmp_path, data)


def test_random_damage_is_read_or_refused(tmp_path: Path) -> None:
    whole, draw = gguf(), random.Random(1)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 5))):
            damaged[draw.randrange(len(whole) - DATA_SIZE)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        try:
            read(tmp_path, bytes(damaged))
        except BadModelFile:
            refused += 1
    assert refused > 1000


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(BadModelFile, match="is a folder"):
        read_header(tmp_path)


class Arriving:
    """A file that comes in steps, as over a network."""

    def __init__(self, data: bytes, step: int, size: int | None = None) -> None:
        self.data, self.step, self.size = data, step, len(data) if size is None else size
        self.prefix = bytearray()

    def __len__(self) -> int:
        return self.size

    def grow(self, minimum: int) -> None:
        assert minimum > len(self.prefix) or minimum <= 4, "asked for what is here"
        while len(self.prefix) < min(minimum, self.size):
            start = len(self.prefix)
            piece = self.data[start : start + self.step]
            self.prefix += piece + bytes(min(self.step, self.size - start) - len(piece))


@pytest.mark.parametrize("step", [1, 7, 100, 10_000])
def test_a_header_that_arrives_in_steps(tmp_path: Path, step: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(data=5000))
    arriving = Arriving(path.read_bytes(), step)
    assert read_remote_header(arriving, str(path)) == read_header(path)
    assert len(arriving.prefix) < len(gguf(data=0)) + step


def test_a_real_header_that_arrives_in_steps(model_path: Path) -> None:
    with model_path.open("rb") as file:
        arriving = Arriving(file.read(4 << 20), 1 << 16, model_path.stat().st_size)
    assert read_remote_header(arriving, str(model_path)) == read_header(model_path)
    assert len(arriving.prefix) < 2 << 20


@pytest.mark.parametrize("cut", range(4, len(gguf(data=0)), 5))
def test_a_remote_file_that_is_too_short_is_refused(cut: int) -> None:
    with pytest.raises(BadModelFile, match="not a sound GGUF file|not a GGUF file"):
        read_remote_header(Arriving(gguf()[:cut], 50), "m.gguf")


def test_a_remote_header_without_end_is_not_fetched_without_end() -> None:
    key = pair("general.endless", 9, (4, []))[:-8] + (1 << 33).to_bytes(8, "little")
    endless = gguf([key], [], data=0)
    arriving = Arriving(endless, 1 << 20, 1 << 40)
    with pytest.raises(BadModelFile, match="its header is larger than 256 MiB"):
        read_remote_header(arriving, "m.gguf")
    assert len(arriving.prefix) <= 1 << 20


def test_strings_without_end_are_not_fetched_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.formats.gguf.MAX_HEADER", 1 << 20)
    key = pair("general.endless", ARRAY, (STRING, []))[:-8] + (1 << 33).to_bytes(8, "little")
    arriving = Arriving(gguf([key], [], data=0), 1 << 16, 1 << 40)
    with pytest.raises(BadModelFile, match="its header is larger than"):
        read_remote_header(arriving, "m.gguf")
    assert len(arriving.prefix) <= 1 << 20


def test_a_model_without_attention_has_no_heads(tmp_path: Path) -> None:
    """Converters write so for Mamba and RWKV; of a Llama it would be divided by."""
    for name in ("mamba2", "rwkv7"):
        none = [pair("general.architecture", STRING, name), pair(f"{name}.attention.head_count", U32, 0)]
        assert read(tmp_path, gguf(none)).get("attention.head_count") == 0
    with pytest.raises(BadModelFile, match="head_count is 0"):
        read(tmp_path, gguf([METADATA[0], pair("llama.attention.head_count", U32, 0)]))


def test_shards_are_one_model(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(gguf())
    headers = [read_header(tmp_path / name) for name in "ab"]
    assert merged(headers).parameters == 2 * headers[0].parameters
