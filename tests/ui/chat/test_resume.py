"""Conversations that are taken up within a chat, without a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from localllm.conversation import Conversation
from localllm.history import History, Record, open_history
from localllm.transcript import as_object, read_object
from localllm.tree import Tree
from localllm.types import ChatOptions, EngineOptions
from localllm.ui.chat.resume import take_over, take_up
from localllm.ui.chat.state import Chat, Opened
from tests.test_history import talk


@pytest.fixture
def history(tmp_path: Path) -> History:
    return open_history(tmp_path / "history.db")


def no_model(*_: object) -> Opened:
    raise AssertionError("no model is opened here")


def chat_about(conversation: Conversation, history: History) -> Chat:
    console = Console(file=io.StringIO(), width=200)
    return Chat(conversation, ChatOptions(), EngineOptions(), {}, no_model, Path("s"), "fake", history, console=console)


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
