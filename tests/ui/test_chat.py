"""The chat in a real pseudo-terminal, on the real model; pyte keeps the screen."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.command import Terminal

GREETING = "Ctrl-D leaves"


def chat(*words: str, **terminal: object) -> Terminal:
    return Terminal("chat", "--seed", "4", *words, **terminal)  # type: ignore[arg-type]


def at_prompt(text: str) -> bool:
    """Whether the chat waits for input: what is typed earlier reaches it through the line discipline, not its keys."""
    return text.endswith("\n>")


def prompts(text: str) -> int:
    return sum(line.startswith(">") for line in text.splitlines())


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_conversation(home: Path, columns: int, rows: int) -> None:
    with chat("-n", "40", columns=columns, rows=rows) as terminal:
        text = terminal.wait(lambda t: GREETING in t and prompts(t) == 1)
        assert text.startswith("smollm2:135m")
        terminal.send("What is gravity?\r")
        first = terminal.wait(lambda t: prompts(t) == 2 and at_prompt(t))
        answer = first.split("What is gravity?", 1)[1].rstrip().rstrip(">").strip()
        assert answer
        terminal.send("/show seed\r")
        terminal.wait(lambda t: "seed = 4" in t)
        terminal.send("/bye\r")
        assert terminal.exit_code() == 0
    history = home / "chat-history"
    assert "What is gravity?" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_ctrl_d_leaves_and_history_comes_back(home: Path) -> None:
    with chat("-n", "3") as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        terminal.send("remember me\r")
        terminal.wait(lambda t: "remember me" in t and at_prompt(t))
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    with chat("-n", "3") as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        terminal.send("\x1b[A")
        terminal.wait(lambda t: "> remember me" in t)


def test_ctrl_c_stops_the_answer_and_keeps_it(home: Path) -> None:
    with chat("--ignore-eos", "--temperature", "0") as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        terminal.send("Tell me a long story about a dog.\r")
        terminal.wait(lambda t: len(t.split("about a dog.")[-1]) > 150)
        terminal.send("\x03")
        stopped = terminal.wait(lambda t: "(stopped)" in t, seconds=3)
        assert "Traceback" not in stopped and "^C" not in stopped
        terminal.wait(lambda t: at_prompt(t))
        terminal.send("\x03\x03")  # at the prompt it only drops the line
        terminal.settle()
        assert terminal.process.poll() is None
        terminal.send("/set max_tokens 5\r")
        terminal.wait(lambda t: "max_tokens = 5" in t)
        terminal.send("Go on.\r")
        terminal.wait(lambda t: "the limit of tokens was reached" in t and at_prompt(t))
        terminal.send("\x04")
        assert terminal.exit_code() == 0


def test_slash_commands(home: Path) -> None:
    with chat() as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        for line, answer in (
            ("/help", "forget the conversation"),
            ("/system You are brief.", "System prompt: You are brief."),
            ("/system", "System prompt: You are brief."),
            ("/system none", "System prompt: (none)"),
            ("/set temperature 0.5", "temperature = 0.5"),
            ("/set top-k=7", "top_k = 7"),
            ("/set seed none", "seed = (not set)"),
            ("/set temperature hot", "'hot' is not a number"),
            ("/set top_p 4", "4 is above 1"),
            ("/set threads 1", "fixed while the model is loaded"),
            ("/set frob 1", "there is no option 'frob'"),
            ("/show top_p", "top_p = 0.9"),
            ("/clear", "The conversation is forgotten"),
            ("/frob", "there is no /frob"),
        ):
            before = terminal.text.count(answer)
            terminal.send(line + "\r")
            terminal.wait(lambda t, a=answer, b=before: t.count(a) > b, seconds=10)
        terminal.send("/sh\t")
        terminal.wait(lambda t: t.rstrip().endswith("> /show"), seconds=10)


def test_several_lines_by_alt_enter_and_by_paste(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_text("heard\n")
    with Terminal("chat", "--engine", "fake", "-m", str(script)) as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        terminal.send("one\x1b\rtwo")
        terminal.wait(lambda t: "> one\n  two" in t)
        terminal.send("\r")
        terminal.wait(lambda t: "heard" in t)
        terminal.send("\x1b[200~three\nfour\n\x1b[201~")
        terminal.wait(lambda t: "> three\n  four" in t)
        assert terminal.text.count("heard") == 1
        terminal.send("\r")
        terminal.wait(lambda t: t.count("heard") == 2 and at_prompt(t))
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    history = (home / "chat-history").read_text()
    assert "+one\n+two" in history and "+three\n+four" in history


def test_an_answer_cannot_touch_the_terminal(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_bytes(
        b"safe \x1b]0;title\x07\x1b[2J\x1b[31m \xc2\x9b5n \x7f and a [link](http://x/\x1b[7m) `\x1b[8m`\n"
    )
    with Terminal("chat", "--engine", "fake", "-m", str(script)) as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        start = len(terminal.raw)
        terminal.send("go\r")
        terminal.wait(lambda t: "safe" in t and at_prompt(t))
        raw = terminal.raw[start:]
    for hostile in (b"\x1b]0;", b"\x1b[2J", b"\x1b[31m", b"\xc2\x9b", b"\x1b[8m", b"\x7f"):
        assert hostile not in raw


def test_markdown_is_drawn(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_text(
        "# Title\n\nSome **bold** text.\n\n- a\n- b\n\n```python\nprint(1)\n```\n\n| x | y |\n|---|---|\n| 1 | 2 |\n"
    )
    for environment in ({}, {"NO_COLOR": "1"}):
        with Terminal("chat", "--engine", "fake", "-m", str(script), **environment) as terminal:
            terminal.wait(lambda t: prompts(t) == 1)
            terminal.send("go\r")
            text = terminal.wait(lambda t: "1  2" in t and at_prompt(t))
            assert "# Title" in text and "Some bold text." in text and " • a" in text
            assert "**" not in text and "```" not in text
            # A name of an ANSI colour, 30 to 37 and 90 to 97, is colour; bold and underline are not.
            colours = [c for c in range(30, 38) if f"\x1b[{c}m".encode() in terminal.raw]
            assert bool(environment) != bool(colours or b"\x1b[9" in terminal.raw)


def test_a_dumb_terminal_gets_plain_text(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_text("plain **text**\n")
    with Terminal("chat", "--engine", "fake", "-m", str(script), TERM="dumb") as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        terminal.send("go\r")
        terminal.wait(lambda t: "plain **text**" in t)


def test_a_prompt_that_is_too_long_ends_the_turn_not_the_chat(home: Path) -> None:
    with chat("-c", "128", "-n", "4") as terminal:
        terminal.wait(lambda t: prompts(t) == 1)
        terminal.send("word " * 200 + "\r")
        terminal.wait(lambda t: "the context holds 128" in t)
        terminal.send("Hi\r")
        terminal.wait(lambda t: "> Hi" in t and at_prompt(t))
        terminal.send("\x04")
        assert terminal.exit_code() == 0


def test_run_without_a_prompt_opens_the_chat(home: Path) -> None:
    with Terminal("run", "smollm2:135m", "-n", "4") as terminal:
        terminal.wait(lambda t: GREETING in t and prompts(t) == 1)
        terminal.send("\x04")
        assert terminal.exit_code() == 0


def test_a_read_only_home_keeps_nothing_and_says_so(tmp_path: Path, model_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with Terminal("chat", "-m", os.fspath(model_path), LOCALLLM_HOME=str(blocked / "data"), columns=200) as terminal:
        terminal.wait(lambda t: "this chat's input is not kept" in " ".join(t.split()) and prompts(t) == 1)
