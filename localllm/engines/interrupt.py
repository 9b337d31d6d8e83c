"""Ctrl-C, SIGTERM and a deadline while native code runs.

Python acts on a signal only between two of its own instructions, and a long prompt can keep the main thread in native
code for a minute. Python's C signal handler does write a byte into the "wakeup" socket at once, though; a thread that
reads it raises the flag that native code polls. Native code returns, whoever called it raises KeyboardInterrupt, and
`abort_on_interrupt` makes of it what the signal means. No exception flies out of the signal itself: it could land in a
callback from native code, which swallows it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]


# The signals that came and were not acted on, for each `abort_on_interrupt` that is open; and whether the main thread
# waits for input, where no native code is that could be told.
_unheeded: list[list[int]] = []
_waiting: list[object] = []


def waiting(source: Iterable[T]) -> Iterator[T]:
    """The items of a source that may keep the main thread waiting, such as a pipe: a signal ends the wait at once."""
    items = iter(source)
    while True:
        try:
            _waiting.append(items)
            if any(_unheeded):
                raise KeyboardInterrupt  # `abort_on_interrupt` makes of it what the signal means
            item = next(items)
        except StopIteration:
            return
        finally:
            _waiting.pop()
        yield item


class Flag(ABC):
    """What native code looks at while it works; `followers` go up and down with it."""

    def __init__(self) -> None:
        self.followers: list[Flag] = []

    @property
    @abstractmethod
    def is_up(self) -> bool: ...

    @abstractmethod
    def set(self, up: bool) -> None: ...

    def put_up(self) -> None:
        self.set(True)
        for other in self.followers:
            other.put_up()

    def take_down(self) -> None:
        self.set(False)
        for other in self.followers:
            other.take_down()


class AbortFlag(Flag):
    """A flag that native code can poll without a call into Python.

    llama.cpp asks `bool callback(void *data)` at every node of the graph, some 500 times a token; a Python function
    there costs 8 % of the speed. C's own `strlen` has the same shape: with the flag's bytes as its argument it returns
    0 while the flag is down and 1 when it is up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bytes = ctypes.create_string_buffer(2)
        library = ctypes.CDLL(None) if os.name == "posix" else ctypes.CDLL("msvcrt")
        self.callback = ctypes.cast(library.strlen, ctypes.c_void_p)
        self.data = ctypes.cast(self._bytes, ctypes.c_void_p)

    @property
    def is_up(self) -> bool:
        return self._bytes.raw[0] != 0

    def set(self, up: bool) -> None:
        self._bytes[0] = b"\1" if up else b"\0"


@contextmanager
def abort_on_interrupt(flag: Flag) -> Iterator[None]:
    """While this runs in the main thread, a signal that has a handler puts the flag up at once.

    The handler is called at the end, at once where input is waited for, or when a second signal comes; it raises. A
    flag that nobody acted on does so too: no Ctrl-C is lost. In another thread this does nothing: signals are the main
    thread's.
    """
    flag.take_down()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    def end() -> None:
        handler = handlers[came[0]]
        if callable(handler):
            handler(came[0], None)
        raise KeyboardInterrupt

    def handle(number: int, _frame: Any) -> None:
        came.append(number)
        flag.put_up()
        if len(came) > 1 or _waiting:
            end()

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    held = [number for number, handler in handlers.items() if callable(handler)]  # what is ignored stays so
    for number in held:
        signal.signal(number, handle)
    previous_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, flag, held), daemon=True)
    watcher.start()
    _unheeded.append(came)
    try:
        yield
        if came:
            end()
    except KeyboardInterrupt:
        if came:
            end()
        raise
    finally:
        _unheeded.pop()
        signal.set_wakeup_fd(previous_descriptor)
        for number in held:
            signal.signal(number, handlers[number])
        writer.close()
        watcher.join()
        reader.close()
        flag.take_down()


def _watch(reader: socket.socket, flag: Flag, numbers: Collection[int]) -> None:
    while number := reader.recv(1):
        if number[0] in numbers:
            flag.put_up()
