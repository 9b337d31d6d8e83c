"""A GGUF's tokenizer, exported, makes the ids that the original makes, for a thousand lines of mixed text."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from localllm.convert.onnx import tokenizer
from localllm.errors import BadModelFile
from localllm.formats.gguf import read_header
from tests.convert.test_vocabulary import BYTE_LEVEL, EXPECTED, convert, stored, with_tokenizer
from tests.support import checkpoints
from tests.support.gguf_files import ARRAY, STRING, U32, gguf, pair
from tests.support.lines import lines


def exported(path: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer.describe(tokenizer.of_header(read_header(path)))))


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "sentencepiece-json"])
def test_ids_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    found = exported(convert(with_tokenizer(tmp_path, stored(name))))
    sums = [zlib.crc32(repr(found.encode(line, add_special_tokens=False).ids).encode()) for line in lines()]
    assert [line for line, a, b in zip(lines(), sums, EXPECTED[name], strict=True) if a != b] == []


@pytest.mark.parametrize("name", ["smollm", "sentencepiece-json"])
def test_ids_become_the_text_again(name: str, tmp_path: Path) -> None:
    found = exported(convert(with_tokenizer(tmp_path, stored(name))))
    for line in lines():
        assert found.decode(found.encode(line, add_special_tokens=False).ids) == line


def test_ids_of_sentencepiece_itself(tmp_path: Path) -> None:
    import shutil

    checkpoints.write(tmp_path, "llama-yarn", vocabulary=1100)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    shutil.copy(Path(__file__).parents[2] / "data" / "tokenizers" / "tokenizer.model", tmp_path)
    found = exported(convert(tmp_path))
    sums = [zlib.crc32(repr(found.encode(line, add_special_tokens=False).ids).encode()) for line in lines()]
    assert [line for line, a, b in zip(lines(), sums, EXPECTED["sentencepiece"], strict=True) if a != b] == []


def test_what_comes_before_a_text_and_special_tokens(tmp_path: Path) -> None:
    settings = {"bos_token": "<|end|>", "add_bos_token": True}
    folder = with_tokenizer(tmp_path, stored("gpt-2"), settings)
    tokens = tokenizer.of_header(read_header(convert(folder)))
    described = tokenizer.describe(tokens)
    found = tokenizers.Tokenizer.from_str(json.dumps(described))
    assert found.encode("a").ids[0] == found.token_to_id("<|end|>") == tokens.bos
    assert found.encode("<|end|>", add_special_tokens=False).ids == [tokens.bos]
    settings = tokenizer.settings(tokens, 4096)
    assert settings["bos_token"] == "<|end|>" and settings["model_max_length"] == 4096


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "bert"}, "tokenizer of the kind 'bert'"),
        ({"model": "none"}, "tokenizer of the kind 'none'"),
        ({"model": "gpt2", "pre": "new-one"}, "splits text in the way 'new-one'"),
    ],
)
def test_tokenizers_that_are_not_exported(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    pairs = [pair(f"tokenizer.ggml.{key}", STRING, value) for key, value in values.items()]
    pairs.append(pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b"])))
    path.write_bytes(gguf([pair("general.architecture", STRING, "llama"), pair("llama.block_count", U32, 1), *pairs]))
    with pytest.raises(BadModelFile, match=message):
        tokenizer.describe(tokenizer.of_header(read_header(path)))
