"""How a process is ended from outside, each way with an exception and an exit code of its own.

Ctrl-C is KeyboardInterrupt (130), as in any Python program. SIGTERM raises `Terminated` (143), which nothing but
`finally` sees, and a deadline raises `TimedOut` (124). While native code runs, `engines/interrupt.py` holds the signal
back until that code has returned, and then has the handlers of this module called.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from localllm.errors import TERMINATED, TimedOut

# Windows has no alarm; there Ctrl-Break's number stands in, which a thread can have delivered too.
_ALARM: int = getattr(signal, "SIGALRM", 0) or getattr(signal, "SIGBREAK", signal.SIGINT)

_AGAIN = 2.0  # seconds until the alarm comes again, for whoever was blocked in a write when the first one came


class Terminated(SystemExit):
    """SIGTERM: what is open is closed, what was written is flushed, and the process ends with 143.

    So it is with SIGHUP, where somebody asked for it, and 129.
    """

    def __init__(self, code: int = TERMINATED) -> None:
        super().__init__(code)


def end_on_termination() -> None:
    """Let SIGTERM end the program cleanly, where nobody has said that it is to be ignored."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def end_on_hangup() -> None:
    """Let the end of the terminal end the program cleanly too, but not under nohup."""
    number = getattr(signal, "SIGHUP", None)
    if number is not None and signal.getsignal(number) is signal.SIG_DFL:
        signal.signal(number, _terminate)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise TimedOut in the main thread when `seconds` have passed; None waits for ever."""
    if seconds is None:
        yield
        return

    def expire(_number: int, _frame: Any) -> None:
        raise TimedOut(seconds)

    previous = signal.signal(_ALARM, expire)
    timer = threading.Timer(seconds, _thread.interrupt_main, (_ALARM,))
    timer.daemon = True
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    else:
        timer.start()
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        timer.cancel()
        signal.signal(_ALARM, previous)


def _terminate(number: int, _frame: Any) -> None:
    raise Terminated(128 + number)
