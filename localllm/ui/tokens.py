"""Tokens on the terminal: the text with every token's ground in another colour, and a table; or JSON.

A token's bytes need not be whole characters: in the text such tokens stand together, in the table each is shown by its
bytes. Control characters are shown, never
obeyed.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from localllm.protocols import Tokenizer
from localllm.ui.render import visible
from localllm.ui.table import print_table

if TYPE_CHECKING:
    from rich.console import Console

_T = TypeVar("_T")
SPECIAL = "bold black on yellow"
_GROUNDS = ("bright_white on #3a5a80", "bright_white on #7a4a2a")
_LABEL = 24
_INCOMPLETE = "unexpected end of data"  # as Python's decoder says it
# Where there are no colours.
_PLAIN, _PLAIN_SPECIAL = ("none", "underline"), "reverse"


def shown(data: bytes) -> str:
    """A token's bytes in running text: invalid UTF-8 as \\xf0, a line break by its sign before it."""
    return visible(data.decode(errors="backslashreplace")).replace("\n", "␊\n")


def whole_characters(items: Iterable[_T], data: Callable[[_T], bytes]) -> Iterator[list[_T]]:
    """Tokens in groups that are whole characters: an emoji can take three tokens. Bytes that are none stay alone."""

    def fault(group: list[_T]) -> str:
        try:
            b"".join(map(data, group)).decode()
        except UnicodeDecodeError as error:
            return error.reason
        return ""

    held: list[_T] = []
    for item in items:
        held.append(item)
        reason = fault(held)
        if len(held) > 1 and reason not in ("", _INCOMPLETE):  # a character that is never completed
            yield held[:-1]
            held = held[-1:]
            reason = fault(held)
        if reason != _INCOMPLETE:
            yield held
            held = []
    if held:
        yield held


def label(data: bytes, *, spaces: bool = True) -> str:
    """A token's bytes as a word in a picture: every space and line break by its sign, never more than 24 characters."""
    text = visible(data.decode(errors="backslashreplace")).replace("\n", "␊").replace("\t", "␉")
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    text = text.replace(" ", "␣") if spaces else text
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"


def quoted(data: bytes) -> str:
    """A token's bytes where nothing of them may be lost, spaces included: as Python writes a string, or bytes."""
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)


def terminal() -> Console | None:
    """A console for colours, where standard output is a terminal that can show any kind of emphasis."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.color_system else None


def show(tokens: Sequence[int], vocabulary: Tokenizer) -> None:
    """On a terminal the coloured text first; then the table and the count."""
    console = terminal()
    if console is not None and tokens:
        from rich.text import Text

        grounds, special = (_PLAIN, _PLAIN_SPECIAL) if console.no_color else (_GROUNDS, SPECIAL)
        text = Text()
        for index, group in enumerate(whole_characters(tokens, vocabulary.spelled)):
            style = special if vocabulary.is_special(group[0]) else grounds[index % 2]
            text.append(shown(b"".join(map(vocabulary.spelled, group))), style)
        console.print(text, soft_wrap=True)
        print()
    if tokens:
        rows = [_row(token, vocabulary) for token in tokens]
        print_table(("id", "bytes", "piece"), rows, right=(0,), expendable=(1,))
    print(f"{len(tokens)} token{'s' * (len(tokens) != 1)}")


def _row(token: int, vocabulary: Tokenizer) -> tuple[str, str, str]:
    data = vocabulary.spelled(token)
    if vocabulary.is_special(token):
        return str(token), "special", data.decode(errors="replace")
    return str(token), data.hex(" "), quoted(data)


def to_html(tokens: Sequence[tuple[int, bytes, bool]]) -> str:
    """Ids, bytes and whether they are special, as a coloured text for a notebook. Everything is escaped."""
    colors = [style.rpartition(" ")[2] for style in _GROUNDS]
    spans = []
    for index, group in enumerate(whole_characters(tokens, lambda one: one[1])):
        special = group[0][2]
        ground = "background:#ffd75f;color:#000" if special else f"background:{colors[index % 2]};color:#fff"
        told = html.escape("\n".join(f"{token} {quoted(data)}" for token, data, _ in group))
        text = html.escape(shown(b"".join(data for _, data, _ in group)))
        spans.append(f'<span style="{ground}" title="{told}">{text}</span>')
    text = f'<div style="font-family:monospace;white-space:pre-wrap;line-height:1.6">{"".join(spans)}</div>'
    return f"{text}<small>{len(tokens)} token{'s' * (len(tokens) != 1)}</small>"


def as_json(token: int, vocabulary: Tokenizer) -> dict[str, Any]:
    """`bytes` are exact; `piece` is their text, with U+FFFD where they are none."""
    data = vocabulary.spelled(token)
    return {
        "id": token,
        "piece": data.decode(errors="replace"),
        "bytes": list(data),
        "special": vocabulary.is_special(token),
    }


def write_json(tokens: Sequence[int], vocabulary: Tokenizer, text: str | None) -> None:
    """One object, a token a line; `text` is what a template made of the messages."""
    out = sys.stdout
    out.write(f'{{"count": {len(tokens)}, ')
    if text is not None:
        out.write(f'"text": {json.dumps(text, ensure_ascii=False)}, ')
    out.write('"tokens": [')
    for index, token in enumerate(tokens):
        out.write(",\n" if index else "\n")
        out.write(json.dumps(as_json(token, vocabulary), ensure_ascii=False))
    out.write("\n]}\n")
