"""Chunks -> text on stdout. What a model wrote never moves the cursor or changes the terminal."""

from __future__ import annotations

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
    """Write an answer to stdout as it comes, and end it with a newline. A pipe gets the model's bytes unchanged."""
    out, terminal = sys.stdout, sys.stdout.isatty()
    usage = None
    last = ""
    try:
        for chunk in chunks:
            if chunk.text and chunk.kind == "answer":
                last = visible(chunk.text) if terminal else chunk.text
                out.write(last)
                out.flush()
            usage = chunk.usage or usage
    except BaseException:
        if terminal and last and not last.endswith("\n"):  # what is written next begins a line of its own
            out.write("\n")
        raise
    if not last.endswith("\n"):
        out.write("\n")
        out.flush()
    assert usage is not None, "an engine's last chunk carries the usage"
    return usage
