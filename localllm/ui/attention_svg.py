"""A matrix of attention as an SVG that stands alone: rows look at columns, the darker the more."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from localllm.errors import UsageError
from localllm.ui.render import visible
from localllm.ui.tokens import label

if TYPE_CHECKING:
    import numpy as np

COLOR = "#17457d"
MAX_TOKENS = 256
_FONT = "font-family:ui-monospace,Menlo,Consolas,monospace"
_WIDTH = 760  # of the cells together, in pixels, at most
_LARGEST, _LEAST = 26, 3
_READABLE = 9  # a smaller cell has no room for a label at each


def require_room(tokens: int) -> None:
    """Raises UsageError where a picture has no room for so many."""
    if tokens > MAX_TOKENS:
        raise UsageError(
            f"the text has {tokens} tokens, and a picture has room for {MAX_TOKENS}",
            "a shorter text; arrays (--out FILE.npz) have no such limit",
        )


def darkness(weight: float) -> float:
    """The opacity of a weight: its square root, so that a look of a percent can be seen."""
    return float(max(0.0, min(1.0, weight)) ** 0.5)


def svg(matrix: np.ndarray, data: Sequence[bytes], title: str) -> str:
    """`matrix` (tokens, tokens) with the tokens' bytes; everything a model or a user wrote is escaped.

    Raises UsageError where the tokens are too many for a picture.
    """
    require_room(len(data))
    count, title = len(data), visible(title)
    cell = max(_LEAST, min(_LARGEST, _WIDTH // count))
    every = max(1, -(-_READABLE // cell))  # only each so many-th label
    labels = [label(one) for one in data]
    margin = 14 + 8 * min(18, max(map(len, labels)))
    top, size = margin + 28, cell * count
    font = min(13, max(8, cell * every - 2))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{margin + size + 20}" height="{top + size + 12}" '
        f'role="img" style="background:#fff;{_FONT};font-size:{font}px">',
        f"<title>{html.escape(title)}</title>",
        f'<text x="8" y="18" style="font-size:14px">{html.escape(title)}</text>',
        f'<rect x="{margin}" y="{top}" width="{size}" height="{size}" fill="none" stroke="#bbb"/>',
    ]
    for index in range(0, count, every):
        text, middle = html.escape(labels[index]), index * cell + cell / 2
        y, x = top + middle + font / 3, margin + middle + font / 3
        parts.append(f'<text class="row" x="{margin - 6}" y="{y:g}" text-anchor="end">{text}</text>')
        parts.append(f'<text class="column" transform="translate({x:g} {top - 6}) rotate(-90)">{text}</text>')
    last = [min(count, row + 1) if not matrix[row, row + 1 :].any() else count for row in range(count)]
    for row in range(count):
        for column in range(last[row]):
            weight = float(matrix[row, column])
            told = html.escape(f"{labels[row]} → {labels[column]}: {weight:.1%}")
            parts.append(
                f'<rect class="cell" data-row="{row}" data-column="{column}" x="{margin + column * cell}" '
                f'y="{top + row * cell}" width="{cell}" height="{cell}" fill="{COLOR}" '
                f'fill-opacity="{darkness(weight):.3f}"><title>{told}</title></rect>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
