"""`localllm tokenize`: what a text is to a model, for people and for scripts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from localllm.engines.llama_model import LlamaModel
from localllm.formats.gguf import read_header
from localllm.ui.tokens import quoted, shown, whole_characters
from tests.support import gguf_files
from tests.support.command import Terminal, localllm
from tests.support.lines import lines
from tests.support.vocabulary_file import strip_weights


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    return strip_weights(model_path, tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf")


def tokens(*words: str, **more: Any) -> list[dict[str, Any]]:
    done = localllm("tokenize", *words, "--json", **more)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["count"] == len(found["tokens"])
    return list(found["tokens"])


def test_ids_pieces_and_bytes() -> None:
    assert tokens("Hello wörld 😀") == [
        {"id": 19556, "piece": "Hello", "bytes": [72, 101, 108, 108, 111], "special": False},
        {"id": 267, "piece": " w", "bytes": [32, 119], "special": False},
        {"id": 29989, "piece": "ör", "bytes": [195, 182, 114], "special": False},
        {"id": 400, "piece": "ld", "bytes": [108, 100], "special": False},
        {"id": 40303, "piece": " \ufffd", "bytes": [32, 240, 159, 152], "special": False},
        {"id": 218, "piece": "\ufffd", "bytes": [128], "special": False},
    ]


@pytest.mark.slow
def test_a_vocabulary_alone_and_standard_input_to_the_byte(vocabulary: Path, model: LlamaModel) -> None:
    text = "\ufeff" + "\r\n".join(lines()) + "\x00\t \n\n"
    found = tokens(str(vocabulary), input=text)
    assert b"".join(bytes(t["bytes"]) for t in found) == text.encode()
    assert [t["id"] for t in found] == model.tokenize(text, begin=True)


@pytest.mark.slow
def test_special_tokens_or_plain_text() -> None:
    found = tokens("<|im_start|>user")
    assert [(t["piece"], t["special"]) for t in found] == [("<|im_start|>", True), ("user", False)]
    plain = tokens("<|im_start|>user", "--no-special")
    assert len(plain) > 3 and not any(t["special"] for t in plain)
    assert b"".join(bytes(t["bytes"]) for t in plain) == b"<|im_start|>user"


@pytest.mark.slow
def test_begin_and_end_tokens_are_added_where_the_model_wants_them(tmp_path: Path, vocabulary: Path) -> None:
    data, boolean = vocabulary.read_bytes(), b"\x07\0\0\0"
    begin, end = (gguf_files.text(f"tokenizer.ggml.add_{name}_token") + boolean for name in ("bos", "eos"))
    assert begin + b"\0" in data and end not in data
    count = (len(read_header(vocabulary).metadata) + 1).to_bytes(8, "little")
    data = data[:16] + count + data[24:].replace(begin + b"\0", begin + b"\1") + end + b"\1"
    (tmp_path / "both.gguf").write_bytes(data)
    assert [t["piece"] for t in tokens(str(tmp_path / "both.gguf"), "Hi")] == ["<|im_start|>", "Hi", "<|im_end|>"]
    assert [t["piece"] for t in tokens(str(tmp_path / "both.gguf"), "Hi", "--no-special")] == ["Hi"]


def test_the_chat_template(vocabulary: Path) -> None:
    done = localllm("tokenize", str(vocabulary), "Hi", "--chat", "--system", "Be brief.", "--json")
    found = json.loads(done.stdout)
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert found["text"] == expected
    assert b"".join(bytes(t["bytes"]) for t in found["tokens"]) == expected.encode()
    assert [t["piece"] for t in found["tokens"] if t["special"]] == ["<|im_start|>", "<|im_end|>"] * 2 + [
        "<|im_start|>"
    ]


@pytest.mark.slow
def test_count_and_files(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"one two three\n")
    for words, data in (
        (("--file", str(tmp_path / "t")), b""),
        (("--file", "-"), b"one two three\n"),
        ((), b"one two three\n"),
    ):
        assert localllm("tokenize", *words, "--count", input=data).stdout == "4\n"
    assert localllm("tokenize", "--count").stdout == "0\n"


def test_the_table() -> None:
    done = localllm("tokenize", "a  你好\x1b[2J<|im_end|>")
    assert done.stdout.splitlines()[0].split() == ["id", "bytes", "piece"]
    assert re.search(r"^ +2  special +<\|im_end\|>$", done.stdout, re.M)
    assert "'\\x1b'" in done.stdout and "\x1b" not in done.stdout
    assert done.stdout.endswith(f"{len(done.stdout.splitlines()) - 2} tokens\n")


@pytest.mark.slow
def test_the_colours() -> None:
    with Terminal("tokenize", "One two\x1b]0;t\x07<|im_end|>", columns=60) as terminal:
        assert terminal.exit_code() == 0
        line = next(y for y, row in enumerate(terminal.screen.display) if row.startswith("One two␛]0;t␇<|im_end|>"))
        cells = [terminal.screen.buffer[line][x].bg for x in range(len("One two␛]0;t␇<|im_end|>"))]
        assert cells[0] == cells[2] != cells[3] == cells[6] != "default"
        assert cells[-10:] == ["brown"] * 10
        assert b"\x1b]" not in terminal.raw and b"\x07" not in terminal.raw
    with Terminal("tokenize", "你好 😀", columns=60) as terminal:
        assert terminal.exit_code() == 0
        assert terminal.text.startswith("你")  # a wide character takes two places of the screen
        assert terminal.raw.decode().partition("\n")[0].count("48;5;") + terminal.raw.decode().count("48;2;") >= 3
    with Terminal("tokenize", "One two", columns=60, NO_COLOR="1") as terminal:
        assert terminal.exit_code() == 0
        assert re.search(rb"One\x1b\[4m two\x1b\[0m", terminal.raw)
    with Terminal("tokenize", "One two", columns=60, TERM="dumb") as terminal:
        assert terminal.exit_code() == 0
        assert b"\x1b" not in terminal.raw and "' two'" in terminal.text


def test_tokens_as_they_are_shown() -> None:
    pieces = [b"a", b" \xf0\x9f", b"\x98", b"\x80", b"\xff", b"b", b"\xe4"]
    groups = [[b"a"], [b" \xf0\x9f", b"\x98", b"\x80"], [b"\xff"], [b"b"], [b"\xe4"]]
    assert list(whole_characters(pieces, bytes)) == groups
    cut_off = [b"a\xf0\x9f", b"<|im_end|>", b"\xe4", b"\xe4\xbd", b"\xa0"]
    assert list(whole_characters(cut_off, bytes)) == [cut_off[:1], cut_off[1:2], cut_off[2:3], cut_off[3:]]
    assert shown(b"a\nb\x1b\xf0\x9f") == "a␊\nb␛\\xf0\\x9f"
    assert (quoted(b" a\xe2\x80\xae"), quoted(b"\xf0")) == ("' a\\u202e'", "b'\\xf0'")


@pytest.mark.parametrize(
    ("words", "data", "code", "message"),
    [
        ((), b"ab\xff", 2, "standard input is not UTF-8 text (byte 0xff at 2)"),
        (("--file", "missing"), b"", 2, "--file missing cannot be read: No such file"),
        (("a text", "--file", "missing"), b"", 2, "a text and --file missing: which of them?"),
        (("-m", "{broken}", "x"), b"", 1, "broken.gguf has no vocabulary"),
        (("-m", "{none}", "x"), b"", 1, "none.gguf has no vocabulary"),
        (("-m", "{cut}", "x"), b"", 1, "it is truncated"),
        ((), b"x" * ((16 << 20) + 1), 2, "standard input is larger than 16 MB"),
        (("--file", "/dev/zero"), b"", 2, "/dev/zero is larger than 16 MB"),
        (("x", "--system", "y"), b"", 2, "--system is of a chat (add --chat)"),
        (("x", "--chat", "--template", "missing"), b"", 2, "no such name and no readable file"),
    ],
)
def test_wrong_input(
    words: tuple[str, ...], data: bytes, code: int, message: str, tmp_path: Path, vocabulary: Path
) -> None:
    places = {name: tmp_path / f"{name}.gguf" for name in ("broken", "none", "cut")}
    places["broken"].write_bytes(gguf_files.gguf())
    places["none"].write_bytes(gguf_files.gguf(gguf_files.METADATA[:4], [], data=0))
    shutil.copy(vocabulary, places["cut"])
    with places["cut"].open("r+b") as file:
        file.truncate(100_000)
    done = localllm("tokenize", *(word.format(**places) for word in words), input=data)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and done.stderr.count("\n") == 1
