"""The blocks that hold text: each grows, knows which of its lines are final, and gives those away once.

`settle` takes what is final out of a block, so that no block becomes large, whatever its source does: a long paragraph
is cut at a row's end, where both halves look as the whole did; a table keeps the widths that its first rows asked for;
of code only what colours the next line is remembered.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from localllm.ui.markdown.inline import inline
from localllm.ui.markdown.screen import fold

LONG_PARAGRAPH = 600  # characters after which one is cut, and how many more until the next attempt
LONGEST_PARAGRAPH = 8 * LONG_PARAGRAPH  # characters after which it is cut wherever it is
_LONGEST_WORD = 80  # characters that are not torn apart where a paragraph has to be cut
_LONGEST_ROW = 1200  # characters of a table's row; what is longer goes on in the next
_KEPT_ROWS = 3
_MARKUP = "*_`~[!\\("


@dataclass(frozen=True, slots=True)
class Margin:
    """What stands left of a block: in its first row (a list's mark), in the others, and the rows above it."""

    first: str = ""
    rest: str = ""
    above: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return cell_len(self.rest)


class Leaf:
    """A block of text. `add` begins a line, `extend` goes on with it."""

    def __init__(self, margin: Margin) -> None:
        self.margin = margin
        self._started = False  # whether its first row was given away

    def add(self, line: str) -> None:
        raise AssertionError(f"{type(self).__name__} has one line")

    def extend(self, piece: str) -> None:
        """A rule shows nothing of what goes on."""

    def fork(self) -> Leaf:
        """A copy that can grow apart."""
        return copy.deepcopy(self)

    def settle(self, console: Console) -> list[str]:
        """The lines that are final by now; they are not returned again."""
        return []

    def lines(self, console: Console, growing: bool) -> list[str]:
        """All the other lines; `growing` says that its source may go on."""
        return self._placed(ansi(console, self._rows(console, growing)))

    def _rows(self, console: Console, growing: bool) -> list[Text]:
        return []

    def _room(self, console: Console) -> int:
        return max(4, console.width - self.margin.width)

    def _placed(self, rows: Sequence[str]) -> list[str]:
        """Rows behind their margin."""
        lines = [(self.margin.rest + row).rstrip(" ") for row in rows]
        if lines and not self._started:
            lines[0] = (self.margin.first + rows[0]).rstrip(" ")
            lines[:0] = self.margin.above
        return lines


class Paragraph(Leaf):
    def __init__(self, margin: Margin, text: str) -> None:
        super().__init__(margin)
        self.text = text
        self._next_attempt = LONG_PARAGRAPH

    def add(self, line: str) -> None:
        self.text += "\n" + line if self.text else line

    def extend(self, piece: str) -> None:
        self.text += piece

    def settle(self, console: Console) -> list[str]:
        if len(self.text) < self._next_attempt:
            return []
        rows = self._rows(console, growing=True)
        final = ansi(console, rows[:-_KEPT_ROWS])
        cut = _before(self.text, "".join(row.plain for row in rows[-_KEPT_ROWS:]))
        if not (final and cut and self._splits_at(cut, console, rows)):
            if len(self.text) <= LONGEST_PARAGRAPH:
                self._next_attempt = len(self.text) + LONG_PARAGRAPH
                return []
            cut = self._last_word()
            front = inline(self.text[:cut].rstrip(), growing=True)
            final = ansi(console, _wrapped(front, self._room(console), console))
        lines = self._placed(final)
        self._started = True
        self.text = self.text[cut:].lstrip()
        self._next_attempt = LONG_PARAGRAPH
        return lines

    def lines(self, console: Console, growing: bool) -> list[str]:
        return [] if self._started and not self.text else super().lines(console, growing)

    def _last_word(self) -> int:
        """Where the last word begins; the end where that is not near."""
        space = max(self.text.rfind(" "), self.text.rfind("\n"))
        return space if space > len(self.text) - _LONGEST_WORD else len(self.text)

    def _splits_at(self, cut: int, console: Console, rows: list[Text]) -> bool:
        """Whether both halves, drawn alone, look as they do together."""
        front = _wrapped(inline(self.text[:cut].rstrip()), self._room(console), console)
        back = _wrapped(inline(self.text[cut:].lstrip(), growing=True), self._room(console), console)
        return _looks(console, [*front, *back]) == _looks(console, rows)

    def _rows(self, console: Console, growing: bool) -> list[Text]:
        return _wrapped(inline(self.text, growing=growing), self._room(console), console)


class Heading(Leaf):
    def __init__(self, margin: Margin, level: int, text: str) -> None:
        super().__init__(margin)
        self._level, self._text = level, text

    def extend(self, piece: str) -> None:
        self._text += piece

    def _rows(self, console: Console, growing: bool) -> list[Text]:
        text = Text("#" * self._level + " ", style="bold")
        bare = self._text if growing else self._text.rstrip().rstrip("#").rstrip()
        text.append_text(inline(bare, growing=growing, style="bold"))
        return _wrapped(text, self._room(console), console)


class Rule(Leaf):
    def _rows(self, console: Console, growing: bool) -> list[Text]:
        return [Text("─" * min(self._room(console), 40), style="dim")]


class Lines(Leaf):
    """Text as it stands, a row a line: a list item without content has one empty row."""

    def __init__(self, margin: Margin, text: str = "") -> None:
        super().__init__(margin)
        self._text = text

    def _rows(self, console: Console, growing: bool) -> list[Text]:
        return [Text(self._text)]


@dataclass(slots=True)
class _Row:
    source: str
    cells: list[Text] | None = None  # once its line is complete


@dataclass(slots=True)
class _Columns:
    justify: list[Literal["left", "center", "right"]]
    widths: list[int] = field(default_factory=list)  # once they are fixed


class Table(Leaf):
    """Columns as wide as the first `FIXED_AFTER` rows need; later rows wrap inside them."""

    FIXED_AFTER = 20

    def __init__(self, margin: Margin, head: str, separator: str) -> None:
        super().__init__(margin)
        marks = split_row(separator)
        self._columns = _Columns([_justify(mark) for mark in marks])
        self._table = [_Row(head)]

    def add(self, line: str) -> None:
        if self._table[-1].cells is None:
            self._complete(self._table[-1])
        self._table.append(_Row(line))

    def extend(self, piece: str) -> None:
        if len(self._table[-1].source) < _LONGEST_ROW:
            self._table[-1].source += piece
        else:
            self.add(piece)

    def fork(self) -> Table:
        twin = copy.copy(self)
        twin._table = [_Row(row.source, row.cells) for row in self._table]
        twin._columns = _Columns(self._columns.justify, self._columns.widths)
        return twin

    def settle(self, console: Console) -> list[str]:
        if not self._columns.widths:
            rows = self._until_fixed(console)
            if not rows:
                return []
            self._columns.widths = self._widths(console, rows)
        done = self._table[:-1]
        if not done:
            return []
        lines = self._placed(ansi(console, self._draw(console, done)))
        self._started, self._table = True, self._table[-1:]
        return lines

    def _rows(self, console: Console, growing: bool) -> list[Text]:
        return self._draw(console, self._table)

    def _draw(self, console: Console, table: list[_Row]) -> list[Text]:
        widths = self._columns.widths or self._widths(console, self._table)
        rows: list[Text] = []
        for index, row in enumerate(table):
            head = not self._started and index == 0
            rows += self._draw_row(console, self._cells(row), widths, "bold" if head else "")
            if head:
                rows.append(Text("  ".join("─" * width for width in widths), style="dim"))
        return rows

    def _draw_row(self, console: Console, cells: list[Text], widths: list[int], style: str) -> list[Text]:
        wrapped = [_wrapped(cell, width, console) for cell, width in zip(cells, widths, strict=True)]
        rows = []
        for number in range(max(map(len, wrapped))):
            row = Text(style=style)
            for cell, width, justify in zip(wrapped, widths, self._columns.justify, strict=True):
                part = cell[number].copy() if number < len(cell) else Text()
                part.align(justify, width)
                row.append_text(part).append("  ")
            row.rstrip()
            rows.append(row)
        return rows

    def _cells(self, row: _Row) -> list[Text]:
        if row.cells is not None:
            return row.cells
        count = len(self._columns.justify)
        sources = split_row(row.source)
        sources[count - 1 :] = [" | ".join(sources[count - 1 :])]  # cells too many are shown in the last
        return [inline(cell) for cell in sources] + [Text()] * (count - len(sources))

    def _until_fixed(self, console: Console) -> list[_Row]:
        """The rows that fix the widths, once the one after them has begun."""
        limit, characters = min(self.FIXED_AFTER, max(3, console.height - 6)), 0
        for number, row in enumerate(self._table[:-1], 1):
            characters += len(row.source)
            if number == limit or characters > 2 * _LONGEST_ROW:
                return self._table[:number]
        return []

    def _complete(self, row: _Row) -> None:
        row.cells = self._cells(row)

    def _widths(self, console: Console, table: list[_Row]) -> list[int]:
        """The cells' own widths; where they do not fit, the widest columns give way."""
        rows = [self._cells(row) for row in table]
        widths = [max(1, *(row[i].cell_len for row in rows)) for i in range(len(rows[0]))]
        room = max(2 * len(widths), self._room(console) - 2 * (len(widths) - 1))
        while sum(widths) > room:
            widest = max(range(len(widths)), key=widths.__getitem__)
            second = max((w for i, w in enumerate(widths) if i != widest), default=0)
            widths[widest] = max(2, min(widths[widest] - 1, max(second, widths[widest] - (sum(widths) - room))))
        return widths


def split_row(source: str) -> list[str]:
    """The cells of a table's row; `\\|` and a bar inside of `code` are text."""
    cells, cell, code = [], "", False
    source = source.strip().removeprefix("|")
    for index, character in enumerate(source):
        if character == "`":
            code = not code and "`" in source[index + 1 :]
        if character != "|":
            cell += character
        elif cell.endswith("\\"):
            cell = cell[:-1] + "|"
        elif code:
            cell += character
        else:
            cells.append(cell.strip())
            cell = ""
    return [*cells, cell.strip()] if cell.strip() or not cells else cells


def _justify(mark: str) -> Literal["left", "center", "right"]:
    if mark.endswith(":"):
        return "center" if mark.startswith(":") else "right"
    return "left"


def _wrapped(text: Text, width: int, console: Console) -> list[Text]:
    return list(text.wrap(console, width, tab_size=4)) or [Text()]


def ansi(console: Console, rows: Sequence[Text]) -> list[str]:
    """Rows as strings with the colours that the console has."""
    if not rows:
        return []
    with console.capture() as capture:
        console.print(Text("\n").join(rows), end="", soft_wrap=True, highlight=False)
    return capture.get().split("\n")


def _looks(console: Console, rows: Sequence[Text]) -> list[str]:
    """Rows as they are seen: spaces at their ends are not."""
    bare = [row.copy() for row in rows]
    for row in bare:
        row.rstrip()
    return ansi(console, bare)


def _before(source: str, shown: str) -> int:
    """Where in `source` that begins which is shown as `shown` at its end; 0 where it cannot be told."""
    position = len(source)
    for character in reversed("".join(shown.split())):
        position = source.rfind(character, 0, position)
        if position < 0:
            return 0
    while position and source[position - 1] in _MARKUP:
        position -= 1
    return position


__all__ = ["Heading", "Leaf", "Lines", "Margin", "Paragraph", "Rule", "Table", "ansi", "fold", "split_row"]
