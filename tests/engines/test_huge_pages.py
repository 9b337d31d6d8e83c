"""Large blocks of memory are moved to huge pages, and nothing but large blocks."""

from __future__ import annotations

import subprocess
import sys

from localllm.engines.huge_pages import _blocks, use_huge_pages

MAPS = """
5614348c0000-56143f86d000 rw-p 00000000 00:00 0                          [heap]
Size:             179892 kB
Rss:              165444 kB
7f7960021000-7f7964000000 ---p 00000000 00:00 0
Rss:                   0 kB
7f796b800000-7f7973800000 rw-p 00000000 00:00 0
Rss:                  20 kB
7f79718a9000-7f7972cea000 rw-p 00000000 00:00 0
Rss:               20740 kB
7f7979000000-7f7979200000 rw-p 00000000 00:00 0
Rss:                2048 kB
7f7981489000-7f79827ca000 r-xp 00288000 fe:00 5334426                    /usr/lib/libblas.so
Rss:               19716 kB
7f7991489000-7f79927ca000 rw-p 00288000 fe:00 5334426                    /some/file
Rss:               19716 kB
7ffd71489000-7ffd727ca000 rw-p 00000000 00:00 0                          [stack]
Rss:               19716 kB
"""


def test_only_large_resident_anonymous_blocks() -> None:
    found = list(_blocks(MAPS.splitlines()))
    assert found == [(0x561434A00000, 0x56143F800000), (0x7F7971A00000, 0x7F7972C00000)]


def test_memory_stays_what_it_is() -> None:
    code = (
        "from localllm.engines.huge_pages import use_huge_pages\n"
        "data = bytearray(b'0123456789abcdef' * (1 << 21))\n"
        "moved = use_huge_pages()\n"
        "assert 0 <= moved < 1 << 30\n"
        "assert data == b'0123456789abcdef' * (1 << 21)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert use_huge_pages() >= 0
