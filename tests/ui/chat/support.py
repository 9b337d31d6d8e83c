"""A chat in a pseudo-terminal, mostly with scripted answers."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.command import Terminal


def at_prompt(text: str) -> bool:
    """Whether the chat waits for input, with the bar at the bottom."""
    return bool(re.search(r"\n>\n(?:\s*\n)? [^\n]*context [^\n]*$", "\n" + text))


def prompts(text: str) -> int:
    return sum(line.startswith(">") for line in text.splitlines())


def scripted(folder: Path, *answers: str, seconds: float = 0) -> Path:
    """A script for `--engine fake`: these answers in turn, a token (a byte) every so many seconds."""
    path = folder / "script"
    path.write_bytes(f"#!answers {seconds}\n".encode() + "\f".join(answers).encode())
    return path


class Chat(Terminal):
    """`localllm chat` with a script, at its first prompt."""

    def __init__(self, script: Path, *words: str, columns: int = 80, rows: int = 24, **environment: str) -> None:
        super().__init__(
            "chat", "--engine", "fake", "-m", str(script), *words, columns=columns, rows=rows, **environment
        )
        self.wait(at_prompt if environment.get("TERM") != "dumb" else lambda t: t.endswith("\n>"), 30)

    def say(self, line: str, seconds: float = 30) -> str:
        """Send a line, wait until the next prompt, and return what came between."""
        before = self.text.rfind("\n>")
        self.send(line + "\r")
        shown = line.split("\n")[0][:40].strip()
        text = self.wait(lambda t: at_prompt(t) and t.rfind("\n>") > before and shown in t[before:], seconds)
        return text[before + 2 : text.rfind("\n>")].partition("\n")[2].rstrip()
