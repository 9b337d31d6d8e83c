"""Conversations are kept: by one file, for its owner alone, through kills, by several at once."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from localllm.conversation import Conversation
from localllm.engines import open_engine
from localllm.errors import HistoryError
from localllm.history import History, Record, Recorder, open_history
from localllm.text.attachments import Attachment
from localllm.tree import Node, Tree
from localllm.types import EngineOptions, Limits, Sampling


@pytest.fixture
def history(tmp_path: Path) -> History:
    return open_history(tmp_path / "new" / "history.db")


def talk(history: History, tmp_path: Path, *questions: str, script: str = "an answer") -> Conversation:
    path = tmp_path / "script"
    path.write_text(script)
    engine = open_engine("fake", path, EngineOptions(context=1 << 20))
    conversation = Conversation(
        engine, Sampling(seed=3), Limits(max_tokens=50), "SYS", model="fake", recorder=Recorder(history)
    )
    for question in questions:
        list(conversation.ask(question, (Attachment("f.txt", "file\n"),) if "file" in question else ()))
    return conversation


def test_what_was_said_comes_back(history: History, tmp_path: Path) -> None:
    conversation = talk(history, tmp_path, "one\nline", "two with a file")
    list(conversation.regenerate())
    list(conversation.compact())
    (record,) = history.records()
    assert (record.title, record.model, record.system, record.messages) == ("one line", "fake", "SYS", 6)
    assert record.settings["seed"] == 3 and record.settings["max_tokens"] == 50
    tree = history.tree(record)
    assert tree.nodes == conversation.tree.nodes and tree.leaf == conversation.tree.leaf
    assert tree.last("user") == conversation.tree.last("user")
    assert tree.last("user").attachments == (Attachment("f.txt", "file\n"),)
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600
    for beside in history.path.parent.iterdir():
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600, beside


def test_an_empty_conversation_is_not_kept(history: History, tmp_path: Path) -> None:
    conversation = talk(history, tmp_path)
    conversation.clear()
    assert history.records() == []
    list(conversation.ask("one"))
    conversation.clear()
    list(conversation.ask("two"))
    assert [r.title for r in history.records()] == ["two", "one"]
    conversation.branch()
    assert [r.title for r in history.records()] == ["two", "two", "one"]
    conversation.forget()
    assert [r.title for r in history.records()] == ["two", "one"]


def test_search(history: History, tmp_path: Path) -> None:
    talk(history, tmp_path, "Wie heißt der Käfer?", 'He said "quoted" AND NOT (this) OR that*', "日本語の質問です")
    talk(history, tmp_path, "another thing", script="the beetle is green")
    assert [h.record.title for h in history.search("BEETLE green")] == ["another thing"]
    assert history.search("beetle")[0].kind == "assistant"
    assert "Käfer" in history.search("kafer")[0].excerpt
    for hostile in ('"', "AND", "(", "that*", "NOT (this", 'content:"x', "*"):
        history.search(hostile)
    assert len(history.search("質問")) == 1
    assert history.search("nowhere to be found") == []
    assert history.search("   ") == []


def test_ids_are_abbreviated(history: History, tmp_path: Path) -> None:
    talk(history, tmp_path, "one")
    (record,) = history.records()
    assert history.find(record.id[:3]).id == record.id
    for prefix in ("", "zz", "%"):
        with pytest.raises(HistoryError, match="conversation"):
            history.find(prefix)


def test_what_is_erased_is_gone_from_the_file(history: History, tmp_path: Path) -> None:
    talk(history, tmp_path, "the secret word is xylophone file")
    talk(history, tmp_path, "kept")
    (record,) = [r for r in history.records() if r.title != "kept"]
    history.remove([record.id])
    assert [r.title for r in history.records()] == ["kept"]
    assert history.search("xylophone") == []
    history.close()
    assert b"xylophone" not in history.path.read_bytes()
    reopened = open_history(history.path)
    assert reopened._database.execute("SELECT count(*) FROM attachments").fetchone() == (0,)


def test_a_kill_loses_only_the_answer_under_way(tmp_path: Path) -> None:
    """A real process, killed while it answers the third question."""
    code = (
        "import sys, os\nfrom pathlib import Path\nfrom tests.test_history import talk\n"
        "from localllm.history import open_history\nhere = Path(sys.argv[1])\n"
        "c = talk(open_history(here / 'h.db'), here, 'one', 'two')\n"
        "for chunk in c.ask('three'):\n    print('.', flush=True)\n    sys.stdin.read(1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    history = open_history(tmp_path / "h.db")
    (record,) = history.records()
    tree = history.tree(record)
    assert [n.content for n in tree.path()] == ["one", "an answer", "two", "an answer", "three"]
    resumed = talk(history, tmp_path)
    resumed = Conversation(resumed.engine, Sampling(), Limits(), tree=tree, recorder=Recorder(history, record, tree))
    assert resumed.unanswered is not None
    list(resumed.ask("three"))
    assert history.records()[0].id == record.id and history.records()[0].messages == 7


@pytest.mark.slow
def test_two_processes_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.test_history import talk\n"
        "from localllm.history import open_history\nhere = Path(sys.argv[1]) / sys.argv[2]\nhere.mkdir()\n"
        "talk(open_history(here.parent / 'h.db'), here, *[f'{sys.argv[2]} {i}' for i in range(20)])\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    records = open_history(tmp_path / "h.db").records()
    assert [r.messages for r in records] == [40] * 4


def test_what_was_erased_elsewhere_does_not_come_back(history: History, tmp_path: Path) -> None:
    conversation = talk(history, tmp_path, "one")
    open_history(history.path).remove([history.records()[0].id])
    notices = [chunk.text for chunk in conversation.ask("two") if chunk.kind == "notice"]
    assert notices == ["this conversation was erased elsewhere; from here on nothing is kept"]
    assert not [chunk for chunk in conversation.ask("three") if chunk.kind == "notice"]
    assert len(conversation.turns) == 6 and history.records() == []
    assert not conversation.forget()


def test_ids_that_are_there_already_are_no_damage(history: History) -> None:
    history.save(Record("ab", "t", "m"), [Node(1, None, "user", "x")])
    with pytest.raises(HistoryError, match="UNIQUE") as caught:
        history.save(Record("cd", "t", "m"), [Node(1, None, "user", "x")])
    assert "damaged" not in str(caught.value)


def test_two_that_resume_one_conversation_both_keep_what_they_said(history: History, tmp_path: Path) -> None:
    first = talk(history, tmp_path, "one")
    (record,) = history.records()
    tree = history.tree(record)
    second = Conversation(first.engine, Sampling(), Limits(), tree=tree, recorder=Recorder(history, record, tree))
    list(first.ask("from the first"))
    list(second.ask("from the second"))
    (record,) = history.records()
    tree = history.tree(record)
    assert {leaf.parent for leaf in tree.leaves()} == {n.id for n in tree.nodes.values() if "from" in n.content}
    assert tree.last("user").content == "from the second"


def make_newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


def make_damaged(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 100)


def make_cut(path: Path) -> None:
    open_history(path).close()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (make_newer, "newer localllm"),
        (make_damaged, "not a database"),
        (make_cut, "history"),
        (Path.mkdir, "directory"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, spoil: object, message: str) -> None:
    path = tmp_path / "history.db"
    spoil(path)
    with pytest.raises(HistoryError, match=message):
        open_history(path).records()


def test_a_full_disk_ends_the_history_and_not_the_chat(history: History, tmp_path: Path) -> None:
    conversation = talk(history, tmp_path, "one")
    pages = history._database.execute("PRAGMA page_count").fetchone()[0]
    history._database.execute(f"PRAGMA max_page_count = {pages}")
    chunks = list(conversation.ask("x" * 2000, (Attachment("big", "y" * 100_000),)))
    (notice,) = [c.text for c in chunks if c.kind == "notice"]
    assert "full" in notice and "nothing is kept" in notice
    assert [c.kind for c in conversation.ask("and on")].count("notice") == 0
    assert len(conversation.turns) == 6
    assert open_history(history.path).records()[0].messages == 2
    history._database.execute("PRAGMA max_page_count = 100000")
    conversation.unanswered = conversation.tree.last("user")
    assert conversation.forget()
    assert conversation.unanswered is None and open_history(history.path).records() == []


def test_what_cannot_be_erased_is_not_called_erased(history: History, tmp_path: Path) -> None:
    conversation = talk(history, tmp_path, "one")
    history._database.execute("PRAGMA query_only = 1")
    assert [chunk.kind for chunk in conversation.ask("two")].count("notice") == 1
    with pytest.raises(HistoryError, match="readonly"):
        conversation.forget()
    assert len(conversation.turns) == 4


def test_a_file_that_cannot_be_written_can_be_read(history: History, tmp_path: Path) -> None:
    talk(history, tmp_path, "one")
    history.close()
    with sqlite3.connect(f"{history.path.as_uri()}?mode=ro&immutable=1", uri=True) as database:
        history = History(history.path, database)
        assert len(history.records()) == 1
        recorder = Recorder(history)
        recorder.save(Tree([Node(1, None, "user", "x")], 1), model="", system=None, settings={})
        assert "readonly" in recorder.failure
    database.close()


def test_a_tree_with_holes_is_refused(history: History, tmp_path: Path) -> None:
    talk(history, tmp_path, "one")
    history._database.execute("DELETE FROM messages WHERE kind = 'user'")
    with pytest.raises(HistoryError, match="missing"):
        history.tree(history.records()[0])


def test_broken_surrogates_and_zeros_are_kept_as_text(history: History) -> None:
    node = Node(1, None, "user", "a\udcffb\0c")
    history.save(Record("ab", "t", "m"), [node])
    assert history.tree(Record("ab", "t", "m", leaf=1)).nodes[1].content == "a?b\0c"


def test_the_platform_decides_who_reads(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        history = open_history(tmp_path / "h.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("qwen3:4b", "qwen3:4b"),
        ("/models/SmolLM2-Q4_0.gguf", "SmolLM2-Q4_0"),
        ("/models/smollm2-q4/model.onnx", "smollm2-q4"),
        ("/models/qwen/onnx/model_q4.onnx", "qwen"),
        ("org/repo:q4", "org/repo:q4"),
    ],
)
def test_a_model_is_called_as_people_do(model: str, name: str) -> None:
    assert Record("ab", "t", model).model_name == name
