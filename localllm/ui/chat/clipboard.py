"""The clipboard: by the tools of the desktop, or by the terminal itself (OSC 52), which works through ssh too."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from localllm.errors import UsageError

_SECONDS = 5.0
_SILENT: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_LONGEST = 74_994  # bytes that terminals take by OSC 52
_MOST = 8_000_000  # bytes that are taken from a clipboard


def copy(text: str, terminal: IO[str]) -> str:
    """Put a text there; returns how. Raises UsageError."""
    for words in _tools("copy"):
        try:
            done = subprocess.run(
                words, input=text.encode(), timeout=_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return words[0]
    data = base64.b64encode(text.encode()).decode()
    if len(data) > _LONGEST:
        raise UsageError("there is no clipboard tool here, and for the terminal's own clipboard it is too long", _HINT)
    sequence = f"\x1b]52;c;{data}\x07"
    if os.environ.get("TMUX"):
        sequence = "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    terminal.write(sequence)
    terminal.flush()
    return "the terminal"


def paste() -> str:
    """What is there. Raises UsageError."""
    for words in _tools("paste"):
        try:
            done = subprocess.run(words, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and len(done.stdout) <= _MOST:
            return done.stdout.decode(errors="replace").replace("\r\n", "\n")
    raise UsageError("no clipboard can be read here", "paste into the line itself: pasted lines stay together")


def _tools(way: str) -> Sequence[list[str]]:
    """The commands that may work here, the likeliest first."""
    if sys.platform == "darwin":
        found = [["pbcopy"] if way == "copy" else ["pbpaste"]]
    elif sys.platform == "win32":
        found = [["clip.exe"] if way == "copy" else ["powershell.exe", "-NoProfile", "-Command", "Get-Clipboard"]]
    else:
        found = []
        if os.environ.get("WAYLAND_DISPLAY"):
            found.append(["wl-copy"] if way == "copy" else ["wl-paste", "--no-newline"])
        if os.environ.get("DISPLAY"):
            found.append(["xclip", "-selection", "clipboard", *(["-o"] if way == "paste" else [])])
            found.append(["xsel", "--clipboard", "--input" if way == "copy" else "--output"])
    return [words for words in found if shutil.which(words[0])]


_HINT = "install wl-clipboard, xclip or xsel"
