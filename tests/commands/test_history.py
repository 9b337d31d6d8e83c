"""`localllm history`, and chats that are taken up again, each in a process of its own."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from localllm.commands import history as commands
from localllm.conversation import Conversation
from localllm.engines import open_engine
from localllm.history import Record, Recorder, open_history
from localllm.transcript import as_object, read_object
from localllm.tree import Node
from localllm.types import EngineOptions, Limits, Sampling
from tests.support.command import Terminal, localllm
from tests.test_history import talk
from tests.ui.chat.support import Chat, at_prompt, scripted


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with two conversations, and a script `s` for the fake engine."""
    home = tmp_path / "data"
    monkeypatch.setenv("LOCALLLM_HOME", str(home))
    (tmp_path / "s").write_text("I heard you.\n")
    history = open_history(home / "history.db")
    talk(history, tmp_path, "What is a file?", "And a *folder*?", script="A thing.")
    conversation = talk(history, tmp_path, "\x1b[2Jgreen", script="Beetles are green.")
    list(conversation.regenerate())
    history.close()
    return home


@pytest.mark.slow
def test_list_and_search(data: Path) -> None:
    shown = localllm("history", "list").stdout.splitlines()
    assert shown[0].split() == ["id", "last", "messages", "model", "title"]
    assert shown[2].endswith("What is a file?") and "\x1b" not in shown[1]
    assert localllm("history").stdout.splitlines() == shown
    records = json.loads(localllm("history", "list", "--json").stdout)
    assert [r["messages"] for r in records] == [3, 4]
    assert localllm("history", "list", "-n", "1").stderr == "1 older ones: localllm history list -n 2\n"
    assert len(localllm("history", "search", "beetles", "green").stdout.splitlines()) == 3
    assert json.loads(localllm("history", "search", "nothing", "--json").stdout) == []


@pytest.mark.slow
def test_show_and_export(data: Path, tmp_path: Path) -> None:
    records = json.loads(localllm("history", "list", "--json").stdout)
    newest, oldest = (r["id"] for r in records)
    text = localllm("history", "show", oldest[:6]).stdout
    assert "# What is a file?" in text and "## You\n\nAttached: `f.txt`\n\nWhat is a file?" in text
    assert text.index("## fake\n\nA thing.") < text.index("And a *folder*?")
    whole = json.loads(localllm("history", "export", newest, "--format", "json").stdout)
    assert len(whole["messages"]) == 3
    record, tree = read_object(whole)
    assert as_object(record, tree) == whole
    lines = [json.loads(line) for line in localllm("history", "export", "-f", "jsonl").stdout.splitlines()]
    assert [m["role"] for m in lines[1]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert lines[1]["messages"][1]["content"] == "f.txt:\n```\nfile\n```\n\nWhat is a file?"
    target = tmp_path / "out.md"
    assert localllm("history", "export", oldest, "-o", str(target)).returncode == 0
    assert localllm("history", "export", newest, "-o", str(target.with_suffix(".json"))).returncode == 0
    assert json.loads(target.with_suffix(".json").read_text()) == whole
    assert target.read_text() == text and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "exists" in localllm("history", "export", oldest, "-o", str(target)).stderr


@pytest.mark.slow
def test_rm_asks(data: Path) -> None:
    newest, oldest = (r["id"] for r in json.loads(localllm("history", "list", "--json").stdout))
    assert localllm("history", "rm", newest).returncode == 1
    assert localllm("history", "rm").returncode == 2
    assert localllm("history", "rm", newest[:5], "--yes").stderr.count("1 erased") == 1
    with Terminal("history", "rm", "--all") as terminal:
        terminal.wait(lambda t: "Erase 1? [y/N]" in t)
        terminal.send("y\r")
        assert terminal.exit_code() == 0
    assert json.loads(localllm("history", "list", "--json").stdout) == []
    assert "no conversation" in localllm("history", "show", oldest).stderr


def test_export_goes_on_past_what_cannot_be_read(data: Path) -> None:
    history = open_history(data / "history.db")
    newest, oldest = history.records()
    history._database.execute("DELETE FROM messages WHERE conversation = ? AND kind = 'user'", (newest.id,))
    done = localllm("history", "export", "--format", "json")
    assert done.returncode == 1 and json.loads(done.stdout)["id"] == oldest.id
    assert f"of the conversation {newest.id}, messages are missing" in done.stderr and done.stderr.count("\n") == 1
    history.close()


def test_nothing_that_was_said_moves_a_terminals_cursor(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = open_history(data / "history.db")
    history.save(Record("xy", "\x9b2Jtitle", "m", leaf=1), [Node(1, None, "user", "\x9b2Jred\x1b[2J")])
    controller, terminal = os.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as screen, os.fdopen(controller, "rb", buffering=0) as shown:
        monkeypatch.setattr(sys, "stdout", screen)
        commands.list_(as_json=True)
        commands.search(["2Jred"], as_json=True)
        commands.export(["xy"], "markdown", None, False)
        commands.export(["xy"], "jsonl", None, False)
        monkeypatch.undo()
        print("the end", file=screen, flush=True)
        text = ""
        while "the end" not in text:
            text += shown.read(1 << 16).decode()
    assert text.count("2Jtitle") == 4 and text.count("2Jred") == 3 and not set("\x9b\x1b") & set(text)


@pytest.mark.parametrize("words", [("show", "zz"), ("export", "zz"), ("rm", "zz", "--yes"), ("export", "-f", "pdf")])
def test_one_line_for_what_is_not_there(data: Path, words: tuple[str, ...]) -> None:
    done = localllm("history", *words)
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    "found",
    [
        {}, [], None, {"messages": 3}, {"messages": [{}]}, {"messages": [{"id": "1", "kind": "x", "content": ""}]},
        {"messages": [], "leaf": "5"}, {"messages": [{"id": "1", "parent": "1", "kind": "user", "content": ""}]},
        {"messages": [{"id": "-1", "kind": "user", "content": ""}]}, {"messages": [{"id": "f" * 40, "kind": "user", "content": ""}]},
        {"messages": [{"id": "1", "parent": "2", "kind": "user", "content": ""}, {"id": "2", "parent": "1", "kind": "user", "content": ""}]},
        {"messages": [], "settings": 3}, {"messages": [], "created": "soon"}, {"messages": [], "created": 10**400},
        {"messages": [{"id": "1", "kind": "user", "content": "", "created": float("nan")}]},
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused(found: object) -> None:
    with pytest.raises(Exception, match="this is no conversation"):
        read_object(found)


@pytest.mark.slow
def test_a_chat_goes_on(data: Path, tmp_path: Path) -> None:
    words = ("chat", "--engine", "fake", "-m", str(tmp_path / "s"))
    with Terminal(*words, "--system", "SYS", "--seed", "5") as terminal:
        terminal.wait(at_prompt)
        terminal.send("Remember 42.\r")
        terminal.wait(lambda t: "heard" in t and at_prompt(t))
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    kept = json.loads(localllm("history", "list", "--json").stdout)
    assert kept[0]["title"] == "Remember 42." and len(kept) == 3
    for again in (("--continue",), ("--resume", kept[0]["id"][:4])):
        with Terminal("chat", "--engine", "fake", *again) as terminal:
            terminal.wait(at_prompt)
            terminal.send("/show seed\r")
            terminal.wait(lambda t: "seed = 5" in t)
            terminal.send("/system\r")
            terminal.wait(lambda t: "SYS" in t)
            terminal.send("What was it?\r")
            terminal.wait(lambda t: "heard" in t and at_prompt(t))
            terminal.send("\x04")
            assert terminal.exit_code() == 0
    kept = json.loads(localllm("history", "list", "--json").stdout)
    assert len(kept) == 3 and kept[0]["messages"] == 6


@pytest.mark.parametrize(
    ("words", "environment"),
    [(("--no-history",), {}), ((), {"LOCALLLM_NO_HISTORY": "1"}), ((), {"LOCALLLM_HISTORY": "0"})],
)
def test_nothing_is_kept_where_nothing_is_wanted(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str]
) -> None:
    (tmp_path / "s").write_text("heard")
    home = tmp_path / "data"
    with Terminal(
        "chat", "--engine", "fake", "-m", str(tmp_path / "s"), *words, LOCALLLM_HOME=str(home), **environment
    ) as terminal:
        terminal.wait(at_prompt)
        terminal.send("secret\r")
        terminal.wait(lambda t: "heard" in t and at_prompt(t))
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    assert [path.name for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_a_damaged_history_does_not_keep_a_chat_from_going_on(data: Path, tmp_path: Path) -> None:
    (data / "history.db").write_bytes(b"x" * 5000)
    words = ("chat", "--engine", "fake", "-m", str(tmp_path / "s"))
    with Terminal(*words) as terminal:
        terminal.wait(lambda t: "nothing of this chat is kept" in " ".join(t.split()) and at_prompt(t))
        terminal.send("hello\r")
        terminal.wait(lambda t: "heard" in t and at_prompt(t))
    assert "damaged" in localllm("history").stderr
    with Terminal(*words, "--continue") as terminal:
        assert terminal.exit_code() == 1


@pytest.mark.slow
def test_a_killed_chat_goes_on(data: Path, tmp_path: Path) -> None:
    script = scripted(tmp_path, "I heard you.", "This takes a long time.", seconds=0.03)
    with Chat(script) as chat:
        chat.say("Remember 42.")
        chat.send("What was it?\r")
        chat.wait(lambda t: "This takes" in t)
        chat.process.kill()
    kept = json.loads(localllm("history", "list", "--json").stdout)
    assert kept[0]["title"] == "Remember 42." and kept[0]["messages"] == 3
    with Chat(script, "--continue") as chat:
        assert "without an answer: What was it?" in chat.text


@pytest.mark.slow
def test_a_resumed_chat_answers_as_the_unbroken_one(model_path: Path, tmp_path: Path) -> None:
    """Greedy and with a seed. What the cache holds of an answer was computed token by token, which rounds otherwise than
    a whole prompt does: so the unbroken chat's cache is emptied, and the model is the same one, opened once."""
    engine = open_engine("llama.cpp", model_path, EngineOptions(context=512, threads=1))
    for sampling in (Sampling(temperature=0), Sampling(temperature=1, seed=7)):
        history = open_history(tmp_path / f"{sampling.seed}.db")
        unbroken = Conversation(engine, sampling, Limits(max_tokens=12), "You are brief.", recorder=Recorder(history))
        for question in ("What is the capital of France?", "And of Italy?"):
            list(unbroken.ask(question))
        (record,) = history.records()
        tree = history.tree(record)
        resumed = Conversation(engine, sampling, Limits(max_tokens=12), record.system, tree=tree)
        assert engine.tokens(resumed.messages) == engine.tokens(unbroken.messages)
        engine.model.clear()
        expected = [(c.text, c.token) for c in unbroken.ask("Which of them is larger?")]
        engine.model.clear()
        assert [(c.text, c.token) for c in resumed.ask("Which of them is larger?")] == expected
    engine.close()
