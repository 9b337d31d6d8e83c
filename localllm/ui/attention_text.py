"""A matrix of attention on the terminal: percentages on a ground the darker the more, or less of it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from localllm.ui.render import visible
from localllm.ui.table import cell_length, pad
from localllm.ui.tokens import quoted, terminal

if TYPE_CHECKING:
    import numpy as np

_LABEL = 16
_CELL = 4
_SHADES = " ·░▒▓█"
_MOST = 3  # tokens named where the matrix has no room
_EMPTY = 0.005  # weights below are left out


def show(matrix: np.ndarray, data: Sequence[bytes], title: str) -> None:
    """What the terminal's width allows: percentages, shades, or the tokens most looked at. A pipe takes any width."""
    console = terminal()
    names = [_cut(quoted(one)) for one in data]
    digits = len(str(len(data) - 1))
    heads = [f"{index:>{digits}} {pad(name, max(map(cell_length, names)))}" for index, name in enumerate(names)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    left = cell_length(heads[0]) + 1
    print(visible(title))
    if left + _CELL * len(data) <= room:
        print(" " * left + "".join(f"{index:>{_CELL}}" for index in range(len(data))))
        for head, row in zip(heads, matrix, strict=True):
            _print_row(head, [_percent(weight) for weight in row], row.tolist(), console)
    elif left + len(data) <= room:
        for head, row in zip(heads, matrix, strict=True):
            print(f"{head} " + "".join(_shade(weight) for weight in row).rstrip())
    else:
        for head, row in zip(heads, matrix, strict=True):
            best = row.argsort()[::-1][:_MOST].tolist()
            seen = "  ".join(f"{row[index]:.0%} {index} {names[index]}" for index in best if row[index] >= _EMPTY)
            print(f"{head} {seen}")


def _print_row(head: str, cells: Sequence[str], weights: Sequence[float], console: object) -> None:
    from rich.console import Console
    from rich.text import Text

    if not isinstance(console, Console) or console.no_color:
        print(f"{head} " + "".join(cells).rstrip())
        return
    line = Text(f"{head} ")
    for cell, weight in zip(cells, weights, strict=True):
        line.append(cell, _ground(weight))
    console.print(line, soft_wrap=True)


def _percent(weight: float) -> str:
    return f"{weight * 100:{_CELL}.0f}" if weight >= _EMPTY else " " * _CELL


def _shade(weight: float) -> str:
    return _SHADES[0] if weight < _EMPTY else _SHADES[min(len(_SHADES) - 1, 1 + int(weight**0.5 * (len(_SHADES) - 1)))]


def _ground(weight: float) -> str:
    """From the terminal's own ground to a deep blue."""
    if weight < _EMPTY:
        return "none"
    part = weight**0.5
    red, green, blue = (round(230 + (low - 230) * part) for low in (23, 69, 125))
    return f"{'black' if part < 0.6 else 'bright_white'} on #{red:02x}{green:02x}{blue:02x}"


def _cut(text: str) -> str:
    while cell_length(text) > _LABEL:
        text = text[:-2] + "…"
    return text
