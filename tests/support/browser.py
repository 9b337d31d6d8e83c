"""Headless Chromium: a page as it stands after its scripts, and as it looks. Debian's package is `chromium`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def dom(page: Path, fragment: str = "") -> str:
    """The document after its scripts ran, as HTML."""
    return _chromium("--dump-dom", page.as_uri() + fragment).decode()


def screenshot(page: Path, target: Path, fragment: str = "", *, width: int = 1200, height: int = 900) -> Path:
    _chromium(f"--screenshot={target}", f"--window-size={width},{height}", page.as_uri() + fragment)
    return target


def _chromium(*words: str) -> bytes:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "these tests look at pictures in Chromium: apt-get install chromium"
    with tempfile.TemporaryDirectory() as profile:
        command = [program, *_FLAGS, f"--user-data-dir={profile}", *words]
        return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout
