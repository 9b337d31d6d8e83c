"""The chat's /commands: a table by topic. A command returns what is to be shown, or chunks that are to be streamed."""

from __future__ import annotations

import difflib

from localllm.errors import UsageError
from localllm.ui.chat import facts, keeping, setting, turns
from localllm.ui.chat.command import Candidates, Command, Result
from localllm.ui.chat.state import Chat, Leave


def topics() -> dict[str, list[Command]]:
    """Every command, by topic."""
    return {
        "Conversation": turns.COMMANDS,
        "Model and options": setting.COMMANDS,
        "Files": keeping.COMMANDS,
        "What it costs": facts.COMMANDS,
        "Chat": CHAT,
    }


def commands() -> dict[str, Command]:
    return {command.name: command for group in topics().values() for command in group}


def run(chat: Chat, line: str) -> Result:
    """Run a line that begins with a slash; raises LocalLLMError and Leave."""
    word, _, rest = line.strip().partition(" ")
    known = commands()
    command = known.get(word.lower())
    if command is None:
        near = _nearest(word[1:].lower())
        raise UsageError(f"there is no {word}", f"/{near}? /help lists them all" if near else "/help lists them all")
    if rest.strip() and " " not in command.usage:  # "/forget the second answer" is no wish to forget everything
        raise UsageError(f"{command.name} takes nothing after it, so nothing was done", command.help)
    return command.run(chat, rest.strip())


def _nearest(word: str) -> str:
    """The command that is meant by another program's name for it, or by one that is written nearly so; or ""."""
    names = [name[1:] for name in commands()]
    return _ELSEWHERE.get(word) or "".join(difflib.get_close_matches(word, names, 1, 0.6))


def _help(chat: Chat, name: str) -> str:
    if name:
        return _help_on("/" + name.lstrip("/").lower())
    width = max(len(c.usage) for c in commands().values())
    narrow = chat.console.width < width + 50
    lines = []
    for topic, group in topics().items():
        lines += ["", topic]
        for c in group:
            lines += [f"  {c.usage}", f"      {c.help}"] if narrow else [f"  {c.usage:<{width}}  {c.help}"]
    return "\n".join([*lines[1:], "", "Keys", *(f"  {key:<14}  {what}" for key, what in KEYS)])


def _help_on(name: str) -> str:
    command = commands().get(name)
    if command is None:
        raise UsageError(f"there is no {name}", "/help lists the commands")
    return f"{command.usage}\n{command.help}"


def _bye(_: Chat, __: str) -> str:
    raise Leave


def _command_names(_: Chat, __: str) -> Candidates:
    return ((name[1:], command.help) for name, command in commands().items())


_ELSEWHERE = {
    "exit": "bye",
    "quit": "bye",
    "new": "clear",
    "reset": "clear",
    "redo": "regen",
    "retry": "regen",
}
KEYS = (
    ("Enter", "send; in /multiline a new line, and Alt-Enter sends"),
    ("Alt-Enter", 'a new line; so does Ctrl-J, and a block between two """'),
    ("Tab", "complete commands, options, values, models, files and @files"),
    ("Ctrl-C", "stop the answer; what was said stays"),
    ("Ctrl-O", "show or hide what the model thinks"),
    ("Ctrl-R", "search what was typed before"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Ctrl-L", "clear the screen"),
    ("Ctrl-D", "leave"),
)
CHAT = [
    Command("/help [COMMAND]", "this list, or one command", _help, _command_names),
    Command("/bye", "leave", _bye),
]
