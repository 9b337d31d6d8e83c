"""Commands on files and the clipboard: attach, copy, save, load, export."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

from localllm import transcript
from localllm.errors import UsageError
from localllm.history import Record
from localllm.text.attachments import Attachment, attach, mistyped
from localllm.ui.chat import clipboard
from localllm.ui.chat.command import Answer, Candidates, Command, Result
from localllm.ui.chat.resume import take_over, take_up
from localllm.ui.chat.state import Chat
from localllm.ui.render import visible
from localllm.ui.units import date
from localllm.whole import replacing

_LARGEST = 64 << 20  # bytes of a conversation's file
_FENCED = re.compile(r"^( {0,3})(`{3,}|~{3,})[^\n]*\n(.*?)^ {0,3}\2", re.M | re.S)
_SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".json": "json", ".jsonl": "jsonl"}


def _copy(chat: Chat, what: str) -> str:
    if what not in ("", "code"):
        raise UsageError(f"/copy {what}: /copy takes the last answer, /copy code its last block of code")
    node = chat.conversation.tree.last("assistant")
    if node is None:
        raise UsageError("there is no answer yet", "ask something first")
    text = node.content
    if what:
        blocks = _FENCED.findall(text)
        if not blocks:
            raise UsageError("there is no block of code in the last answer", "/copy takes all of it")
        text = blocks[-1][2]
    way = clipboard.copy(text, chat.console.file)
    return f"Copied {len(text)} characters (by {way})."


def _paste(chat: Chat, question: str) -> Result:
    text = clipboard.paste()
    if not text.strip():
        raise UsageError("the clipboard is empty")
    chat.pending.append(Attachment("clipboard", text))
    if not question:
        return f"{len(text)} characters go with the next question."
    return ask(chat, question, [])


def _file(chat: Chat, names: str) -> str:
    try:
        patterns = shlex.split(names)
    except ValueError as error:
        raise UsageError(f"/file {names}: {error}") from None
    if not patterns:
        chat.pending.clear()
        return "No file goes with the next question. (/file NAME... attaches some; globs will do.)"
    chat.pending += attach(patterns)
    return "\n".join(f"attached: {_described(file)}" for file in chat.pending)


def _described(file: Attachment) -> str:
    lines = len(file.text.split("\n")) - file.text.endswith("\n")
    return f"{file.name} ({lines} line{'s' * (lines != 1)})"


def ask(chat: Chat, question: str, files: list[str]) -> Answer:
    """Ask with what is attached, and with the files that were named behind an @. Raises UsageError."""
    named = attach(files)
    for name in mistyped(question):
        chat.console.print(visible(f"@{name}: there is no such file, so it is only text"), style="yellow", markup=False)
    for file in named:
        chat.console.print(visible(f"attached: {_described(file)}"), style="dim", markup=False)
    return _asked(chat, question, named)


def _asked(chat: Chat, question: str, named: tuple[Attachment, ...]) -> Answer:
    """What was attached goes with the next question where this one is taken back."""
    before, pending = chat.conversation.tree.leaf, chat.take_pending()
    try:
        yield from chat.conversation.ask(question, (*pending, *named))
    finally:
        if chat.conversation.tree.leaf == before:
            chat.pending[:0] = pending


def _save(chat: Chat, name: str) -> str:
    path = _target(name, "/save FILE.json, which /load reads")
    _write(path, transcript.written([(_record(chat), chat.conversation.tree)], "json"))
    return f"Saved: {path}"


def _export(chat: Chat, name: str) -> str:
    path = _target(name, "/export FILE.md, FILE.json or FILE.jsonl")
    form = _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"{path.name}: which format?", "name it .md, .json or .jsonl")
    _write(path, transcript.written([(_record(chat), chat.conversation.tree)], form))
    return f"Exported: {path}"


def _load(chat: Chat, name: str) -> str:
    if not name:
        raise UsageError("/load FILE.json or the begin of an id", "/history lists them")
    path = _path(name)
    if chat.history is not None and not path.exists():
        take_up(chat, chat.history.find(name))
    else:
        record, tree = transcript.read_object(_read(path))
        take_over(chat, record, tree)
    return ""


def _read(path: Path) -> object:
    """A file of JSON. Raises UsageError whatever is wrong with it."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "/save writes one")
    if path.stat().st_size > _LARGEST:
        raise UsageError(f"{path} is larger than {_LARGEST >> 20} MiB", "no conversation is")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is no JSON ({type(error).__name__})", "/save writes a file that /load reads"
        ) from None


def _path(name: str) -> Path:
    """A file's name may hold spaces, and may stand in quotes, as /file wants it then."""
    quoted = len(name) > 2 and name[0] == name[-1] and name[0] in "'\""
    return Path(name[1:-1] if quoted else name).expanduser()


def _target(name: str, usage: str) -> Path:
    if not name:
        raise UsageError(usage)
    path = _path(name)
    if path.exists():
        raise UsageError(f"{path} exists", "name a new file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", "name another")
    return path


def _write(path: Path, text: str) -> None:
    try:
        with replacing(path) as beside:
            beside.touch(0o600)
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def _record(chat: Chat) -> Record:
    conversation = chat.conversation
    if conversation.recorder is not None and conversation.recorder.record is not None:
        return conversation.recorder.record
    if not conversation.tree.nodes:
        raise UsageError("nothing was said yet", "ask something first")
    first = next(iter(conversation.tree.nodes.values()))
    now = time.time()
    return Record("", " ".join(first.content.split())[:60], conversation.model, conversation.system, {}, None, now, now)


def _conversations(chat: Chat, _: str) -> Candidates:
    if chat.history is None:
        return []
    return [(record.id[:6], f"{date(record.updated)} {record.title}") for record in chat.history.records()[:100]]


COMMANDS = [
    Command("/file NAME...", "attach files to the next question; so does @NAME in it", _file, files=True),
    Command("/paste [QUESTION]", "attach what the clipboard holds", _paste),
    Command("/copy [code]", "copy the last answer, or its last block of code", _copy, lambda *_: [("code", "")]),
    Command("/save FILE", "write the conversation with its branches, for /load", _save, files=True),
    Command("/load FILE|ID", "go on with a saved conversation", _load, _conversations, files=True),
    Command("/export FILE", "write the conversation as .md, .json or .jsonl", _export, files=True),
]
