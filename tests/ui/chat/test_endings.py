"""Ctrl-C, SIGTERM and the terminal's end, at the prompt and during an answer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.support.command import Terminal, localllm
from tests.ui.chat.support import Chat, at_prompt, scripted

LONG = "a long answer " * 100


def test_ctrl_c(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, LONG, "short", seconds=0.005)) as chat:
        chat.send("\x03typed\x03")
        chat.wait(at_prompt)
        chat.send("go\r")
        chat.wait(lambda t: "answer a" in t)
        chat.send("\x03\x03")
        text = chat.wait(lambda t: "(stopped)" in t and at_prompt(t), 5)
        assert "Traceback" not in text and "^C" not in text
        chat.wait(at_prompt)
        assert re.search(r"context █+░* [1-9]\d+/", chat.text.splitlines()[-1])  # the bar counts what was said
        assert "a long answer" in chat.say("/branch")
        assert chat.say("and on") == "short"


@pytest.mark.slow
def test_ctrl_c_at_a_question_keeps_the_model(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "heard")) as chat:
        chat.send("/model qwen3:4b\r")
        chat.wait(lambda t: "Fetch it? [Y/n]" in t)
        chat.send("\x03")
        chat.wait(lambda t: "\n(stopped)\n" in t and at_prompt(t))
        assert chat.say("still here?") == "heard"


@pytest.mark.slow
def test_ctrl_z_and_fg_during_an_answer(home: Path, tmp_path: Path) -> None:
    """A shell sets the terminal as it likes it while a job is stopped; whoever goes on has to set it again."""
    with Chat(scripted(tmp_path, LONG, "short", seconds=0.005)) as chat:
        chat.send("go\r")
        chat.wait(lambda t: "answer a" in t)
        os.kill(chat.process.pid, signal.SIGSTOP)
        quiet = termios.tcgetattr(chat._master)
        shell = [*quiet]
        shell[3] |= termios.ECHO | termios.ICANON
        termios.tcsetattr(chat._master, termios.TCSANOW, shell)
        begin = len(chat.raw)
        os.kill(chat.process.pid, signal.SIGCONT)
        chat.wait(lambda _: b"\x1b[?2004h" in chat.raw[begin:])
        assert termios.tcgetattr(chat._master) == quiet
        chat.send("typed\x03")
        text = chat.wait(lambda t: "(stopped)" in t and "> typed" in t, 10)
        assert "^C" not in text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("answering", [False, True])
def test_a_signal_ends_it_and_nothing_is_lost(
    home: Path, tmp_path: Path, number: signal.Signals, code: int, answering: bool
) -> None:
    with Chat(scripted(tmp_path, "first" if not answering else LONG, seconds=0.005)) as chat:
        chat.send("remember\r")
        chat.wait(lambda t: "answer a" in t if answering else "first" in t and at_prompt(t))
        os.kill(chat.process.pid, number)
        assert chat.exit_code(10) == code
        assert "Traceback" not in chat.text
    shown = localllm("history", "export").stdout
    assert "remember" in shown and ("a long answer" if answering else "first") in shown


@pytest.mark.slow
def test_the_terminal_goes_away(home: Path, tmp_path: Path) -> None:
    chat = Chat(scripted(tmp_path, LONG, seconds=0.005))
    chat.send("remember\r")
    chat.wait(lambda t: "answer a" in t)
    os.close(chat._master)
    chat._master = os.open(os.devnull, os.O_RDONLY)
    chat.process.wait(10)
    shown = localllm("history", "export").stdout
    assert "remember" in shown and "a long answer" in shown
    os.close(chat._master)


@pytest.mark.slow
def test_ctrl_c_while_the_model_is_loaded(home: Path, model_path: Path) -> None:
    with Terminal("chat", "-m", os.fspath(model_path)) as terminal:
        time.sleep(0.7)
        terminal.send("\x03")
        try:
            ended = terminal.process.wait(10)
        except subprocess.TimeoutExpired:  # it was at the prompt already, where Ctrl-C drops the line
            terminal.wait(at_prompt)
            terminal.send("\x04")
            assert terminal.exit_code() == 0
        else:
            assert ended == 130
        assert "Traceback" not in terminal.text
