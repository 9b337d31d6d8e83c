"""Keys, pastes, completion and resizing, in a pseudo-terminal, with scripted answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import Terminal
from tests.ui.chat.support import Chat, at_prompt, prompts, scripted


@pytest.mark.slow
def test_several_lines(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "heard")) as chat:
        for typed in ("one\x1b\rtwo", "one\ntwo", "\x1b[200~one\ntwo\x1b[201~", '"""one\rtwo"""'):
            heard = chat.text.count("heard")
            chat.send(typed)
            chat.wait(lambda t: "one\n  two" in t)
            assert chat.text.count("heard") == heard
            chat.send("\r")
            chat.wait(lambda t, n=heard: t.count("heard") == n + 1 and at_prompt(t))
        chat.say("/multiline")
        chat.send("three\rfour")
        chat.wait(lambda t: "> three\n  four" in t)
        chat.send("\x1b\r")
        chat.wait(lambda t: t.count("heard") == 5 and at_prompt(t))
        chat.send("\x04")
        assert chat.exit_code() == 0
    history = (home / "chat-history").read_text()
    assert history.count("+one\n+two") == 1 and '+"""one\n+two"""' in history and "+three\n+four" in history


@pytest.mark.slow
def test_search_vi_and_redraw(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "heard")) as chat:
        chat.say("alpha beta")
        chat.say("gamma")
        chat.send("\x12beta")
        chat.wait(lambda t: "I-search backward: beta" in t and t.count("> alpha beta") == 2)
        chat.send("\x03")
        chat.send("\x0c")
        chat.wait(lambda t: prompts("\n".join(chat.screen.display)) == 1)
        chat.send("/set vi yes\r")
        chat.wait(lambda t: "vi = yes" in t and at_prompt(t))
        chat.send("word\x1b")
        chat.settle(0.8)
        chat.send("0iX\x1bA!\r")
        chat.wait(lambda t: "> Xword!" in t and at_prompt(t))


@pytest.mark.slow
def test_completion(home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with Chat(scripted(tmp_path, "heard"), columns=120) as chat:
        for typed, line in (
            ("/und\t", "> /undo"),
            ("/set temper\t", "> /set temperature"),
            ("/set flash_attention of\t", "> /set flash_attention off"),
            ("/model smollm2:135\t", "> /model smollm2:135m"),
            (f"/export {tmp_path}/not\t", f"> /export {tmp_path}/notes.txt"),
            (f"look at @{tmp_path}/no\t", f"> look at @{tmp_path}/notes.txt"),
        ):
            chat.send(typed)
            chat.wait(lambda t, wanted=line: any(wanted == row.rstrip() for row in t.splitlines()), 20)
            chat.send("\x03")
            chat.wait(at_prompt)
        chat.send("/s")
        chat.wait(lambda t: "show the options, or one with what it does" in t, 20)


@pytest.mark.slow
def test_a_paste_of_five_thousand_lines_and_of_a_megabyte(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "heard"), "-c", "3000000") as chat:
        lines = "".join(f"line {n}\n" for n in range(5000))
        for paste, mark, size in ((lines, "[pasted 5001 lines, #1]", len(lines)), ("x" * 1_000_000, "#1]", 1_000_000)):
            heard = chat.text.count("heard")
            chat.send(f"\x1b[200~{paste}\x1b[201~")
            chat.wait(lambda t, m=mark: m in t)
            assert chat.text.count("heard") == heard
            chat.send("\r")
            chat.wait(lambda t, n=heard: t.count("heard") == n + 1 and at_prompt(t))
            assert f"after {size}" in chat.say("/tokens") or size == 1_000_000
        assert "1000000 characters" in chat.text


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_resize_while_an_answer_streams(home: Path, tmp_path: Path, columns: int, rows: int) -> None:
    words = [f"w{n}日é" for n in range(120)]
    answer = " ".join(words) + "\n\n```python\n" + "print('日本語')\n" * 5 + "```\n\nThe end."
    with Chat(scripted(tmp_path, answer, seconds=0.001), columns=columns, rows=rows) as chat:
        chat.send("go\r")
        chat.wait(lambda t: "w30" in t)
        chat.resize(60, 20)
        chat.wait(lambda t: "w80" in t)
        chat.resize(columns, rows)
        text = chat.wait(lambda t: "The end." in t and at_prompt(t))
        for word in words[90:]:
            assert word in text
        assert text.count("print('日本語')") == 5


@pytest.mark.slow
def test_what_is_typed_during_an_answer_waits(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "a long answer " * 20, "short", seconds=0.003)) as chat:
        chat.send("go\r")
        chat.wait(lambda t: "answer a" in t)
        chat.send("qqqq\x1b[D\x1b[DX")
        text = chat.wait(lambda t: "> qqXqq" in t)
        assert "qq" not in text.split("> qqXqq")[0]
        chat.send("\r")
        chat.wait(lambda t: "short" in t and at_prompt(t))


def test_what_is_pasted_during_an_answer_stays_one_message(home: Path, tmp_path: Path) -> None:
    """The terminal marks a paste only where it was asked to, and a prompt that ends takes that back."""
    with Chat(scripted(tmp_path, "a long answer " * 20, "short", seconds=0.003)) as chat:
        chat.send("go\r")
        chat.wait(lambda t: "answer a" in t)
        assert chat.raw.rfind(b"\x1b[?2004h") > chat.raw.rfind(b"\x1b[?2004l")
        chat.send("\x1b[200~one\r\ttwo\x1b[201~ and \x1b[200~" + "line\r" * 500 + "\x1b[201~\x03")
        chat.wait(lambda t: "(stopped)" in t and "> one\n      two and [pasted 501 lines, #1]" in t)
        chat.send("\x03")
        chat.wait(at_prompt)
        chat.send("\x04")
        assert chat.exit_code() == 0
        assert chat.raw.rfind(b"\x1b[?2004h") < chat.raw.rfind(b"\x1b[?2004l")


@pytest.mark.slow
def test_raw_plain_and_dumb(home: Path, tmp_path: Path) -> None:
    script = scripted(tmp_path, "plain **text**\n\x1b[2J")
    with Chat(script, "--raw") as chat:
        assert "plain **text**\n␛[2J" in chat.say("go")
    with Chat(script, TERM="dumb") as chat:
        chat.send("go\r")
        chat.wait(lambda t: "plain **text**\n␛[2J" in t)
        assert b"\x1b[2m" not in chat.raw and b"\x1b[1m" not in chat.raw
    with Chat(script, NO_COLOR="1") as chat:
        chat.say("go")
        chat.say("/nothing")
        assert not [c for c in range(30, 48) if f"\x1b[{c}m".encode() in chat.raw or f";{c}m".encode() in chat.raw]


@pytest.mark.slow
def test_the_picker(home: Path, tmp_path: Path) -> None:
    script = scripted(tmp_path, "first")
    for question in ("about dogs", "about cats"):
        with Chat(script) as chat:
            chat.say(question)
            chat.send("\x04")
            chat.exit_code()
    for keys, shown in (("\x1b[B\r", "> about dogs"), ("cats\r", "> about cats")):
        with Terminal("chat", "--engine", "fake", "-m", str(script), "--resume") as terminal:
            terminal.wait(lambda t: "Which conversation?" in t and "about dogs" in t)
            terminal.send(keys)
            terminal.wait(lambda t, s=shown: s in t and at_prompt(t))
    with Terminal("chat", "--engine", "fake", "-m", str(script), "--resume") as terminal:
        terminal.wait(lambda t: "Which conversation?" in t)
        terminal.send("\x1b")
        assert terminal.exit_code() == 2
