"""Text in the user's own editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from localllm.errors import UsageError

_USUAL = ("sensible-editor", "nano", "vim", "vi", "notepad.exe")


def edit_text(text: str) -> str:
    """What the user makes of `text`, without the newline that editors add. Raises UsageError where no editor runs."""
    with tempfile.TemporaryDirectory(prefix="localllm-") as folder:  # mode 0700: nobody else reads along
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        edit_file(path)
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"what the editor wrote cannot be read: {error}") from None


def edit_file(path: Path) -> None:
    """Open a file in the user's editor, and wait. Raises UsageError where none runs."""
    words = _editor()
    try:
        code = subprocess.call([*words, str(path)])
    except OSError as error:
        raise UsageError(f"{words[0]} cannot be run: {error.strerror}", "set EDITOR to your editor") from None
    if code:
        raise UsageError(f"{words[0]} ended with {code}; nothing has changed", "set EDITOR to another editor")


def _editor() -> list[str]:
    for name in ("VISUAL", "EDITOR"):
        if value := os.environ.get(name, "").strip():
            try:
                return shlex.split(value)
            except ValueError as error:
                raise UsageError(f"{name}={value}: {error}", f"mend {name}") from None
    for usual in _USUAL:
        if shutil.which(usual):
            return [usual]
    raise UsageError("no editor was found", "set EDITOR to your editor")
