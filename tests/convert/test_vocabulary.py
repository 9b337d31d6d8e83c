"""A converted tokenizer makes the ids that the original makes, for a thousand lines of mixed text."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
from tokenizers import Tokenizer

from localllm.convert import gguf, pretokenizer
from localllm.convert.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_vocabulary
from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound
from localllm.formats.gguf import read_header
from tests.support import checkpoints
from tests.support.lines import lines
from tests.support.vocabulary_only import Vocabulary, opened

DATA = Path(__file__).parents[1] / "data" / "tokenizers"
EXPECTED = json.loads((DATA / "expected.json").read_text())
BYTE_LEVEL = sorted(set(pretokenizer._KNOWN.values()))
# llama.cpp's own expressions for these know no combining marks, as Hindi and Thai have them.
WITHOUT_MARKS = ("gpt-4o", "tekken")
SPECIAL = {f"{n}_token": f"[{n.upper()}]" for n in ("unk", "cls", "sep", "pad", "mask")}


def convert(folder: Path) -> Path:
    target = folder / "model.gguf"
    gguf.write(gguf.plan(folder, "f16"), target)
    return target


def with_tokenizer(
    folder: Path, tokenizer: Any, settings: dict[str, Any] | None = None, case: str = "llama-yarn"
) -> Path:
    size = len(tokenizer["model"]["vocab"])
    checkpoints.write(folder, case, vocabulary=size)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or {}))
    return folder


def stored(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def differing(vocabulary: Vocabulary, name: str) -> list[str]:
    """The lines that become other ids than the original tokenizer's."""
    found = [zlib.crc32(repr(vocabulary.ids(line)).encode()) for line in lines()]
    return [line for line, ours, theirs in zip(lines(), found, EXPECTED[name], strict=True) if ours != theirs]


def test_every_way_of_splitting_is_tried() -> None:
    assert set(BYTE_LEVEL) < set(EXPECTED)
    assert len(lines()) == 1000


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "sentencepiece-json"])
def test_ids_are_those_of_the_tokenizers_library(name: str, tmp_path: Path) -> None:
    with opened(convert(with_tokenizer(tmp_path, stored(name)))) as vocabulary:
        wrong = differing(vocabulary, name)
    if name in WITHOUT_MARKS:
        assert wrong and all(any(category(c).startswith("M") for c in line) for line in wrong)
    else:
        assert wrong == []


def test_ids_are_those_of_sentencepiece(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "llama-yarn", vocabulary=1100)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    shutil.copy(DATA / "tokenizer.model", tmp_path)
    with opened(convert(tmp_path)) as vocabulary:
        assert differing(vocabulary, "sentencepiece") == []


def test_ids_of_word_pieces(tmp_path: Path) -> None:
    with opened(convert(with_tokenizer(tmp_path, stored("wordpiece"), SPECIAL, "bert"))) as vocabulary:
        assert differing(vocabulary, "wordpiece") == []
        assert [vocabulary.ids("a", add=True)[i] for i in (0, -1)] == [2, 3]


@pytest.mark.parametrize(("lowercase", "strip_accents"), [(False, None), (False, True), (True, False), (True, True)])
def test_word_pieces_as_their_normalizer_says(lowercase: bool, strip_accents: bool | None, tmp_path: Path) -> None:
    """Long words, special tokens and every kind of accent, against the tokenizers library itself."""
    described = stored("wordpiece")
    described["normalizer"] |= {"lowercase": lowercase, "strip_accents": strip_accents}
    texts = [
        *lines()[:300],
        "x" * 100,
        "x" * 101,
        f"a {'é' * 101}, b",
        f"{'ab' * 40},{'ab' * 51}.c",
        "caf\u00e9 [MASK] [SEP]",
    ]
    original = Tokenizer.from_str(json.dumps(described))
    with opened(convert(with_tokenizer(tmp_path, described, SPECIAL, "bert"))) as vocabulary:
        for text in texts:
            assert vocabulary.ids(text, special=True) == original.encode(text, add_special_tokens=False).ids, text


def test_word_pieces_of_old_files(tmp_path: Path) -> None:
    tokens = sorted(stored("wordpiece")["model"]["vocab"].items(), key=lambda row: row[1])
    new = convert(with_tokenizer(tmp_path / "new", stored("wordpiece"), case="bert"))
    folder = checkpoints.write(tmp_path / "old", "bert", vocabulary=len(tokens))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with opened(new) as ours, opened(convert(folder)) as older:
        assert all(ours.ids(line) == older.ids(line) for line in lines()[:200])


def test_byte_level_of_old_files(tmp_path: Path) -> None:
    model = stored("gpt-2")["model"]
    new = convert(with_tokenizer(tmp_path / "new", stored("gpt-2")))
    folder = checkpoints.write(tmp_path / "old", "llama-yarn", vocabulary=len(model["vocab"]))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with opened(new) as ours, opened(convert(folder)) as older:
        assert all(ours.ids(line) == older.ids(line) for line in lines()[:200])
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "OwnTokenizer"}')
    with pytest.raises(ModelNotFound, match="no tokenizer that can be converted"):
        read_vocabulary(folder, 900)


def test_an_unknown_way_of_splitting_is_an_error(tmp_path: Path) -> None:
    tokenizer = stored("llama-bpe")
    tokenizer["model"]["ignore_merges"] = False
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"
    with pytest.raises(BadModelFile, match=r"splits text in a way that llama.cpp is not known to have: split .*\|x"):
        gguf.plan(with_tokenizer(tmp_path, tokenizer), "f16")


def test_types_of_added_tokens_and_what_is_left(tmp_path: Path) -> None:
    tokenizer = stored("sentencepiece-json")
    size = len(tokenizer["model"]["vocab"])
    added = {"<tool>": False, "<|call|>": False, "\u2581\u2581x": False, "<last>": True}
    tokenizer["added_tokens"] += [
        {"id": size + i, "content": text, "special": special, "normalized": False}
        for i, (text, special) in enumerate(added.items())
    ]
    folder = with_tokenizer(tmp_path, tokenizer)
    found = read_vocabulary(folder, size + 6)
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert [kinds[t] for t in ("<unk>", "<s>", "<0x41>", "e")] == [UNKNOWN, CONTROL, BYTE, NORMAL]
    assert [kinds[t] for t in ("<tool>", "<|call|>", "  x", "<last>")] == [USER_DEFINED, CONTROL, USER_DEFINED, CONTROL]
    assert found.tokens[-2:] == [f"[PAD{size + 4}]", f"[PAD{size + 5}]"] and found.types[-2:] == [UNUSED, UNUSED]
    shorter = read_vocabulary(folder, size)
    assert len(shorter.tokens) == len(shorter.types) == len(shorter.scores or ()) == size
    assert shorter.notices == ["the last 4 tokens of its vocabulary have no embeddings and are left out"]


def test_special_tokens_and_templates_travel(tmp_path: Path) -> None:
    tokenizer = stored("gpt-2")
    size = len(tokenizer["model"]["vocab"])
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}},
    }  # fmt: skip
    folder = with_tokenizer(tmp_path, tokenizer, {"bos_token": "<|end|>", "eos_token": {"content": "<|end|>"}})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    path = convert(folder)
    metadata = read_header(path).metadata
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert metadata["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    assert [metadata[f"tokenizer.ggml.{n}_token_id"] for n in ("bos", "eos")] == [0, 0]
    with opened(path) as vocabulary:
        assert vocabulary.ids("a", add=True)[0] == 0
        assert vocabulary.ids("<|end|>", special=True) == [0] != vocabulary.ids("<|end|>")
    assert size == 900


def test_no_token_in_front_where_the_tokenizer_adds_none(tmp_path: Path) -> None:
    """llama.cpp adds one by default to what splits as Llama 3 does."""
    settings = {"bos_token": "<|end|>"}
    with opened(convert(with_tokenizer(tmp_path, stored("llama-bpe"), settings))) as vocabulary:
        assert 0 not in vocabulary.ids("a", add=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "holds no tokenizer"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram tokenizer"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "no vocabulary"),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}}, "impossible ids"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "impossible ids"),
        ({"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}, "impossible ids"),
        ({"added_tokens": [{"id": 1 << 40, "content": "x"}]}, "adds a token that is none"),
        ({"added_tokens": [{"id": 3, "content": 7}]}, "adds a token that is none"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 5}, "decoder": {"type": "ByteLevel"}}, "nothing"),
        ({"pre_tokenizer": None, "decoder": None}, "neither bytes nor SentencePiece"),
    ],
)
def test_hostile_tokenizers(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "llama-yarn")
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored("gpt-2") | change))
    with pytest.raises(BadModelFile, match=message):
        gguf.plan(tmp_path, "f16")


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
        {"post_processor": {"type": "TemplateProcessing", "single": [5, 6]}},
        {"post_processor": 5},
        {"added_tokens": [{"id": 0, "content": "x", "special": "yes"}, 7]},
    ],
)
def test_what_the_gguf_package_stumbles_over(change: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path, "llama-yarn")
    (folder / "tokenizer.json").write_text(json.dumps(stored("gpt-2") | change))
    with pytest.raises(LocalLLMError):
        convert(folder)
    assert not list(folder.glob("*.gguf")) and not list(folder.glob(".*.part"))


@pytest.mark.parametrize("damage", [b"", b"\x0a\xff\xff\xff\xff\x0f", b"not a model", bytes(range(256))])
def test_broken_sentencepiece_models(damage: bytes, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "llama-yarn")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(damage)
    with pytest.raises(BadModelFile):
        read_vocabulary(tmp_path, 288)


def test_truncated_sentencepiece_models(tmp_path: Path) -> None:
    """Cut anywhere it is an error or a shorter vocabulary, never a crash."""
    whole = (DATA / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        try:
            assert len(read_vocabulary(tmp_path, 1100).tokens) == 1100
        except BadModelFile:
            continue
