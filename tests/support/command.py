"""Runs the real program: as a process with pipes, or in a pseudo-terminal whose screen pyte keeps."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType

import pyte

COMMAND = [sys.executable, "-m", "localllm"]


def localllm(
    *words: str, input: str | bytes = b"", timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """One run with pipes; stdin is never a terminal."""
    data = input.encode() if isinstance(input, str) else input
    done = subprocess.run(
        [*COMMAND, *words], input=data, capture_output=True, timeout=timeout, env={**os.environ, **environment}
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def on_a_full_disk(*words: str) -> subprocess.CompletedProcess[str]:
    """One run with a limit of no bytes on the size of files: a write fails, as where a disk is full."""
    return subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *COMMAND, *words], capture_output=True, text=True, timeout=120
    )


class Terminal:
    """The program in a pseudo-terminal. `screen` is what a person sees, `raw` what was written."""

    def __init__(self, *words: str, columns: int = 80, rows: int = 24, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        master, slave = pty.openpty()
        self._master = master
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size; the kernel tells the program by SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal driver delivers it."""
        os.killpg(self.process.pid, signal.SIGINT)

    @property
    def text(self) -> str:
        """What stands on the screen and what has scrolled away."""
        scrolled = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*scrolled, *self.screen.display]).rstrip()

    def wait(self, condition: Callable[[str], bool], seconds: float = 60) -> str:
        """Read until the text fulfils a condition; fails with the screen when it does not in time."""
        end = time.monotonic() + seconds
        while not condition(self.text):
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"in vain; the screen:\n{self.text}\nraw tail: {self.raw[-400:]!r}")
        return self.text

    def settle(self, seconds: float = 0.4) -> str:
        """Read until nothing has come for a while."""
        while self._read(seconds):
            pass
        return self.text

    def exit_code(self, seconds: float = 30) -> int:
        self.wait_closed(seconds)
        return self.process.wait(timeout=seconds)

    def wait_closed(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read(min(1.0, end - time.monotonic())) is not None:
            if self.process.poll() is not None and not self._read(0.05):
                return

    def _read(self, seconds: float) -> bool | None:
        """True when something came, False when not in time, None at the end."""
        if seconds <= 0 or not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the other side has gone
            return None
        if not data:
            return None
        self.raw += data
        # Answer the question for the cursor's place, which prompt-toolkit asks, as a terminal does.
        self._stream.feed(data)
        for _ in range(data.count(b"\x1b[6n")):
            self.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        return True
