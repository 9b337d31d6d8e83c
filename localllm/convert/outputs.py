"""What a converted file will hold: each tensor as pieces of the checkpoint's, rearranged by rows.

Whatever a family needs done to a weight (heads taken apart, projections split or merged, experts stacked) moves whole
rows of its last dimension, so a plan is names, shapes and row numbers, and the data passes through in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from localllm.convert.checkpoint import Stored

if TYPE_CHECKING:
    import numpy as np

BLOCK = 16 << 20  # bytes of a checkpoint's tensor that are worked on at once


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the checkpoint; `rows` (int64) choose and order its rows, all leading dimensions counted as one."""

    source: Stored
    rows: Any = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As it will be, the leading dimensions of chosen rows as one."""
        shape = self.source.shape
        if self.transposed:
            return shape[::-1]
        return shape if self.rows is None else (len(self.rows), *shape[-1:]) if len(shape) > 1 else (len(self.rows),)

    def blocks(self) -> Iterator[np.ndarray]:
        """The piece in its stored type, some rows at a time: arrays of two dimensions, or of one."""
        import numpy as np

        data: np.ndarray = self.source.map()
        if self.transposed:
            data = data.T
        elif data.ndim > 2:
            data = data.reshape(-1, data.shape[-1])
        order = None if self.rows is None else np.asarray(self.rows)
        count = len(data) if order is None else len(order)
        width = data.itemsize * (data.shape[1] if data.ndim > 1 else 1)
        step = max(1, BLOCK // max(1, width))
        for start in range(0, count, step):
            part = slice(start, min(count, start + step))
            yield np.ascontiguousarray(data[part]) if order is None else data[order[part]]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the file to be written, row-major. `values` (float32) stand for what is computed, not stored.

    Every element is multiplied by `scaled`, and `added` is added to it, in float32.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    values: Any = None
    added: float = 0.0
    scaled: float = 1.0

    @property
    def dtype(self) -> str:
        """The type of the checkpoint's numbers."""
        return self.pieces[0].source.dtype if self.pieces else "F32"

    def blocks(self) -> Iterator[tuple[str, np.ndarray]]:
        """The data in order, with the type each block is in."""
        if self.values is not None:
            yield "F32", cast("np.ndarray", self.values)
        for piece in self.pieces:
            for block in piece.blocks():
                yield piece.source.dtype, block
