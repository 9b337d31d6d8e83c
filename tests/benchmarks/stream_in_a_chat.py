"""What a token costs the chat, at the beginning of a long answer and at its end, in a real pseudo-terminal.

usage: python tests/benchmarks/stream_in_a_chat.py [TOKENS]

A scripted engine gives a token (four characters) every two milliseconds, and the chat draws as it always does. Each row
is one kind of answer; the columns are its four quarters, in milliseconds of processor time of the chat's process, with
what the engine itself takes, for each token.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import select
import struct
import sys
import tempfile
import termios
from pathlib import Path

import psutil

CHARACTERS = 4  # of a token
SECONDS = 0.0005  # between two tokens of the scripted engine, which are single characters
KINDS = {
    "paragraphs": ("", "Sentence {:06d} of **some** words.\n\n"),
    "one paragraph": ("", "Sentence {:06d} of **some** words with `code` in it. "),
    "one code block": ("```python\n", "    x{:06d} = foo(bar, 'baz')  # comment\n"),
    "one table": ("| a | b | c |\n|---|---|---|\n", "| {:06d} | another **cell** | 12 |\n"),
    "one nested list": ("- a\n", "    - item {:06d} of a list\n"),
    "one quotation": ("", "> sentence {:06d} of a quotation\n"),
}


class Chat:
    """`localllm chat` with a script, in a terminal of 80 columns and 24 rows."""

    def __init__(self, script: Path) -> None:
        words = ["-m", "localllm", "chat", "--engine", "fake", "-m", str(script), "-c", "1000000", "--no-history"]
        self.process, self._master = pty.fork()
        if not self.process:
            os.environ["TERM"] = "xterm-256color"
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.execv(sys.executable, [sys.executable, *words])
        self._tail = ""

    def seconds(self) -> float:
        """Processor time so far."""
        spent = psutil.Process(self.process).cpu_times()
        return spent.user + spent.system

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read(self, seconds: float) -> str:
        if not select.select([self._master], [], [], seconds)[0]:
            return ""
        data = os.read(self._master, 65536).decode(errors="replace")
        for _ in range(data.count("\x1b[6n")):  # prompt-toolkit asks where the cursor is
            self.send("\x1b[1;1R")
        return data

    def close(self) -> None:
        self.send("\x04")
        try:
            while self.read(10):
                pass
        except OSError:  # the other side has gone
            pass
        os.close(self._master)
        os.waitpid(self.process, 0)


def quarters(kind: str, tokens: int, folder: Path) -> list[float]:
    """Processor milliseconds a token, for every quarter of an answer."""
    begin, unit = KINDS[kind]
    count = tokens * CHARACTERS // len(unit.format(0))
    script = folder / "script"
    script.write_text(f"#!answers {SECONDS}\n{begin}" + "".join(unit.format(i) for i in range(count)))
    chat = Chat(script)
    while "context" not in chat.read(60):
        pass
    chat.send("go\r")
    spent, seen = [], ""
    while len(spent) < 5:
        data = chat.read(60)
        if not data:
            raise SystemExit("the chat says nothing any more")
        seen = seen[-8:] + data
        numbers = [int(n) for n in re.findall(r"\d{6}", seen)]
        last = max((n for n in numbers if n < count), default=-1)
        while len(spent) < 5 and last >= (count - 1) * len(spent) // 4:
            spent.append(chat.seconds())
    chat.close()
    return [(b - a) / (tokens / 4) * 1e3 for a, b in itertools.pairwise(spent)]


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(f"ms a token, by quarters of {tokens}")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{kind:20}" + "".join(f"{ms:8.3f}" for ms in quarters(kind, tokens, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
