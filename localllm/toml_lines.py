"""Changes a value in a TOML text line by line, so that comments, order and everything else of it stay.

The standard library reads TOML and does not write it. What was changed is read again and compared with what was
wanted; where the lines are not as simple as they look (dotted keys, inline tables), nothing is changed and UsageError
is raised.

https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

from localllm.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BY_HAND = "localllm config edit"


def set_value(text: str, section: tuple[str, ...], key: str, value: Any) -> str:
    """The text with `key` of a table (the top of the file where `section` is empty) set to `value`."""
    wanted = _parse(text)
    _table(wanted, section)[key] = list(value) if isinstance(value, tuple) else value
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    first, end = _range(lines, section)
    if first < 0:
        blank = ["\n"] if lines and lines[-1].strip() else []
        lines += [*blank, f"[{'.'.join(map(_name, section))}]\n"]
        first = end = len(lines)
    assignment = f"{_name(key)} = {_value(value)}"
    if (place := _find(lines, first, end, key)) is not None:
        start, stop = place
        lines[start:stop] = [assignment + _comment(lines[start:stop], key) + "\n"]
    else:
        while end > first and not lines[end - 1].strip():
            end -= 1
        lines.insert(end, assignment + "\n")
    return _checked("".join(lines), wanted)


def unset_value(text: str, section: tuple[str, ...], key: str) -> str:
    """The text without `key`. Raises KeyError where it is not set."""
    wanted = _parse(text)
    del _table(wanted, section)[key]
    lines = text.splitlines(keepends=True)
    first, end = _range(lines, section)
    if first >= 0 and (place := _find(lines, first, end, key)) is not None:
        del lines[place[0] : place[1]]
    return _checked("".join(lines), wanted)


def _checked(text: str, wanted: dict[str, Any]) -> str:
    try:
        same = tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise UsageError("the settings file is written in a way that cannot be changed here", _BY_HAND)
    return text


def _parse(text: str) -> dict[str, Any]:
    try:
        return copy.deepcopy(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the settings file is no TOML: {error}", _BY_HAND) from None


def _table(document: dict[str, Any], section: tuple[str, ...]) -> dict[str, Any]:
    for name in section:
        document = document.setdefault(name, {})
        if not isinstance(document, dict):
            raise UsageError(f"the settings file has {name!r} as a value, and it is to be a table", _BY_HAND)
    return document


def _range(lines: list[str], section: tuple[str, ...]) -> tuple[int, int]:
    """The lines of a table without its header, or (-1, -1) where it has none."""
    headers = [(i, _header(line)) for i, line in enumerate(lines) if line.lstrip().startswith("[")]
    known = [(i, names) for i, names in headers if names is not None]
    starts = [-1] if not section else [i for i, names in known if names == section]
    if not starts:
        return -1, -1
    following = [i for i, _ in known if i > starts[0]]
    return starts[0] + 1, following[0] if following else len(lines)


def _header(line: str) -> tuple[str, ...] | None:
    """The names in a table's header."""
    try:
        table: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    names = []
    while isinstance(table, dict) and table:
        name, table = next(iter(table.items()))
        names.append(name)
    return tuple(names) if table == {} else None


def _find(lines: list[str], first: int, end: int, key: str) -> tuple[int, int] | None:
    """The lines from `first` to `end` on which `key` is set: more than one where its value is long."""
    start = first
    while start < end:
        for stop in range(start + 1, end + 1):
            try:
                found = tomllib.loads("".join(lines[start:stop]))
            except tomllib.TOMLDecodeError:
                continue
            if key in found:
                return start, stop
            start = stop
            break
        else:
            start += 1
    return None


def _comment(lines: list[str], key: str) -> str:
    """The comment behind a value, with the blanks before it."""
    text = "".join(lines).rstrip("\n")
    value = tomllib.loads(text)[key]
    for position in (i for i, character in enumerate(text) if character == "#"):
        try:
            if tomllib.loads(text[:position]).get(key) == value and "\n" not in text[position:]:
                return text[len(text[:position].rstrip()) :]
        except tomllib.TOMLDecodeError:
            continue
    return ""


def _name(name: str) -> str:
    plain = name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
    return name if plain else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
