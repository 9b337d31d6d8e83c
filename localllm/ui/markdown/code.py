"""A block of code, coloured line by line."""

from __future__ import annotations

import copy

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, String, _TokenType
from pygments.util import ClassNotFound
from rich.console import Console
from rich.syntax import ANSI_DARK, ANSISyntaxTheme
from rich.text import Text

from localllm.ui.markdown.leaves import Leaf, Margin, ansi
from localllm.ui.markdown.screen import fold

_CONTEXT = 16  # lines above, that the next one's colours may depend on
_MOST_CONTEXT = 48  # where all of them are in a string or a comment
_LONG_LINE = 2000  # characters of a line that is coloured; what is longer is shown as it stands
_THEME = ANSISyntaxTheme(ANSI_DARK)


class Code(Leaf):
    """`language` is what stands behind the fence. Neither a box nor a background, as it should be copied."""

    def __init__(self, margin: Margin, language: str = "") -> None:
        super().__init__(margin)
        self._lexer = _lexer(language)
        self._known: list[str] = []  # lines that were given away and that colour the next
        self._new: list[str] = []
        self._plain = False  # whether the last line is the rest of one that was too long

    def add(self, line: str) -> None:
        self._new.append(line)
        self._plain = False

    def extend(self, piece: str) -> None:
        self._new[-1] += piece

    def fork(self) -> Code:
        twin = copy.copy(self)
        twin._known, twin._new = [*self._known], [*self._new]
        return twin

    def settle(self, console: Console) -> list[str]:
        lines: list[str] = []
        if len(self._new) > 1:
            lines = self._placed(self._coloured(console, self._new[:-1]))
            self._known += self._new[:-1]
            self._new = self._new[-1:]
            self._forget()
            self._started = self._started or bool(lines)
        if len(self._new[0] if self._new else "") > _LONG_LINE:
            rows = fold(self._new[0], self._room(console))
            lines += self._placed(rows[:-1])
            self._new, self._started, self._plain = rows[-1:], True, True
        return lines

    def lines(self, console: Console, growing: bool) -> list[str]:
        if self._plain:
            return self._placed(self._new)
        return self._placed(self._coloured(console, self._new))

    def _coloured(self, console: Console, new: list[str]) -> list[str]:
        """The rows of new lines: inside of a list they are folded, else the terminal may do it."""
        if self._lexer is None or any(len(line) > _LONG_LINE for line in new):
            texts = [Text(line.expandtabs(4)) for line in new]
        else:
            texts = self._colours(self._lexer, new)
        if self.margin.rest:
            texts = [part for text in texts for part in _folded(text, self._room(console))]
        return ansi(console, texts)

    def _colours(self, lexer: Lexer, new: list[str]) -> list[Text]:
        rows, number = [Text()], -len(self._known)
        for kind, value in lexer.get_tokens("\n".join([*self._known, *new])):
            for index, part in enumerate(value.split("\n")):
                number += index > 0
                if index and number > 0:
                    rows.append(Text())
                if part and number >= 0:
                    rows[-1].append(part.expandtabs(4), _THEME.get_style_for_token(kind))
        return (rows + [Text()] * len(new))[: len(new)]

    def _forget(self) -> None:
        """Drop the lines above one outside of strings and comments, at the left margin where there is such a one."""
        if self._lexer is None:
            self._known = []
        elif len(self._known) > _CONTEXT:
            outside = [n for n, inside in enumerate(_inside(self._lexer, self._known)) if n and not inside]
            at_margin = [n for n in outside if self._known[n][:1].strip()]
            begin = (at_margin or outside or [max(0, len(self._known) - _MOST_CONTEXT)])[-1]
            self._known = self._known[begin:]


def _inside(lexer: Lexer, lines: list[str]) -> list[bool]:
    """For every line whether it begins in the middle of a string or a comment."""
    inside = [False]
    for kind, value in lexer.get_tokens("\n".join(lines)):
        inside += [_spans(kind)] * value.count("\n")
    return inside[: len(lines)]


def _spans(kind: _TokenType) -> bool:
    return kind in String or (kind in Comment and kind is not Comment.Single)


def _folded(text: Text, width: int) -> list[Text]:
    rows = fold(text.plain, width)
    ends = [sum(map(len, rows[: n + 1])) for n in range(len(rows) - 1)]
    return list(text.divide(ends))


def _lexer(language: str) -> Lexer | None:
    name = language.strip().partition(" ")[0].strip("{}.").lower()
    if not name:
        return None
    try:
        # The source is shown whole: nothing at its ends is stripped.
        return get_lexer_by_name(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
