"""What the chat's commands do to a conversation and its history, without a terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from localllm.conversation import Conversation
from localllm.engines import open_engine
from localllm.errors import ContextOverflow, UsageError
from localllm.history import History, Record, open_history
from localllm.protocols import Engine
from localllm.settings import build
from localllm.text.attachments import Attachment
from localllm.transcript import as_object, read_object
from localllm.tree import Tree
from localllm.types import ChatOptions, EngineOptions, Limits, Reasoning, Sampling
from localllm.ui.chat import keeping, table
from localllm.ui.chat.resume import take_over, take_up
from localllm.ui.chat.setting import COMMANDS as SETTING
from localllm.ui.chat.state import Chat
from tests.test_history import talk


@pytest.fixture
def history(tmp_path: Path) -> History:
    return open_history(tmp_path / "history.db")


@dataclass(frozen=True)
class Session:
    """A model as it is opened for nothing but the options that were given."""

    name: str
    path: Path
    engine: Engine
    options: EngineOptions
    sampling: Sampling
    limits: Limits
    reasoning: Reasoning


def chat_about(conversation: Conversation, history: History) -> Chat:
    script = history.path.parent / "script"

    def open_model(name: str | None, given: Mapping[str, Any]) -> Session:
        options = build(EngineOptions, given)
        parts = build(Sampling, given), build(Limits, given), build(Reasoning, given)
        return Session(name or "fake", script, open_engine("fake", script, options), options, *parts)

    console = Console(file=io.StringIO(), width=200)
    return Chat(conversation, ChatOptions(), EngineOptions(), {}, open_model, script, "fake", history, console=console)


def shown(chat: Chat) -> str:
    assert isinstance(chat.console.file, io.StringIO)
    return chat.console.file.getvalue()


def test_a_copy_is_loaded_beside_its_original(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path, "one"), history)
    list(chat.conversation.regenerate())
    list(chat.conversation.compact())
    (original,) = history.records()
    record, tree = read_object(as_object(original, history.tree(original)))
    take_over(chat, record, tree)
    assert [chunk.text for chunk in chat.conversation.ask("two") if chunk.kind == "notice"] == []
    assert [r.messages for r in history.records()] == [original.messages + 2, original.messages]
    summaries = [node for node in chat.conversation.tree.nodes.values() if node.kind == "summary"]
    assert [node.first for node in summaries] == [None]


def test_what_was_asked_is_no_markup(history: History, tmp_path: Path) -> None:
    conversation = talk(history, tmp_path)
    tree = Tree()
    tree.add("user", "[INST] a [/INST] [bold]")
    record = Record("ab", "[/title]", "fake", leaf=tree.leaf)
    history.save(record, tree.nodes.values())
    chat = chat_about(conversation, history)
    take_up(chat, record)
    assert "(without an answer: [INST] a [/INST] [bold]; /again asks it)" in shown(chat)


def test_a_model_that_is_loaded_again_keeps_the_options_of_the_conversation(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path, "one"), history)
    conversation = chat.conversation
    before = conversation.sampling, conversation.limits, conversation.reasoning
    assert table.run(chat, "/set context 4000") == "context = 4000" and conversation.engine.context == 4000
    assert (conversation.sampling, conversation.limits, conversation.reasoning) == before
    conversation.reasoning = Reasoning(effort="low")
    table.run(chat, "/think off")
    table.run(chat, "/model another")
    assert (conversation.sampling, conversation.limits) == (Sampling(), Limits())
    assert conversation.reasoning == Reasoning(think=False) and conversation.engine.context == 4000


@pytest.mark.parametrize(
    ("line", "value"),
    [("stop a=b", ("a=b",)), ("stop=a=b c", ("a=b c",)), ("top-k=7", 7), ("top_k  7", 7), ("stop ==", ("==",))],
)
def test_a_value_may_hold_an_equals_sign(history: History, tmp_path: Path, line: str, value: object) -> None:
    chat = chat_about(talk(history, tmp_path), history)
    table.run(chat, f"/set {line}")
    sampling, limits = chat.conversation.sampling, chat.conversation.limits
    assert value in (sampling.top_k, limits.stop)


@pytest.mark.parametrize("line", ["", "=", "top_k", "top_k=", "top_k  "])
def test_an_option_needs_a_value(history: History, tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match="/set NAME VALUE"):
        table.run(chat_about(talk(history, tmp_path), history), f"/set {line}")


def test_names_of_options_and_then_their_values_are_offered(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path), history)
    (setting,) = [command for command in SETTING if command.name == "/set"]
    assert "top_k" in dict(setting.complete(chat, "to"))
    for typed in ("flash_attention ", "flash-attention=o"):
        assert list(dict(setting.complete(chat, typed))) == ["auto", "on", "off", "none"]


def test_what_is_attached_stays_until_there_is_an_answer(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path), history)
    file = Attachment("f.txt", "file")
    chat.pending = [file]
    answer = keeping.ask(chat, "stopped before it began", [])
    answer.close()
    assert chat.pending == [file]
    chat.conversation.limits = replace(chat.conversation.limits, on_overflow="error")
    with pytest.raises(ContextOverflow):
        list(keeping.ask(chat, "x" * (2 << 20), []))
    assert chat.pending == [file]
    list(keeping.ask(chat, "short", []))
    question = chat.conversation.last_question()
    assert question.attachments == (file,) and chat.pending == []


def test_a_system_prompt_is_kept_at_once(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path, "one"), history)
    table.run(chat, "/system You are brief.")
    table.run(chat, f"/export {tmp_path / 'c.md'}")
    assert history.records()[0].system == "You are brief."
    assert "You are brief." in (tmp_path / "c.md").read_text()


def test_forget_names_the_history_where_that_had_it(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path), history)
    assert "history" not in str(table.run(chat, "/forget")) + str(table.run(chat, "/clear"))
    list(chat.conversation.ask("one"))
    assert "from the history too" in str(table.run(chat, "/forget"))
    list(chat.conversation.ask("one"))
    assert "(/history has it)" in str(table.run(chat, "/clear"))


@pytest.mark.parametrize("form", ["{}", "'{}'", '"{}"'])
def test_a_file_s_name_may_hold_spaces_and_stand_in_quotes(history: History, tmp_path: Path, form: str) -> None:
    chat = chat_about(talk(history, tmp_path, "one"), history)
    for command, ending in (("/save", ".json"), ("/export", ".md")):
        path = tmp_path / f"two words{ending}"
        assert str(path) in str(table.run(chat, f"{command} {form.format(path)}"))
        assert path.is_file()
    assert table.run(chat, f"/load {form.format(tmp_path / 'two words.json')}") == ""
    (tmp_path / "three lines.txt").write_text("1\n2\n3\n")
    assert "three lines.txt (3 lines)" in str(table.run(chat, f"/file '{tmp_path / 'three lines.txt'}'"))


def test_a_command_with_more_than_it_takes_does_nothing(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path, "one"), history)
    for line in ("/forget what I said first", "/clear all", "/undo 2", "/bye for now"):
        with pytest.raises(UsageError, match=f"{line.split()[0]} takes nothing after it, so nothing was done"):
            table.run(chat, line)
    assert len(chat.conversation.turns) == 2 and history.records()


def test_an_unknown_command_names_the_one_that_is_meant(history: History, tmp_path: Path) -> None:
    chat = chat_about(talk(history, tmp_path, "one"), history)
    for word, meant in (("retry", "/regen?"), ("quit", "/bye?"), ("Contxt", "/context?"), ("image", ""), ("", "")):
        with pytest.raises(UsageError) as caught:
            table.run(chat, f"/{word}")
        assert caught.value.hint == f"{meant} /help lists them all".strip()


def test_the_list_of_commands_fits_into_80_columns() -> None:
    usage = max(len(command.usage) for command in table.commands().values())
    for command in table.commands().values():
        assert 2 + usage + 2 + len(command.help) <= 80, command.help
    assert all(len(f"  {key:<14}  {what}") <= 80 for key, what in table.KEYS)
