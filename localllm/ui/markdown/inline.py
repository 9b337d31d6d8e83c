"""What stands inside a paragraph (emphasis, code, links), as text with styles.

A text that still grows is shown as if its open marks were closed already, so that `**bold` does not change its width
when the closing marks arrive.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.style import Style
from rich.text import Text

_PARSER = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable("strikethrough")
_STYLES = {
    "em": Style(italic=True),
    "strong": Style(bold=True),
    "s": Style(strike=True),
    "link": Style(underline=True),
}
_CODE = Style(color="cyan", bold=True)
_URL = Style(dim=True)
_TEX = re.compile(r"\\([()\[\]])")  # \( \) \[ \] are TeX far more often than escapes, and lose nothing when shown
_OPEN_LINK = re.compile(r"!?\[([^\[\]]*)(\](\([^()\s]*)?)?$")
_UNKNOWN = "."  # the address of a link that still grows
_MARKS = ("`", "***", "**", "*", "~~")


def inline(source: str, *, growing: bool = False, style: str = "") -> Text:
    """Render the inside of a block; a newline in `source` is a space, after two spaces or a backslash a line break."""
    source = _TEX.sub(r"\\\\\1", source)
    tokens = _parse(_without_beginnings(source) if growing else source)
    if growing:
        tokens = _closed(source, tokens)
    text = Text(style=style)
    _append(text, tokens)
    return text


def _parse(source: str) -> list[Token]:
    return [token for top in _PARSER.parseInline(source) for token in top.children or []]


def _append(text: Text, tokens: list[Token]) -> None:
    styles: list[Style] = []
    address = ""
    for token in tokens:
        kind, _, side = token.type.rpartition("_")
        if side == "open" and kind in _STYLES:
            styles.append(_STYLES[kind])
            address = str(token.attrs.get("href", "")) or address
        elif side == "close" and kind in _STYLES:
            styles.pop()
            if kind == "link" and address != _UNKNOWN and not text.plain.endswith(address.removeprefix("mailto:")):
                text.append(f" ({address})", _URL)
        elif token.type == "code_inline":
            text.append(token.content, Style.combine([*styles, _CODE]))
        elif token.type == "image":
            text.append(f"[{token.content or 'image'}] ({token.attrs.get('src', '')})", _URL)
        elif token.type in ("softbreak", "hardbreak"):
            text.append(" " if token.type == "softbreak" else "\n")
        else:
            text.append(token.content, Style.combine(styles) if styles else None)


def _without_beginnings(source: str) -> str:
    """The source without a mark at its end that opens something which is not there yet; a link gets an address."""
    bare = source.rstrip("*_`~")
    if len(source) - len(bare) <= 3 and (not bare or bare[-1].isspace()):
        source = bare
    if (match := _OPEN_LINK.search(source)) and match[2]:
        source = source[: match.start()] + f"[{match[1]}]({_UNKNOWN})"
    return source


def _closed(source: str, tokens: list[Token]) -> list[Token]:
    """The tokens as they are when the mark that is open at the end gets its counterpart."""
    for mark in _MARKS:
        shown = _literal_marks(tokens, mark)
        if shown:
            closed = _parse(_without_beginnings(source).rstrip() + mark)
            if _literal_marks(closed, mark) < shown:
                return closed
    return tokens


def _literal_marks(tokens: list[Token], mark: str) -> int:
    """How often a mark is shown instead of doing something."""
    return sum(token.content.count(mark) for token in tokens if token.type == "text")
