"""Commands on what was said: take back, ask again, branch, forget, summarize."""

from __future__ import annotations

from localllm.errors import UsageError
from localllm.tree import Node
from localllm.ui.chat.command import Answer, Candidates, Command, Result
from localllm.ui.chat.editor import edit_text
from localllm.ui.chat.state import Chat
from localllm.ui.units import date

_SHOWN = 60  # characters of a message in a list


def _clear(chat: Chat, _: str) -> str:
    recorder = chat.conversation.recorder
    kept = recorder is not None and recorder.kept
    chat.conversation.clear()
    return "The conversation is forgotten; the system prompt stays." + (" (/history has it)" if kept else "")


def _forget(chat: Chat, _: str) -> str:
    erased = chat.conversation.forget()
    return f"The conversation is erased{', from the history too' if erased else ''}; the system prompt stays."


def _undo(chat: Chat, _: str) -> str:
    question = chat.conversation.undo()
    return f"Taken back: {shortened(question)}"


def _regenerate(chat: Chat, _: str) -> Answer:
    return chat.conversation.regenerate()


def _again(chat: Chat, _: str) -> Answer:
    question = chat.conversation.unanswered
    if question is None:
        raise UsageError("no question was left without an answer", "/regen answers the last one again")
    chat.conversation.unanswered = None
    return chat.conversation.ask(question.content, question.attachments)


def _edit(chat: Chat, text: str) -> Result:
    question = chat.conversation.last_question()
    if not text:
        with chat.aside():
            text = edit_text(question.content)
    if not text.strip() or text == question.content:
        return "Nothing has changed."
    return chat.conversation.edit(text)


def _branch(chat: Chat, word: str) -> str:
    conversation = chat.conversation
    leaves = conversation.tree.leaves()
    if word == "new":
        conversation.branch()
        return "From here on this is a conversation of its own; the one before stays as it is."
    if not word:
        if not leaves:
            raise UsageError("nothing was said yet", "ask something first")
        return "\n".join([*_list(chat, leaves), "/branch N goes there; /branch new begins a conversation from here"])
    if not word.isdecimal() or not 1 <= int(word) <= len(leaves):
        raise UsageError(f"there is no branch {word}", "/branch lists them")
    conversation.go_to(leaves[int(word) - 1].id)
    return _last_words(chat)


def _list(chat: Chat, leaves: list[Node]) -> list[str]:
    here = chat.conversation.tree.leaf
    return [f"{'*' if leaf.id == here else ' '} {n}  {shortened(leaf)}" for n, leaf in enumerate(leaves, 1)]


def _branches(chat: Chat, _: str) -> Candidates:
    leaves = chat.conversation.tree.leaves()
    return [*((str(n), shortened(leaf)) for n, leaf in enumerate(leaves, 1)), ("new", "a conversation of its own")]


def _compact(chat: Chat, _: str) -> Answer:
    return chat.conversation.compact()


def _history(chat: Chat, words: str) -> str:
    if chat.history is None:
        raise UsageError("this chat keeps no history", "start it without --no-history")
    if words:
        found = [(hit.record, hit.excerpt) for hit in chat.history.search(words, 20)]
    else:
        found = [(record, record.title) for record in chat.history.records()[:20]]
    if not found:
        return "Nothing was found." if words else "There is nothing yet."
    lines = [f"{r.id[:6]}  {date(r.updated)}  {' '.join(text.split())}" for r, text in found]
    return "\n".join([*lines, "/load ID goes on with one of them"])


def shortened(node: Node) -> str:
    """The begin of a message, on one line."""
    line = " ".join(node.content.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _last_words(chat: Chat) -> str:
    path = chat.conversation.tree.path()
    return "\n".join(f"{'> ' if node.kind == 'user' else ''}{shortened(node)}" for node in path[-2:])


COMMANDS = [
    Command("/regen", "another answer; the earlier one stays (/branch)", _regenerate),
    Command("/undo", "take the last question and its answer back", _undo),
    Command("/edit [TEXT]", "change the last question, in $EDITOR or to TEXT, and ask", _edit),
    Command("/branch [N|new]", "list the branches, go to one, or begin a conversation", _branch, _branches),
    Command("/again", "ask the question that was never answered", _again),
    Command("/clear", "begin a new conversation; the history keeps this one", _clear),
    Command("/forget", "begin a new conversation, erase this one from the history", _forget),
    Command("/compact", "have the model summarize what was said, to make room", _compact),
    Command("/history [WORDS]", "list the conversations that are kept, or search in them", _history),
]
