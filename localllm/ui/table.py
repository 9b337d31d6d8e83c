"""A table in plain text. On a terminal a row stays a line: what is expendable is left out, the last column is cut."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from localllm.ui.render import visible

_LEAST = 20  # characters that a cut cell keeps
_GAP = 2


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), expendable: Sequence[int] = ()
) -> None:
    """Columns as wide as their widest cell, two spaces apart; the columns in `right` are aligned there.

    `expendable` are columns that a narrow terminal goes without, the first one first.
    """
    table = [[visible(cell).replace("\n", "␊") for cell in row] for row in (head, *rows)]
    columns = list(range(len(head)))
    widths = [max(cell_length(row[i]) for row in table) for i in columns]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        for column in expendable:
            if _least(columns, widths) <= room:
                break
            columns.remove(column)
        last = columns[-1]
        widths[last] = max(min(_LEAST, widths[last]), min(widths[last], room - _width(columns[:-1], widths)))
    for row in table:
        cells = [(_cut(row[i], widths[i]), widths[i], i in right) for i in columns]
        line = (" " * _GAP).join(pad(cell, width, to_right=to_right) for cell, width, to_right in cells)
        sys.stdout.write(line.rstrip() + "\n")


def _width(columns: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[i] + _GAP for i in columns)


def _least(columns: Sequence[int], widths: Sequence[int]) -> int:
    """How wide a line is with its last cell cut as far as it may be."""
    return _width(columns[:-1], widths) + min(_LEAST, widths[columns[-1]])


def cell_length(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese takes two a character."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def pad(text: str, width: int, *, to_right: bool = False) -> str:
    space = " " * (width - cell_length(text))
    return space + text if to_right else text + space


def _cut(cell: str, width: int) -> str:
    """What fits of a cell: the end of a path, whose last part tells most; the beginning of anything else."""
    if cell_length(cell) <= width:
        return cell
    if "/" in cell:
        cell = cell[1 - width :]
        while cell_length(cell) > width - 1:
            cell = cell[1:]
        return "…" + cell
    cell = cell[: width - 1]
    while cell_length(cell) > width - 1:
        cell = cell[:-1]
    return cell + "…"
