"""What `embed` and `fill-mask` share: the model that is meant, and the texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from localllm.commands._model import Model, resolve
from localllm.errors import UsageError
from localllm.hub.catalogue import DEFAULT_EMBEDDER


def find_encoder(name: str | None, *, yes: bool) -> Model:
    """The file of an encoder, or of the default one; asks before it fetches. Raises ModelNotFound."""
    return resolve(name or str(DEFAULT_EMBEDDER), yes=yes)


def texts_of(words: list[str], file: Path | None) -> Iterator[str]:
    """The texts that are meant: each word, or each line of a file or of standard input, as they come.

    Raises UsageError where there are none.
    """
    if words and file:
        raise UsageError(f"texts and --file {file}: which of them?", "leave one out")
    if words:
        return iter(words)
    if file is None and sys.stdin.isatty():
        raise UsageError("there is no text", "write it after the command, name a --file, or pipe lines in")
    if file is None or str(file) == "-":
        return _at_least_one(_lines(sys.stdin.buffer, "standard input"), "standard input")
    try:
        return _at_least_one(_lines(file.open("rb"), str(file)), str(file))
    except OSError as error:
        raise UsageError(f"--file {file} cannot be read: {error.strerror}") from None


def _at_least_one(lines: Iterator[str], place: str) -> Iterator[str]:
    first = next(lines, None)
    if first is None:
        raise UsageError(f"there is no text: {place} is empty", "a line of it is a text")
    from localllm.engines.interrupt import waiting

    return chain([first], waiting(lines))


def _lines(source: IO[bytes], place: str) -> Iterator[str]:
    """The lines of a text without what ends them."""
    with source:
        for number, line in enumerate(source):
            data = line.removesuffix(b"\n").removesuffix(b"\r")
            try:
                yield data.decode("utf-8" if number else "utf-8-sig")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{place} is not UTF-8 text (byte 0x{data[error.start]:02x} in line {number + 1})",
                    "convert it first, for example with iconv",
                ) from None
