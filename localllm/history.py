"""Conversations in one SQLite file, readable by its owner alone; nobody loses more than the answer under way.

The file is in WAL mode, so several chats may write at once. What a turn adds comes in one transaction. What is erased
is overwritten (`secure_delete`). Whatever SQLite cannot do is a HistoryError: a chat goes on without its history.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from localllm.errors import HistoryError
from localllm.text.attachments import Attachment
from localllm.tree import Node, Tree

VERSION = 1
BUSY_SECONDS = 10.0
TITLE_LENGTH = 60
_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, system TEXT, settings TEXT NOT NULL,
    leaf INTEGER, created REAL NOT NULL, updated REAL NOT NULL
);

CREATE TABLE messages (
    id INTEGER PRIMARY KEY, conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE, parent INTEGER,
    kind TEXT NOT NULL, content TEXT NOT NULL, thinking TEXT NOT NULL, model TEXT NOT NULL, first INTEGER,
    created REAL NOT NULL
);

CREATE INDEX messages_of ON messages (conversation);

CREATE TABLE attachments (
    message INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE, position INTEGER NOT NULL, name TEXT NOT NULL,
    content TEXT NOT NULL, PRIMARY KEY (message, position)
) WITHOUT ROWID;

CREATE VIRTUAL TABLE words USING fts5 (
    content, content='messages', content_rowid='id', tokenize='unicode61 remove_diacritics 2'
);

CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN
    INSERT INTO words (rowid, content) VALUES (new.id, new.content); END;

CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
    INSERT INTO words (words, rowid, content) VALUES ('delete', old.id, old.content); END;
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation without its messages. `settings` are the options by name, times in seconds since 1970."""

    id: str
    title: str
    model: str
    system: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    leaf: int | None = None
    created: float = 0.0
    updated: float = 0.0
    messages: int = 0

    @property
    def model_name(self) -> str:
        """The model as people call it: of a file without its folder and ending; of an ONNX graph its folder's name."""
        path = Path(self.model)
        if path.suffix == ".onnx" and path.is_absolute():
            return (path.parent.parent if path.parent.name == "onnx" else path.parent).name or path.stem
        return path.stem if path.is_absolute() else self.model


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that a search found; `excerpt` has some words around what was looked for."""

    record: Record
    message: int
    kind: str
    excerpt: str


class History:
    """An open history. Every method raises HistoryError."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._database = path, database

    def close(self) -> None:
        self._database.close()

    def records(self) -> list[Record]:
        """All conversations, the one spoken in last first."""
        with _errors(self.path):
            return [_record(row) for row in self._database.execute(f"{_RECORDS} ORDER BY updated DESC")]

    def find(self, prefix: str) -> Record:
        """The conversation whose id begins so."""
        with _errors(self.path):
            rows = self._database.execute(f"{_RECORDS} WHERE substr(id, 1, ?) = ?", (len(prefix), prefix)).fetchall()
        if len(rows) != 1 or not prefix:
            known = "there is no conversation" if not rows else f"{len(rows)} conversations begin with"
            raise HistoryError(f"{known} {prefix}", "localllm history list shows them")
        return _record(rows[0])

    def tree(self, record: Record) -> Tree:
        """The messages of a conversation."""
        with _errors(self.path):
            files: dict[int, list[Attachment]] = {}
            for message, name, content in self._database.execute(
                "SELECT message, a.name, a.content FROM attachments a JOIN messages m ON m.id = message"
                " WHERE conversation = ? ORDER BY message, position",
                (record.id,),
            ):
                files.setdefault(message, []).append(Attachment(name, content))
            rows = self._database.execute(
                "SELECT id, parent, kind, content, thinking, model, first, created FROM messages"
                " WHERE conversation = ? ORDER BY created",
                (record.id,),
            ).fetchall()
        nodes = [
            Node(id, parent, kind, content, thinking, model, first, tuple(files.get(id, ())), created)
            for id, parent, kind, content, thinking, model, first, created in rows
        ]
        tree = Tree(nodes, record.leaf)
        try:
            tree.check()
        except ValueError as error:
            raise HistoryError(f"{self.path}: of the conversation {record.id}, {error}") from None
        return tree

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Messages that hold every word of `text`, the best first; where none does, those that hold it as it is."""
        words = " ".join('"' + word.replace('"', '""') + '"' for word in text.split())
        if not words:
            return []
        with _errors(self.path):
            rows = self._database.execute(
                "SELECT m.id, kind, conversation, snippet(words, 0, '', '', '…', 16) FROM words"
                " JOIN messages m ON m.id = words.rowid WHERE words MATCH ? ORDER BY rank LIMIT ?",
                (words, limit),
            ).fetchall()
            if not rows:
                rows = self._database.execute(
                    "SELECT id, kind, conversation, substr(content, max(1, instr(lower(content), lower(?1)) - 40), 120)"
                    " FROM messages WHERE instr(lower(content), lower(?1)) ORDER BY created DESC LIMIT ?2",
                    (text, limit),
                ).fetchall()
            known = {record.id: record for record in self.records()}
        return [Hit(known[conversation], id, kind, excerpt) for id, kind, conversation, excerpt in rows]

    def save(self, record: Record, added: Iterable[Node], removed: Iterable[int] = (), *, again: bool = False) -> None:
        """Write a conversation as it now is, with what was added to its tree and taken from it, or nothing of it.

        `again` says that a part of it was written before: what somebody has erased since then does not come back.
        """
        settings = json.dumps(dict(record.settings), ensure_ascii=False)
        head = (record.id, record.title, record.model, record.system, settings, record.leaf)
        with self._transaction() as database:
            if again and not database.execute("SELECT 1 FROM conversations WHERE id = ?", (record.id,)).fetchone():
                raise HistoryError("this conversation was erased elsewhere")
            database.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " title = excluded.title, model = excluded.model, system = excluded.system,"
                " settings = excluded.settings, leaf = excluded.leaf, updated = excluded.updated",
                (*map(_storable, head), record.created, record.updated),
            )
            for node in added:
                row = (node.id, record.id, node.parent, node.kind, node.content, node.thinking, node.model, node.first)
                database.execute(
                    "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*map(_storable, row), node.created)
                )
                for position, file in enumerate(node.attachments):
                    values = (node.id, position, file.name, file.text)
                    database.execute("INSERT INTO attachments VALUES (?, ?, ?, ?)", tuple(map(_storable, values)))
            database.executemany("DELETE FROM messages WHERE id = ?", [(id,) for id in removed])

    def remove(self, ids: Sequence[str]) -> int:
        """Erase conversations with all that was said in them; how many of them there were."""
        with self._transaction() as database:
            found = database.executemany("DELETE FROM conversations WHERE id = ?", [(id,) for id in ids]).rowcount
        with _errors(self.path):
            self._database.execute("INSERT INTO words (words) VALUES ('optimize')")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _errors(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


_RECORDS = (
    "SELECT id, title, model, system, settings, leaf, created, updated,"
    " (SELECT count(*) FROM messages WHERE conversation = conversations.id) FROM conversations"
)


def open_history(path: Path) -> History:
    """Open the file, or make it. One that cannot be written can still be read. Raises HistoryError."""
    with _errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Made here, so that nobody else could read it for a moment; SQLite gives its mode to the files beside it.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError:
            if not path.is_file():
                raise
            try:
                return _opened(path, "?mode=ro")
            except sqlite3.OperationalError:  # nor can the files beside it be made, by which processes share it
                return _opened(path, "?mode=ro&immutable=1")
        return _opened(path, "")


def _opened(path: Path, how: str) -> History:
    address = path.absolute().as_uri() + how
    database = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(database, path, writable=not how)
    except BaseException:
        database.close()
        raise
    return History(path, database)


def _prepare(database: sqlite3.Connection, path: Path, *, writable: bool) -> None:
    if writable:
        database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA secure_delete = ON")
    if _version(database) == 0 and writable:
        database.execute("BEGIN IMMEDIATE")
        if _version(database) == 0:  # nobody else has made the tables meanwhile
            for statement in _SCHEMA.split(";\n\n"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    found = _version(database)
    if found != VERSION:
        hint = "update localllm, or move the file away"
        raise HistoryError(f"{path} was written by a newer localllm (schema {found}, this one knows {VERSION})", hint)


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise HistoryError(f"the history {path} cannot be used: {error}") from None
    except sqlite3.IntegrityError as error:
        raise HistoryError(f"the history {path} does not take it: {error}") from None
    except sqlite3.DatabaseError as error:
        hint = "move it away, and a new one is begun"
        raise HistoryError(f"the history {path} is damaged: {error}", hint) from None
    except OSError as error:
        raise HistoryError(f"the history {path} cannot be opened: {error.strerror}") from None


def _storable(value: Any) -> Any:
    """Half a surrogate pair, as a broken terminal may send it, is no text to SQLite."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _record(row: Sequence[Any]) -> Record:
    id, title, model, system, settings, *rest = row
    try:
        known = json.loads(settings)
    except ValueError:
        known = None
    return Record(id, title, model, system, known if isinstance(known, dict) else {}, *rest)


class Recorder:
    """Keeps one conversation. `save` never raises: why nothing is kept any more is told in `failure`, once."""

    def __init__(self, history: History, record: Record | None = None, tree: Tree | None = None) -> None:
        self.failure = ""
        self.record = record
        self._history = history
        self._failed = False
        self._kept = set(tree.nodes) if tree else set()

    @property
    def kept(self) -> bool:
        """Whether the history has this conversation as it is."""
        return bool(self._kept) and not self._failed

    def save(self, tree: Tree, *, model: str, system: str | None, settings: Mapping[str, Any]) -> None:
        """Write what has changed since the last time. A conversation without a message is not kept."""
        if not (tree.nodes or self._kept):
            return
        now = time.time()
        record = self.record or Record(secrets.token_hex(6), "", "", created=now)
        self.record = replace(
            record,
            title=record.title or _title(tree),
            model=model,
            system=system,
            settings=settings,
            leaf=tree.leaf,
            updated=now,
        )
        if self._failed:
            return
        try:
            if tree.nodes:
                added = [node for id, node in tree.nodes.items() if id not in self._kept]
                self._history.save(self.record, added, self._kept - set(tree.nodes), again=bool(self._kept))
            else:
                self._history.remove([self.record.id])
                self.record = None
            self._kept = set(tree.nodes)
        except HistoryError as error:
            self.failure, self._failed = f"{error}; from here on nothing is kept", True

    def take_failure(self) -> str:
        """Why nothing is kept any more, the first time that it is asked for after it began; or ""."""
        failure, self.failure = self.failure, ""
        return failure

    def begin(self) -> None:
        """What is saved next is a new conversation."""
        self.record, self._kept = None, set()

    def erase(self) -> bool:
        """Erase what was kept of this conversation, and begin a new one; whether there was something to erase.

        It is tried after a failure too. Raises HistoryError, and then the conversation goes on.
        """
        found = self._history.remove([self.record.id]) if self.record and self._kept else 0
        self.begin()
        return found > 0


def _title(tree: Tree) -> str:
    first = next((node.content for node in tree.nodes.values() if node.kind == "user"), "")
    line = " ".join(first.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
