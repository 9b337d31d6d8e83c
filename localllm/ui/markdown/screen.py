"""The last lines of a terminal, which may still change; whatever stands above them is final.

Of the lines that may change only those from the first that did are written again, in one synchronized write, and a
line that merely grew is appended to: nothing is erased that stays, so nothing flickers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len, get_character_cell_size
from rich.console import Console

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\")


class Screen:
    """Lines are strings with their colours in them. The cursor stays behind the last character that was drawn."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lines: list[str] = []  # those that may change, as they stand there

    def draw(self, final: Sequence[str], live: Sequence[str]) -> None:
        """Show `final` and `live` in the place of what could change; from then on only `live` can."""
        lines = [*final, *live]
        if lines == self._lines and not final:
            return
        if lines or self._lines:
            out = self._change(lines)
            if final and not live:
                out += "\n"
            self.console.file.write(f"\x1b[?2026h{out}\x1b[?2026l")
            self.console.file.flush()
        self._lines = list(live)

    def _change(self, lines: list[str]) -> str:
        """What turns the old lines into these."""
        old, same = self._lines, 0
        while same < min(len(old), len(lines)) and old[same] == lines[same]:
            same += 1
        if not lines:
            return self._back_to(0)
        same = min(same, len(lines) - 1)
        if same == len(old):
            return ("\n" if old else "") + "\n".join(lines[same:])
        if same == len(old) - 1 and lines[same].startswith(old[same]):
            return lines[same][len(old[same]) :] + "".join("\n" + line for line in lines[same + 1 :])
        begin = max(same, self._top())
        return self._back_to(begin) + "\n".join(lines[begin:])

    def _back_to(self, index: int) -> str:
        """Move from the end of the old lines to the begin of line `index`, and erase from there."""
        if not self._lines:
            return ""
        up = sum(self._rows(line) for line in self._lines[index:]) - 1
        return ("\r" if up <= 0 else f"\r\x1b[{up}A") + "\x1b[J"

    def _top(self) -> int:
        """The first of the old lines that is still on the screen; what scrolled away stays as it is."""
        room, index = self.console.height, len(self._lines)
        while index and (room := room - self._rows(self._lines[index - 1])) >= 0:
            index -= 1
        return min(index, len(self._lines) - 1)

    def _rows(self, line: str) -> int:
        """How many rows a line takes: one that is wider than the terminal (it was resized) takes several."""
        plain = _ESCAPE.sub("", line)
        width, cells = max(2, self.console.width), cell_len(plain)
        if cells <= width:
            return 1
        if cells == len(plain):
            return -(-cells // width)
        return len(fold(plain, width))


def fold(text: str, width: int) -> list[str]:
    """Cut a text into rows as a terminal of `width` columns does, which never cuts a wide character in half."""
    if cell_len(text) == len(text):
        return [text[i : i + width] for i in range(0, len(text), width)] or [""]
    rows, begin, used = [], 0, 0
    for index, character in enumerate(text):
        cells = get_character_cell_size(character)
        if used + cells > width:
            rows.append(text[begin:index])
            begin, used = index, 0
        used += cells
    return [*rows, text[begin:]]


def wrap(text: str, width: int) -> list[str]:
    """Cut a line into rows between words, and within those that are longer than a row; the last keeps its spaces."""
    rows = []
    while len(text) > width or cell_len(text) > width:
        row = fold(text[: width + 1], width)[0]
        cut = row.rfind(" ") + 1 or len(row)
        rows.append(text[:cut].rstrip(" "))
        text = text[cut:]
    return [*rows, text]
