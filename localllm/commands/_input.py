"""Text from standard input or a file that a command line names, whole and within bounds."""

from __future__ import annotations

from typing import IO

from localllm.errors import UsageError


def read_whole(source: IO[bytes], place: str, encoding: str = "utf-8") -> str:
    """All of a stream as text. Raises UsageError where it is larger than 16 MB or no UTF-8; OSError."""
    from localllm.text.attachments import MAX_TEXT

    data = source.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise UsageError(f"{place} is larger than {MAX_TEXT >> 20} MB", "take it in parts")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{place} is not UTF-8 text (byte 0x{data[error.start]:02x} at {error.start})",
            "convert it first, for example with iconv",
        ) from None
