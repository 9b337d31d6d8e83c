"""Bytes of tokens -> text that can be shown now.

A token may end in the middle of a character, and a stop string may straddle tokens: both are held back until the next
bytes decide. Invalid UTF-8 becomes U+FFFD, as everywhere in Python's `replace` error handler.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed it bytes with `push`; what it returns is safe to show. `stopped` is the stop string that was met."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped: str | None = None

    def push(self, piece: bytes) -> str:
        return self._release(self._decoder.decode(piece), end=False)

    def push_text(self, text: str) -> str:
        """The same for text that needs no decoding any more."""
        return self._release(text, end=False)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        return self._release(self._decoder.decode(b"", final=True), end=True)

    def _release(self, text: str, end: bool) -> str:
        if self.stopped is not None:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            position, self.stopped = min(found)
            self._held = ""
            return text[:position]
        keep = 0 if end else max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
