"""The terminal between two prompts: what is typed while an answer streams waits, unseen, for the next prompt."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

if sys.platform != "win32":  # which echoes nothing while nobody reads
    import termios


class Terminal:
    """The input of the whole chat. Ctrl-C stays a signal; Enter comes as Enter, so that Ctrl-J can be told from it."""

    def __init__(self, keys: Input) -> None:
        self.keys = keys
        self._watched = sys.platform != "win32" and sys.stdin.isatty()
        self._before: Any = None
        self._quiet: Any = None  # the attributes while nobody else uses the terminal

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """While it is open nothing is echoed, and every key can be had at once."""
        if not self._watched:
            yield
            return
        descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(descriptor)
        quiet = [*self._before]
        quiet[0] &= ~(termios.ICRNL | termios.INLCR | termios.IXON)
        quiet[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        quiet[3] |= termios.NOFLSH  # Ctrl-C would take the end of what is being pasted away
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
        self._quiet = quiet
        before = signal.signal(signal.SIGCONT, self._continue)
        # What was typed while the model was loaded has been changed by the terminal: Enter came as Ctrl-J.
        store_typeahead(self.keys, [_as_enter(press) for press in self.keys.read_keys()])
        try:
            yield
        finally:
            signal.signal(signal.SIGCONT, before)
            _mark_pastes(False)
            self._set(self._before)

    @contextmanager
    def prompting(self) -> Iterator[None]:
        """While it is open a prompt has the terminal in its own way.

        It ends with the marks of pastes switched off; what is pasted while an answer streams is one message too.
        """
        quiet, self._quiet = self._quiet, None
        try:
            yield
        finally:
            self._quiet = quiet
            if self._watched:
                _mark_pastes(True)

    @contextmanager
    def ordinary(self) -> Iterator[None]:
        """As other programs and questions expect it, for a while."""
        if not self._watched or self._before is None:
            yield
            return
        present = termios.tcgetattr(sys.stdin.fileno())
        with self.prompting():
            _mark_pastes(False)
            self._set(self._before)
            try:
                yield
            except KeyboardInterrupt:
                _write(b"\n")  # behind the ^C, which the terminal shows here
                raise
            finally:
                self._set(present)

    def pressed(self, wanted: Keys) -> bool:
        """Whether a key was pressed since this was last asked (twice is never); the others wait for the prompt."""
        if not self._watched:
            return False
        typed = self.keys.read_keys()
        store_typeahead(self.keys, [press for press in typed if press.key != wanted])
        return sum(press.key == wanted for press in typed) % 2 == 1

    def settle(self) -> None:
        """An Escape alone is one key after all, when nothing followed it."""
        if self._watched:
            store_typeahead(self.keys, self.keys.flush_keys())

    def _continue(self, _number: int, _frame: Any) -> None:
        """After Ctrl-Z and fg: the shell has the terminal as it likes it."""
        if self._quiet is not None:
            self._set(self._quiet)
            _mark_pastes(True)

    def _set(self, attributes: Any) -> None:
        with suppress(termios.error):  # the terminal may have gone
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)


def _mark_pastes(wanted: bool) -> None:
    if os.environ.get("TERM") != "dumb":
        _write(b"\x1b[?2004h" if wanted else b"\x1b[?2004l")


def _write(data: bytes) -> None:
    with suppress(OSError):  # the terminal may have gone
        os.write(sys.stdout.fileno(), data)


def _as_enter(press: KeyPress) -> KeyPress:
    return KeyPress(Keys.ControlM, "\r") if press.key == Keys.ControlJ else press
