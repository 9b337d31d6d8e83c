"""Prompts in files: what they say, what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from localllm import prompts
from localllm.errors import UsageError


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALLLM_PROMPTS", str(tmp_path))
    return tmp_path


def test_every_built_in_prompt_can_be_used() -> None:
    assert {
        "translate",
        "ask",
        "summarize",
        "write",
        "proofread",
        "explain-code",
        "commit-message",
        "shell",
        "tutor",
    } <= set(prompts.names())
    for name in prompts.names():
        prompt = prompts.load(name)
        assert prompt.description and prompt.system and not prompt.own
        values = prompt.settle(dict.fromkeys(prompt.parameters, "X"))
        assert "{{" not in prompt.instructions(values) + prompt.question(values, "TEXT") + prompt.for_chat(values)
        assert "TEXT" in prompt.question(values, "TEXT")


def test_translate() -> None:
    prompt = prompts.load("translate")
    values = prompt.settle({"to": "French"})
    assert prompt.question(values, "{{to}} Hello {{x}}") == (
        "Translate the following text into French. Keep its meaning, tone and layout.\n\n{{to}} Hello {{x}}"
    )
    assert "into French" in prompt.for_chat(values)
    with pytest.raises(UsageError, match="needs the language to translate into"):
        prompt.settle({})
    with pytest.raises(UsageError, match="no parameter 'tone'"):
        prompt.settle({"to": "x", "tone": "y"})


def test_ones_own_come_first_and_may_be_bare(own: Path) -> None:
    (own / "write.md").write_text("Write like a pirate.")
    (own / "crlf.md").write_bytes(b'\xef\xbb\xbf+++\r\nsystem = "S"\r\n+++\r\nOne\r\ntwo {{input}}\r\n')
    (own / "empty.md").write_text("+++\n+++\n")
    (own / "NOT A NAME.md").touch()
    prompt = prompts.load("write")
    assert prompt.own and prompt.question({}, "ships") == "Write like a pirate.\n\nships"
    crlf = prompts.load("crlf")
    assert (crlf.system, crlf.question({}, "x")) == ("S", "One\ntwo x")
    assert prompts.load("empty").question({}, "x") == "x"
    assert {"write", "crlf", "empty"} <= set(prompts.names()) and "NOT A NAME" not in prompts.names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("+++\nsystem = 1\n+++\n", "1 is no text"),
        ("+++\nsystem = \n+++\n", "Invalid value"),
        ("+++\nsystem = 'x'\n", "does not end with"),
        ("+++\nfrob = 'x'\n+++\n", "there is no key 'frob'"),
        ("+++\n[parameters]\nto = 'x'\n+++\n", "table"),
        ("+++\n[parameters.to]\ndefualt = 'x'\n+++\n", "there is no key 'defualt'"),
        ("+++\n[parameters.to]\ndefault = 3\n+++\n", "are texts"),
        ("+++\n[parameters.input]\n+++\n", "no name of a parameter"),
        ("+++\nsystem = 'About {{ input }}'\n+++\n", "belongs below"),
        ("+++\nparameters = 3\n+++\n", "table"),
        ("+++\n[options]\ntemperature = 'hot'\n+++\n", "not of type float"),
        ("+++\n[options]\ntemperature = -1\n+++\n", "below 0"),
        ("+++\n[options]\nlora = ['x']\n+++\n", "there is no option 'lora'"),
        ("+++\n[options]\nfrob = 1\n+++\n", "there is no option 'frob'"),
        ("+++\n+++\n{{nowhere}}", "is no parameter"),
        ("+++\na = " + "[" * 5000 + "\n+++\n", "bad.md"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"x" * 300_000, "larger than 256 kB"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(own: Path, text: str | bytes, message: str) -> None:
    path = own / "bad.md"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message) as caught:
        prompts.load("bad")
    assert "bad.md" in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "", "A", "x" * 99, "a/b", ".hidden", "a.md"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a prompt"):
        prompts.load(name)


def test_a_name_that_is_nearly_one() -> None:
    with pytest.raises(UsageError) as caught:
        prompts.load("translte")
    assert caught.value.hint == "did you mean translate?"


def test_a_folder_is_no_prompt(own: Path) -> None:
    (own / "bad.md").mkdir()
    with pytest.raises(UsageError, match="not a regular file"):
        prompts.load("bad")
