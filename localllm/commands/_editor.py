"""The user's own editor."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from localllm.errors import LocalLLMError


def edit_file(path: Path) -> None:
    """Open a file in $VISUAL or $EDITOR, and wait. Raises LocalLLMError where that fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        done = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except (OSError, ValueError) as error:
        raise LocalLLMError(f"the editor {editor!r} cannot be started: {error}", "set $EDITOR") from None
    if done.returncode:
        raise LocalLLMError(f"{editor} ended with {done.returncode}")
