"""The chat in a real pseudo-terminal, on the real model; pyte keeps the screen."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.command import Terminal
from tests.ui.chat.support import Chat, at_prompt, prompts, scripted

GREETING = "Ctrl-D leaves"


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), pytest.param(200, 50, marks=pytest.mark.slow)])
def test_a_conversation_with_the_real_model(home: Path, columns: int, rows: int) -> None:
    with Terminal("chat", "--seed", "4", "-n", "6", columns=columns, rows=rows) as terminal:
        text = terminal.wait(lambda t: GREETING in t and at_prompt(t))
        assert text.startswith("smollm2:135m")
        terminal.send("What is gravity?\r")
        text = terminal.wait(lambda t: "(cut: the limit of tokens was reached)" in t and at_prompt(t))
        assert text.split("What is gravity?\n", 1)[1].strip()
        assert "smollm2:135m │ llama.cpp │ context █" in text and "tokens/s" in text
        terminal.send("/bye\r")
        assert terminal.exit_code() == 0
    history = home / "chat-history"
    assert "What is gravity?" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


@pytest.mark.slow
def test_history_comes_back(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "heard")) as chat:
        chat.say("remember me")
        chat.send("\x04")
        assert chat.exit_code() == 0
    with Chat(scripted(tmp_path, "heard")) as chat:
        chat.send("\x1b[A")
        chat.wait(lambda t: "> remember me" in t)


def test_an_answer_cannot_touch_the_terminal(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_bytes(
        b"safe \x1b]0;title\x07\x1b[2J\x1b[31m \xc2\x9b5n \x7f and a [link](http://x/\x1b[7m) `\x1b[8m`\n"
    )
    with Chat(script) as terminal:
        start = len(terminal.raw)
        terminal.send("go\r")
        terminal.wait(lambda t: "safe" in t and at_prompt(t))
        raw = terminal.raw[start:]
    for hostile in (b"\x1b]0;", b"\x1b[2J", b"\x1b[31m", b"\xc2\x9b", b"\x1b[8m", b"\x7f"):
        assert hostile not in raw


@pytest.mark.slow
def test_markdown_is_drawn(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_text(
        "# Title\n\nSome **bold** text.\n\n- a\n- b\n\n```python\nprint(1)\n```\n\n| x | y |\n|---|---|\n| 1 | 2 |\n"
    )
    for environment in ({}, {"NO_COLOR": "1"}):
        with Chat(script, **environment) as terminal:
            terminal.send("go\r")
            text = terminal.wait(lambda t: "1  2" in t and at_prompt(t))
            assert "# Title" in text and "Some bold text." in text and " • a" in text
            assert "**" not in text and "```" not in text
            # A name of an ANSI colour, 30 to 37 and 90 to 97, is colour; bold and underline are not.
            colours = [c for c in range(30, 38) if f"\x1b[{c}m".encode() in terminal.raw]
            assert bool(environment) != bool(colours or b"\x1b[9" in terminal.raw)


def test_a_prompt_that_is_too_long_ends_the_turn_not_the_chat(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "hello"), "-c", "128") as chat:
        assert "the context holds 128" in chat.say("word " * 200)
        assert chat.say("Hi") == "hello"


@pytest.mark.slow
def test_run_without_a_prompt_opens_the_chat(home: Path) -> None:
    with Terminal("run", "smollm2:135m", "-n", "4") as terminal:
        terminal.wait(lambda t: GREETING in t and at_prompt(t))
        terminal.send("\x04")
        assert terminal.exit_code() == 0


def test_a_read_only_home_keeps_nothing_and_says_so(tmp_path: Path, model_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with Terminal("chat", "-m", os.fspath(model_path), LOCALLLM_HOME=str(blocked / "data"), columns=200) as terminal:
        terminal.wait(lambda t: "this chat's input is not kept" in " ".join(t.split()) and prompts(t) == 1)
