"""Numbers as people read them."""

from __future__ import annotations

import time


def size(count: float) -> str:
    """Bytes, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB" if count < 999.5 else f"{count / 1000:.1f} TB"


def count(number: int) -> str:
    """Parameters; nothing where they are not known."""
    if not number:
        return ""
    return f"{number / 1e9:.1f} B" if number >= 0.9995e9 else f"{number / 1e6:.0f} M"


def date(seconds: float) -> str:
    """Seconds since 1970 as a day of this place."""
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
