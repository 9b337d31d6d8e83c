"""Weights on huge pages, where Linux gives them to who asks (`transparent_hugepage/enabled` is `madvise`).

Every token reads all weights from first to last; with pages of 4 KB the processor spends a tenth of that time looking
up where they are. ONNX Runtime allocates them with malloc and does not ask, so it is asked for here, afterwards.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/smaps")
_HUGEPAGE, _COLLAPSE = 14, 25  # madvise: from now on; what is there already, at once (Linux 6.1)
_PAGE = 2 << 20
_LEAST = 8 << 20  # bytes of a mapping that is worth it
_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(\[heap\])?$")


def use_huge_pages() -> int:
    """Move this process's large blocks of memory to huge pages; returns how many bytes that were."""
    if sys.platform != "linux":
        return 0
    try:
        if "[madvise]" not in _SETTING.read_text(encoding="ascii"):
            return 0
        blocks = list(_blocks(_MAPS.read_text(encoding="utf-8", errors="replace").splitlines()))
    except OSError:
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for start, stop in blocks:
        madvise(start, stop - start, _HUGEPAGE)
        if madvise(start, stop - start, _COLLAPSE) == 0:
            moved += stop - start
    return moved


def _blocks(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Whole huge pages of the anonymous mappings that are large and nearly all in memory."""
    start = stop = 0
    for line in lines:
        if "-" in line.partition(" ")[0]:
            found = _RANGE.match(line)
            start, stop = (int(found[1], 16), int(found[2], 16)) if found else (0, 0)
        elif line.startswith("Rss:") and stop - start >= _LEAST:
            resident = int(line.split()[1]) << 10
            if resident >= (stop - start) * 3 // 4:
                yield -(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE
