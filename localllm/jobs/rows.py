"""Rows in, rows out: what `batch` and `embed` read, and a file of results that goes on where a killed run stopped.

Input is JSONL, CSV (with a header; commas, semicolons or tabs) or lines. Output is JSONL, an object a row, in the order
of the input, each line flushed when it is whole. Every line has an `id` and a `key`, a fingerprint of the row's input
and of the job's settings: so an output file alone tells which rows are done, and whether it was made of this input in
this way. Nothing here knows what is computed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from localllm.errors import LocalLLMError, UsageError
from localllm.fields import is_text

Format = Literal["jsonl", "csv", "lines"]
_FORMATS: tuple[Format, ...] = ("jsonl", "csv", "lines")
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
_LONGEST_CELL = 1 << 30  # characters; Python's csv module refuses more than 131072 by itself
_OURS = b'{"id": '
_ID = re.compile(rb'\{"id": (?:-?\d+|"(?:[^"\\]|\\.)*")', re.S)
_TORN_ID = re.compile(rb'\{"id": (?:-|"(?:[^"\\]|\\.)*\\?)?', re.S)
_KEY = b', "key": "'
_Place = tuple[bool, "str | int"]  # faults are numbered by lines, whatever ids the other rows have


@dataclass(frozen=True, slots=True)
class Row:
    """`id` is the row's field of that name, else its number: of the line, or of the record in a CSV file.

    `fault` says why the row cannot be used; such a row has no fields.
    """

    id: str | int
    fields: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def format_of(path: Path, named: str = "") -> Format:
    """The format that was named, or the one the file's name tells; lines where it tells none. Raises UsageError."""
    if not named:
        return _SUFFIXES.get(path.suffix.lower(), "lines")
    if named not in _FORMATS:
        raise UsageError(f"--format {named}: the formats are {', '.join(_FORMATS)}")
    return named


def open_input(path: Path) -> TextIO:
    """The file as text, to be given to `read_rows`. Raises UsageError."""
    try:
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def read_rows(file: TextIO, kind: Format) -> Iterator[Row]:
    """The rows of a text opened as UTF-8 with `surrogateescape`; empty lines are left out.

    What is wrong with one row becomes its `fault`. Raises UsageError where the file as a whole makes no sense.
    """
    seen: dict[str | int, int] = {}
    found = _records(file) if kind == "csv" else _lines(file, kind)
    for number, values, fault in found:
        own = values.get("id", number)
        if not fault and (isinstance(own, bool) or not isinstance(own, (str, int))):
            fault = f"its id is {json.dumps(own)}, and neither a text nor a whole number"
        if fault:
            yield Row(number, fault=fault)
        elif own in seen:
            yield Row(number, fault=f"its id {own!r} is the one of row {seen[own]} already")
        else:
            seen[own] = number
            yield Row(own, values)


def _lines(file: TextIO, kind: Format) -> Iterator[tuple[int, dict[str, Any], str]]:
    for number, line in enumerate(file, 1):
        text = line.strip("\r\n")
        if not text.strip():
            continue
        if not is_text(text):
            yield number, {}, "it is not UTF-8 text"
        elif kind == "lines":
            yield number, {"text": text}, ""
        else:
            yield number, *_object(text)


def _object(text: str) -> tuple[dict[str, Any], str]:
    try:
        value = json.loads(text)
        whole = "\\u" not in text or is_text(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError) as error:
        return {}, f"it is not JSON ({error})"
    if not isinstance(value, dict):
        return {}, "it is not a JSON object"
    return (value, "") if whole else ({}, "it is not Unicode text: half of a surrogate pair is in it")


def _records(file: TextIO) -> Iterator[tuple[int, dict[str, Any], str]]:
    csv.field_size_limit(_LONGEST_CELL)
    head = file.readline()
    names = next(csv.reader([head], delimiter=(comma := max(",;\t", key=head.count))), [])
    if not names or len(set(names)) < len(names) or not all(n.strip() and is_text(n) for n in names):
        raise UsageError("the first line of the CSV file does not name its columns, each once", "--format lines?")
    reader = csv.reader(file, delimiter=comma)
    try:
        for number, cells in enumerate(filter(None, reader), 1):
            if len(cells) > len(names):
                yield number, {}, f"it has {len(cells)} cells, and the header names {len(names)}"
            elif not all(map(is_text, cells)):
                yield number, {}, "it is not UTF-8 text"
            else:
                yield number, dict(zip(names, cells, strict=False)), ""
    except csv.Error as error:
        raise UsageError(f"the CSV file cannot be read beyond line {reader.line_num + 1}: {error}") from None


def key_of(*parts: object) -> str:
    """16 hexadecimal digits that stand for a row's input and for what is done with it."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


class Output:
    """Results in the order of their rows. Use it in a `with`; `done` are the ids an earlier run finished, with keys.

    A row is announced by `expect`, and later has its result by `write`, or `drop`: a result waits for those of the rows
    before it. With a path the file is appended to, and one process at a time may do so.
    """

    def __init__(self, path: Path | None, stream: IO[bytes] | None = None) -> None:
        self._path, self._stream, self._own = path, stream, stream is None
        self.done: dict[str | int, str] = {}
        self.written = 0  # results of this run
        self._order: deque[_Place] = deque()
        self._results: dict[_Place, bytes] = {}
        self._lock: Any = None

    def __enter__(self) -> Output:
        path = self._path
        try:
            if path is not None and path.exists() and not path.is_file():  # a pipe or a device
                self._stream = path.open("wb")
            elif path is not None:
                self._take_lock(path)
                self._read(path)
                self._stream = path.open("ab")
        except BaseException as error:
            self._release()
            if path is not None and isinstance(error, OSError):
                raise _unwritable(path, error) from None
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._own and self._stream is not None:
            with suppress(OSError) if kind else nullcontext():  # what could not be written has been told
                self._stream.close()
        self._release()
        assert kind or not self._order, "every row that was expected has been written or dropped"

    def is_done(self, row: Row, key: str) -> bool:
        """Whether an earlier run has this row. Raises UsageError where it had another input or other settings."""
        if row.fault or row.id not in self.done:
            return False
        if self.done[row.id] != key:
            raise UsageError(
                f"{self._path}: row {row.id!r} was made from another input, or with another model, prompt or options",
                "name another file with -o, or remove this one",
            )
        return True

    def expect(self, row: Row) -> None:
        self._order.append(_place(row))

    def write(self, row: Row, key: str, values: Mapping[str, Any]) -> None:
        line = json.dumps({"id": row.id, "key": key, **values}, ensure_ascii=False)
        self._settle(row, line.encode(errors="replace") + b"\n")

    def drop(self, row: Row) -> None:
        """There will be no result."""
        self._settle(row, b"")

    def _settle(self, row: Row, line: bytes) -> None:
        self._results[_place(row)] = line
        assert self._stream is not None, "an Output is written to inside its `with`"
        while self._order and self._order[0] in self._results:
            if ready := self._results.pop(self._order.popleft()):
                self._append(self._stream, ready)
                self.written += 1

    def _append(self, stream: IO[bytes], line: bytes) -> None:
        try:
            stream.write(line)
            stream.flush()
        except OSError as error:
            if self._path is not None:
                error.filename = str(self._path)
            raise

    def _read(self, path: Path) -> None:
        """Learn what is done, and cut off the line that a killed run left half written."""
        if not path.exists():
            return
        end = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    if not (_is_torn(line) or (self.done and not _is_object(line))):
                        raise _foreign(path)
                    break
                known, key = _identity(line)
                if key is None:
                    raise _foreign(path)
                self.done[known] = key
                end += len(line)
        if end < path.stat().st_size:
            os.truncate(path, end)

    def _take_lock(self, path: Path) -> None:
        from filelock import FileLock, Timeout

        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}", "make it first, or name another file with -o")
        if not os.access(path.parent, os.W_OK):  # a file there may be written to all the same
            return
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            self._lock = None
            raise UsageError(
                f"another process is writing {path}", "wait for it, or name another file with -o"
            ) from None
        except OSError as error:
            self._lock = None
            raise _unwritable(path, error) from None

    def _release(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                Path(self._lock.lock_file).unlink()
            self._lock.release()
            self._lock = None


def _place(row: Row) -> _Place:
    return bool(row.fault), row.id


def _is_torn(line: bytes) -> bool:
    """Whether a line of ours may have begun so, that was not written to its end."""
    if not (whole := _ID.match(line)):
        return _OURS.startswith(line) or _TORN_ID.fullmatch(line) is not None
    rest = line[whole.end() :]
    return _KEY.startswith(rest) or re.match(_KEY + rb'[0-9a-f]{0,16}(?![^"])', rest) is not None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _identity(line: bytes) -> tuple[Any, str | None]:
    """The id and the key of a line of ours; no key where it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None, None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("key"), str)
        or not isinstance(found.get("id"), (str, int))
    ):
        return None, None
    return found["id"], found["key"]


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be written: {error.strerror}")


def _foreign(path: Path) -> LocalLLMError:
    return UsageError(f"{path} exists, and is not the output of an earlier run", "name another file with -o")


class Errors:
    """The rows that failed, JSONL with `id` and `error`, of this run alone. Without a path they are only counted."""

    def __init__(self, path: Path | None) -> None:
        self.count = 0
        self._path = path
        self._file: IO[bytes] | None = None
        if path is not None and path.is_file():
            with path.open("rb") as file:
                if not all(line.startswith(_OURS) and b'"error": ' in line for line in file):
                    raise UsageError(f"{path} exists, and is no list of failed rows", "name another --errors file")

    def __enter__(self) -> Errors:
        if self._path is not None:
            try:
                self._file = self._path.open("wb")
            except OSError as error:
                raise _unwritable(self._path, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Row, error: str) -> None:
        self.count += 1
        if self._file is not None:
            line = json.dumps({"id": row.id, "error": error, **({"row": row.fields} if row.fields else {})})
            self._file.write(line.encode() + b"\n")
            self._file.flush()


def pending(rows: Iterable[Row], output: Output, key: Any) -> Iterator[tuple[Row, str]]:
    """The rows that are still to do, with their keys (`key(row)`)."""
    for row in rows:
        made = "" if row.fault else key(row)
        if not output.is_done(row, made):
            output.expect(row)
            yield row, made
