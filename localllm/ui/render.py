"""Chunks -> text on stdout. What a model wrote never moves the cursor or changes the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from localllm.types import Chunk, Usage

# C0 controls but tab and newline become their pictures (\r alone would overwrite a line), the C1 controls U+FFFD.
_CONTROLS = (
    {i: 0x2400 + i for i in range(32) if i not in (9, 10)} | {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
)
# Bidirectional overrides can show a text other than it is.
_CONTROLS |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def visible(text: str) -> str:
    """The text with every control character replaced by something that can be seen."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def stream_plain(chunks: Iterable[Chunk]) -> Usage:
    """Write an answer to stdout as it comes, and end it with a newline. A pipe gets the model's bytes unchanged.

    What is not the answer goes to stderr: thinking and summaries where a person reads it, notices in any case.
    """
    out, terminal = sys.stdout, sys.stdout.isatty()
    usage = None
    last, aside = "", Aside()
    try:
        for chunk in chunks:
            usage = chunk.usage or usage
            if chunk.kind != "answer":
                aside.write(chunk)
            elif chunk.text:
                aside.finish()
                last = visible(chunk.text) if terminal else chunk.text
                out.write(last)
                out.flush()
        aside.finish()
    except BaseException:
        aside.finish()
        if terminal and last and not last.endswith("\n"):  # what is written next begins a line of its own
            out.write("\n")
        raise
    if not last.endswith("\n"):
        out.write("\n")
        out.flush()
    assert usage is not None, "an engine's last chunk carries the usage"
    return usage


def dimming() -> tuple[str, str]:
    """What dims a text on a terminal, and what ends that; nothing where colours are not wanted."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return ("", "") if plain else ("\x1b[2m", "\x1b[0m")


class Aside:
    """What a model thinks, dimmed on stderr; nowhere when stderr is no terminal. Notices are lines of their own.

    Where it is to be quiet, neither is written.
    """

    def __init__(self) -> None:
        from localllm.ui.progress import is_quiet

        self._quiet = is_quiet()
        terminal = sys.stderr.isatty() and not self._quiet
        self._shown, self._dim, self._bright = terminal, *dimming()
        self._last = ""  # the last character of what was written, until it is finished

    def write(self, chunk: Chunk) -> None:
        if chunk.kind == "notice":
            if self._quiet:
                return
            self.finish()
            sys.stderr.write(f"localllm: {visible(chunk.text)}\n")
        elif self._shown and chunk.text:
            sys.stderr.write(f"{self._dim}{visible(chunk.text)}{self._bright}")
            sys.stderr.flush()
            self._last = chunk.text[-1]

    def finish(self) -> None:
        """End what was written with an empty line."""
        if self._last:
            sys.stderr.write("\n" if self._last == "\n" else "\n\n")
        self._last = ""
