"""The chat's /commands, in a pseudo-terminal, with scripted answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.support.command import Terminal, localllm
from tests.ui.chat.support import Chat, at_prompt, scripted

THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}<think></think>"


@pytest.mark.slow
def test_options_and_the_system_prompt(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "one")) as chat:
        for line, shown in (
            ("/help", "begin a new conversation"),
            ("/help regen", "/regen\nanother answer"),
            ("/system You are brief.", "System prompt: You are brief."),
            ("/system none", "System prompt: (none)"),
            ("/set temperature 0.5", "temperature = 0.5"),
            ("/set top-k=7", "top_k = 7"),
            ("/set seed none", "seed = (not set)"),
            ("/set temperature hot", "'hot' is not a number"),
            ("/set top_p 4", "4 is above 1"),
            ("/set temprature 1", "there is no option 'temprature' (temperature? /show lists them)"),
            ("/set context 512", "context = 512"),
            ("/set raw yes", "raw = yes"),
            ("/show top_p", "top_p = 0.95\n"),
            ("/show flash_attention", "(auto, on, off)"),
            ("/show", "Engine (a change loads the model again)\n  context               512"),
            ("/think low", "low; hidden."),
            ("/think show", "low; shown."),
            ("/think loud", "show, hide, on, off, minimal"),
            ("/regem", "there is no /regem (/regen? /help lists them all)"),
            ("/", "there is no / (/help lists them all)"),
            ("/clear", "The conversation is forgotten"),
        ):
            assert shown in chat.say(line), line
        assert "0/512" in chat.text
        assert chat.say("/etc/passwd is a file") == "one"  # a path is no command


def test_turns_are_taken_back_asked_again_and_branched(home: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'edited question' > \"$1\"\n")
    editor.chmod(0o755)
    with Chat(scripted(tmp_path, "first", "second", "third", "fourth"), EDITOR=str(editor)) as chat:
        assert "nothing was asked yet" in chat.say("/undo")
        assert "there is no answer yet" in chat.say("/regen")
        assert chat.say("a question") == "first"
        assert chat.say("/regen") == "second"
        branches = chat.say("/branch")
        assert "  1  first" in branches and "* 2  second" in branches
        assert chat.say("/branch 1") == "> a question\nfirst"
        assert "there is no branch 7" in chat.say("/branch 7")
        assert chat.say("/edit") == "third"
        assert chat.say("/undo") == "Taken back: edited question"
        assert chat.say("/edit something else") == "nothing was asked yet (ask something first)"
        assert "3  third" in chat.say("/branch")
        assert chat.say("/clear").startswith("The conversation is forgotten")
        assert "a question" in chat.say("/history")
        assert chat.say("/history edited").count("edited question") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("editor", "shown"), [("false", "false ended with 1"), ("./none", "cannot be run"), ("'", "EDITOR=")]
)
def test_an_editor_that_fails(home: Path, tmp_path: Path, editor: str, shown: str) -> None:
    with Chat(scripted(tmp_path, "one", "two"), EDITOR=editor, VISUAL="") as chat:
        chat.say("a question")
        assert shown in chat.say("/edit")
        assert chat.say("and on") == "two"


@pytest.mark.slow
def test_files_are_saved_loaded_and_exported(home: Path, tmp_path: Path) -> None:
    saved, exported = tmp_path / "c.json", tmp_path / "c.md"
    with Chat(scripted(tmp_path, "first", "second", "third"), columns=200) as chat:
        assert "nothing was said yet" in chat.say(f"/save {saved}")
        chat.say("a question")
        chat.say("/regen")
        assert chat.say(f"/save {saved}") == f"Saved: {saved}"
        assert "exists" in chat.say(f"/save {saved}")
        assert chat.say(f"/export {exported}") == f"Exported: {exported}"
        assert "which format" in chat.say("/export c.txt")
        chat.say("/clear")
        assert "a question" in chat.say(f"/load {saved}")
        assert chat.say("/branch").count("\n") == 2
    assert "second" in exported.read_text() and "first" not in exported.read_text()
    assert len(json.loads(saved.read_text())["messages"]) == 3


@pytest.mark.slow
def test_files_are_attached(home: Path, tmp_path: Path) -> None:
    for name in ("one.txt", "two words.txt", "three.md"):
        (tmp_path / name).write_text(f"text of {name}\n")
    (tmp_path / "binary").write_bytes(b"\x00\xff")
    with Chat(scripted(tmp_path, "seen"), columns=200) as chat:
        assert chat.say(f"/file {tmp_path}/*.txt").count("attached: ") == 2
        assert "2 files attached" in chat.text
        assert "is not text" in chat.say(f"/file {tmp_path}/binary")
        shown = chat.say(f"compare with @{tmp_path}/three.md.")
        assert shown.count("attached: ") == 1 and shown.endswith("seen")
        chat.send("\x04")
        chat.exit_code()
    told = json.loads(localllm("history", "export", "--format", "jsonl").stdout)["messages"][0]["content"]
    assert all(f"text of {name}" in told for name in ("one.txt", "two words.txt", "three.md"))


@pytest.mark.slow
def test_hostile_files_are_refused_in_a_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "deep").write_text("[" * 200_000)
    (tmp_path / "list").write_text("[1, 2]")
    (tmp_path / "circle").write_text(
        '{"leaf": "1", "messages": [{"id": "1", "parent": "1", "kind": "user", "content": "x"}]}'
    )
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(100 << 20)
    with Chat(scripted(tmp_path, "one"), columns=200) as chat:
        for name in ("binary", "deep", "list", "circle", "huge", "none", "."):
            shown = chat.say(f"/load {tmp_path / name}")
            assert shown.count("\n") == 0 and shown and "Traceback" not in shown, name
        assert chat.say("still here?") == "one"


@pytest.mark.slow
def test_copy_by_the_terminal_itself(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "Text.\n\n```sh\nls\n```\n"), DISPLAY="", WAYLAND_DISPLAY="", TMUX="") as chat:
        assert "there is no answer yet" in chat.say("/copy")
        chat.say("how?")
        for line, text in (("/copy", "Text.\n\n```sh\nls\n```\n"), ("/copy code", "ls\n")):
            assert "Copied" in chat.say(line)
            assert b"\x1b]52;c;" + base64.b64encode(text.encode()) + b"\x07" in chat.raw
        assert "no clipboard can be read" in chat.say("/paste")


@pytest.mark.slow
def test_a_model_switch_that_fails_keeps_the_model(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("from the other")
    with Chat(scripted(tmp_path, "first", "second"), columns=200) as chat:
        chat.say("a question")
        assert "looks like" in chat.say("/model none/such") or "not" in chat.text
        assert "cannot be read" in chat.say(f"/model {tmp_path}") or "no" in chat.text
        assert chat.say("and on") == "second"
        assert f"Now {other}" in chat.say(f"/model {other}")
        assert chat.say("and now?") == "from the other"
        assert "a question" in chat.say("/branch") or "from the other" in chat.text


@pytest.mark.slow
def test_what_it_costs(home: Path, tmp_path: Path) -> None:
    with Chat(scripted(tmp_path, "0123456789"), "-c", "100", "--system", "12345") as chat:
        assert "there is no answer yet" in chat.say("/stats")
        chat.say("a question")
        used = chat.say("/context").split()[0]
        assert "of 100 tokens" in chat.text and "system" in chat.text
        assert f" {used}/100 {used} %" in chat.text.splitlines()[-1]  # the bar tells the same number
        assert "last answer: 11 tokens" in chat.say("/tokens")
        assert chat.say("/tokens four") == "5 tokens"
        assert "answers     1" in chat.say("/stats")


@pytest.mark.slow
def test_a_full_context_is_summarized_and_the_summary_shown(home: Path, tmp_path: Path) -> None:
    answers = ("a" * 200, "b" * 200, "the summary", "the answer")
    with Chat(scripted(tmp_path, *answers), "-c", "1300", "-n", "210") as chat:
        chat.say("question one " * 15)
        chat.say("question two " * 15)
        shown = chat.say("question three " * 30)
        assert "the context of 1300 tokens is full" in shown
        assert "Summary of what came before" in shown and "│ the summary" in shown
        assert shown.endswith("the answer")
        assert "the summary" in chat.say("/context")


@pytest.mark.slow
def test_thinking_is_a_line_until_ctrl_o(home: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(THINKING.replace("<think></think>", "{# <think></think> #}"))
    thought = "<think>I wonder. " + "x" * 30 + "</think>The answer."
    with Chat(scripted(tmp_path, thought, thought, seconds=0.01), "--template", str(template)) as chat:
        shown = chat.say("why?")
        assert "thought for" in shown and "I wonder" not in shown and "The answer." in shown
        chat.send("\x0f")
        chat.wait(lambda t: "│ I wonder. xx" in t and at_prompt(t))
        chat.send("\x0f")  # hidden again
        chat.send("again\r")
        chat.wait(lambda t: "> again" in t and "(thinking," in t)
        chat.send("\x0f")
        shown = chat.wait(lambda t: t.count("The answer.") == 2 and at_prompt(t))
        assert shown.count("│ I wonder. xx") == 2 and shown.count("thought for") == 1


@pytest.mark.slow
def test_a_conversation_is_taken_up_again(home: Path, tmp_path: Path) -> None:
    script = scripted(tmp_path, "first", "second")
    for question in ("about dogs", "about cats"):
        with Chat(script) as chat:
            chat.say(question)
            chat.send("\x04")
            assert chat.exit_code() == 0
    with Chat(script, "--continue") as chat:
        assert "> about cats\nfirst" in chat.text
        identity = next(line.split()[0] for line in chat.say("/history").splitlines() if "dogs" in line)
        assert "> about dogs\nfirst" in chat.say(f"/load {identity}")
        chat.say("/forget")
        assert "dogs" not in chat.say("/history")
    assert "cats" in localllm("history", "list").stdout


@pytest.mark.slow
def test_a_conversation_whose_model_has_gone_goes_on_with_another(home: Path, tmp_path: Path) -> None:
    script = scripted(tmp_path, "first")
    with Chat(script) as chat:
        chat.say("about dogs")
        chat.send("\x04")
        assert chat.exit_code() == 0
    other = script.rename(tmp_path / "other")
    with Terminal("chat", "--engine", "fake", "--continue", columns=300) as terminal:
        assert terminal.exit_code() == 3
        assert "(localllm chat --continue -m MODEL goes on with another one)" in terminal.text
    with Chat(other, "--continue") as chat:
        assert "> about dogs\nfirst" in chat.text


def test_a_conversation_that_was_all_taken_back_is_gone_on_with_only_where_there_is_no_other(
    home: Path, tmp_path: Path
) -> None:
    script = scripted(tmp_path, "first")
    with Chat(script) as chat:
        chat.say("about dogs")
        chat.say("/undo")
    with Chat(script, "--continue") as chat:
        assert "about dogs (all of it was taken back; /branch goes to what was said)" in chat.text
        assert chat.say("/branch 1") == "> about dogs\nfirst"
        chat.say("/clear")
        chat.say("about cats")
        chat.say("/undo")
    with Chat(script, "--continue") as chat:
        assert "about dogs (2 messages)" in chat.text
