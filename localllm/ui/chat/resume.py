"""Taking up a conversation in the place of the present one, and showing where it stands."""

from __future__ import annotations

from localllm.errors import UsageError
from localllm.history import Record, Recorder
from localllm.tree import Tree
from localllm.ui.chat.state import Chat
from localllm.ui.render import visible

_SHOWN = 2000  # characters of a message


def take_up(chat: Chat, record: Record) -> None:
    """Go on with a conversation of the history. Raises HistoryError."""
    if chat.history is None:
        raise UsageError("this chat keeps no history", "start it without --no-history")
    tree = chat.history.tree(record)
    chat.conversation.take_up(tree, record.system, Recorder(chat.history, record, tree))
    tell(chat, record.title)


def take_over(chat: Chat, record: Record, tree: Tree) -> None:
    """Go on with a conversation from a file, which becomes one of the history's own.

    The history may still have the one that was written into the file, so the messages get new ids.
    """
    recorder = Recorder(chat.history) if chat.history is not None else None
    chat.conversation.take_up(tree.renamed(), record.system, recorder)
    tell(chat, record.title)


def tell(chat: Chat, title: str) -> None:
    """Where a conversation stands: its last question and answer."""
    console, path = chat.console, [node for node in chat.conversation.tree.path() if node.kind != "summary"]
    stands = f"{len(path)} messages" if path else "all of it was taken back; /branch goes to what was said"
    if not path and chat.conversation.unanswered is not None:
        stands = "nothing was answered yet"
    console.print(visible(f"{title} ({stands})"), style="bold", markup=False)
    for node in path[-2:]:
        text = node.content if len(node.content) <= _SHOWN else node.content[: _SHOWN - 1] + "…"
        console.print(visible(("> " if node.kind == "user" else "") + text), style="dim", markup=False)
    if chat.conversation.unanswered is not None:
        question = visible(chat.conversation.unanswered.content[:60])
        console.print(f"(without an answer: {question}; /again asks it)", markup=False)
