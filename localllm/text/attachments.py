"""Files that go with a question: read as text, and fenced with their names in what the model is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attachment:
    """`name` is what the user wrote, `text` what was in the file when it was attached."""

    name: str
    text: str


def with_attachments(question: str, attachments: Sequence[Attachment]) -> str:
    """The files, each in a fence that is longer than any within it, and the question after them."""
    return "\n\n".join([*map(_fenced, attachments), *([question] if question else [])])


def _fenced(attachment: Attachment) -> str:
    longest = max(map(len, re.findall("`+", attachment.text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if attachment.text.endswith("\n") else "\n"
    return f"{attachment.name}:\n{fence}\n{attachment.text}{end}{fence}"
