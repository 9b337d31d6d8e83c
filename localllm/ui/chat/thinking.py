"""What a model thinks before it answers: dimmed rows while it is shown, one line while it is not."""

from __future__ import annotations

import time

from rich.console import Console

from localllm.ui.markdown.screen import Screen, wrap
from localllm.ui.render import visible

_FRAME_SECONDS = 1 / 15
_MARGIN = "│ "


class ThinkingView:
    """Feed it text with `push`, change what is shown with `toggle`, and end with `finish`."""

    def __init__(self, console: Console, shown: bool) -> None:
        self.shown = shown
        self._console, self._screen = console, Screen(console)
        self._text: list[str] = []
        self._rows: list[str] = []  # what is shown and may still be taken away
        self._tail = ""  # of the text, not in the rows yet
        self._tokens = 0
        self._began = time.monotonic()
        self._drawn = 0.0

    def push(self, text: str) -> None:
        self._tokens += 1
        self._text.append(text)
        self._tail += visible(text)
        if time.monotonic() - self._drawn >= _FRAME_SECONDS:
            self._draw()

    def toggle(self) -> None:
        """Show all of it, or take away what is still on the screen."""
        self.shown = not self.shown
        if self.shown:
            self._rows, self._tail = [], visible("".join(self._text))
        self._draw()

    def finish(self) -> None:
        if self.shown:
            rows = [*self._rows, *self._wrapped(self._tail)]
            self._screen.draw([self._dim(row) for row in rows], [])
        else:
            seconds = time.monotonic() - self._began
            line = f"(thought for {seconds:.0f} s, {self._tokens} tokens; Ctrl-O shows it)"
            self._screen.draw([self._dim(line)], [])

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if not self.shown:
            self._screen.draw([], [self._dim(f"(thinking, {self._tokens} tokens; Ctrl-O shows it)")])
            return
        wrapped = self._wrapped(self._tail)
        self._tail = wrapped.pop()
        self._rows += wrapped
        over = max(0, len(self._rows) - max(1, self._console.height - 3))
        final, self._rows = self._rows[:over], self._rows[over:]
        self._screen.draw(*([self._dim(row) for row in rows] for rows in (final, [*self._rows, self._tail])))

    def _wrapped(self, text: str) -> list[str]:
        width = max(4, self._console.width - len(_MARGIN))
        return [row for line in text.expandtabs(4).split("\n") for row in wrap(line, width)]

    def _dim(self, row: str) -> str:
        line = _MARGIN + row if self.shown else row
        if self._console.color_system is None:
            return line
        return f"\x1b[2m{line}\x1b[0m"
