"""Orders of rows: what the rearrangements that a checkpoint's weights need come to. Each is an int64 array."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def interleaved_halves(count: int, heads: int) -> np.ndarray:
    """From a rotation of each head's first half with its second to one of neighbours, as llama.cpp has it.

    The checkpoint's row i + half of a head comes to stand right behind its row i.
    """
    import numpy as np

    found: np.ndarray = np.arange(count).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
    return found


def by_head_to_by_kind(count: int, heads: int) -> np.ndarray:
    """From (query, key, value) of each head in turn, as GPT-NeoX and BLOOM have them, to all queries, keys, values."""
    import numpy as np

    found: np.ndarray = np.arange(count).reshape(heads, 3, -1).swapaxes(0, 1).ravel()
    return found


def by_group_to_by_kind(count: int, heads: int, kv_heads: int) -> np.ndarray:
    """From groups of queries with their key and value, as Falcon has them, to all queries, keys, values."""
    import numpy as np

    group = heads // kv_heads
    rows = np.arange(count).reshape(kv_heads, group + 2, -1)
    return np.concatenate([rows[:, :group].ravel(), rows[:, group].ravel(), rows[:, group + 1].ravel()])


def half(shape: tuple[int, ...], which: int) -> np.ndarray:
    """The first or second half (0, 1) along the last dimension but one, as gate and up projections are merged."""
    import numpy as np

    rows = int(np.prod(shape[:-1]))
    return np.arange(rows).reshape(-1, 2, shape[-2] // 2)[:, which].ravel()
