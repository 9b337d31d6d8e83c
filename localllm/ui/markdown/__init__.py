"""Markdown on a terminal while it is being written.

Lines become blocks (`blocks`), blocks become rows (`leaves`, `code`, with `inline` for what stands inside of them), and
`screen` draws those that changed. What is final is drawn once; what may still change is bounded, whatever the source
does, so that a token costs the same at the end of a long answer as at its beginning.
"""

from __future__ import annotations

import time

from rich.console import Console

from localllm.ui.markdown.blocks import Blocks
from localllm.ui.markdown.screen import Screen
from localllm.ui.render import visible

FRAME_SECONDS = 1 / 30
SHARE = 0.1  # of the time that may be spent on drawing: on a slow terminal frames are rarer
_LONG_LINE = 240  # characters after which it is clear what a line is, though its end has not come


class MarkdownStream:
    """Feed it text with `push`, and end with `finish`. The cursor stays behind the last character until then."""

    def __init__(self, console: Console) -> None:
        self._console, self._screen = console, Screen(console)
        self._blocks = Blocks()
        self._tail = ""  # the beginning of a line
        self._in_line = False  # whether the beginning of the open line is in the open block already
        self._next_frame = 0.0

    def push(self, text: str) -> None:
        *lines, rest = visible(text).split("\n")
        for line in lines:
            self._add(line)
            if self._in_line:
                self._in_line = False
            else:
                self._blocks.line(self._tail)
            self._tail = ""
        self._add(rest)
        if len(self._tail) > _LONG_LINE:
            self._decide()
        if time.monotonic() >= self._next_frame:
            self._frame()

    def finish(self) -> None:
        """Draw what is left and end the line."""
        if self._tail:
            self._blocks.line(self._tail)
        self._tail, self._in_line = "", False
        self._blocks.end()
        self._screen.draw(self._final(), [])

    def _add(self, piece: str) -> None:
        if self._in_line and self._blocks.leaf is not None:
            self._blocks.leaf.extend(piece)
        else:
            self._tail += piece

    def _decide(self) -> None:
        """Let the block have the beginning of a long line; what follows goes there directly."""
        begin = self._tail.rstrip()
        if self._blocks.is_undecided(begin) and len(begin) < 10 * _LONG_LINE:
            return
        self._blocks.line(begin)
        if self._blocks.leaf is not None:
            self._blocks.leaf.extend(self._tail[len(begin) :])
        self._tail, self._in_line = "", self._blocks.leaf is not None

    def _frame(self) -> None:
        started = time.monotonic()
        final = self._final()
        view = self._blocks
        if self._tail and not self._blocks.is_undecided(self._tail):
            view = self._blocks.fork()
            view.line(self._tail)
        live = [line for leaf in view.take() for line in leaf.lines(self._console, growing=False)]
        if view.leaf is not None:
            live += view.leaf.lines(self._console, growing=True)
        self._screen.draw(final, live)
        now = time.monotonic()
        self._next_frame = now + max(FRAME_SECONDS, (now - started) / SHARE if FRAME_SECONDS else 0)

    def _final(self) -> list[str]:
        """The rows that have become final since the last time."""
        console = self._console
        rows: list[str] = []
        for leaf in self._blocks.take():
            rows += [*leaf.settle(console), *leaf.lines(console, growing=False)]
        if self._blocks.leaf is not None:
            rows += self._blocks.leaf.settle(console)
        return rows
