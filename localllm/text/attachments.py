"""Files that go with a question: read as text, and fenced with their names in what the model is told.

Text is UTF-8 (or UTF-16 with its mark); PDF is read by pypdf in a process with its time and memory bounded; whatever
else is refused by name.
"""

from __future__ import annotations

import codecs
import glob
import importlib.util
import mimetypes
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import UsageError
from localllm.text import bounded

MAX_TEXT = 16 << 20  # bytes of a text file, and of what a PDF holds
MAX_PDF = 256 << 20
MAX_FILES = 1000
PDF_SECONDS = 60.0
PDF_MEMORY = 2 << 30
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# An at sign at the begin of a word, and a path that may be quoted.
_MENTION = re.compile(r"""(?<!\S)@(?:"([^"\n]+)"|(\S+))""")


@dataclass(frozen=True, slots=True)
class Attachment:
    """`name` is what the user wrote, `text` what was in the file when it was attached."""

    name: str
    text: str


def attach(patterns: Iterable[str]) -> tuple[Attachment, ...]:
    """The files of these names and globs. Raises UsageError for one that is not there or is no text."""
    names = [name for pattern in patterns for name in _expand(pattern)]
    if len(names) > MAX_FILES:
        raise UsageError(f"{len(names)} files are too many to attach", f"at most {MAX_FILES}")
    return tuple(Attachment(name, read_file(name)) for name in dict.fromkeys(names))


def mentions(text: str) -> list[str]:
    """The names behind `@` in a message that are files, or globs that find some; anything else is only text."""
    return [name for candidates in _mentioned(text) for name in [c for c in candidates if _finds(c)][:1]]


def mistyped(text: str) -> list[str]:
    """The names behind `@` that no file has, and that are nothing but a file's: by their ending, or a slash."""
    lost = [candidates[-1] for candidates in _mentioned(text) if not any(map(_finds, candidates))]
    return [name for name in lost if "/" in name or mimetypes.guess_type(name)[0]]


def _mentioned(text: str) -> Iterator[list[str]]:
    """What each `@` may name: a sentence may end behind a name."""
    for match in _MENTION.finditer(text):
        candidates = [match[1]] if match[1] else [match[2], match[2].rstrip(".,;:!?)")]
        if found := [name for name in candidates if name]:
            yield found


def with_attachments(question: str, attachments: Sequence[Attachment]) -> str:
    """The files, each in a fence that is longer than any within it, and the question after them."""
    return "\n\n".join([*map(_fenced, attachments), *([question] if question else [])])


def read_file(name: str) -> str:
    """The text of a file. Raises UsageError."""
    path = Path(name).expanduser()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{name} is a folder", f"name its files, for example '{name.rstrip('/')}/*.md'")
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise UsageError(f"{name} is no file that has an end", "name a file")
        with path.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if data.startswith(b"%PDF-"):
        return _read_pdf(name, path, size)
    return _decoded(name, data)


def _expand(pattern: str) -> list[str]:
    path = os.path.expanduser(pattern)  # noqa: PTH111  # what glob finds keeps the user's way of writing it
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    found = [name for name in sorted(glob.glob(path, recursive=True)) if Path(name).is_file()]  # noqa: PTH207
    if not found:
        raise UsageError(f"no file is called {pattern}")
    return found


def _finds(name: str) -> bool:
    try:
        path = _expand(name)[0]
    except UsageError:
        return False
    return os.path.isfile(path)  # noqa: PTH113  # it raises for no name whatever


def _decoded(name: str, data: bytes) -> str:
    if len(data) > MAX_TEXT:
        raise UsageError(f"{name} is larger than {MAX_TEXT >> 20} MB", "attach a part of it")
    encoding, shown = ("utf-16", "UTF-16") if data.startswith(_UTF_16) else ("utf-8-sig", "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not text (byte 0x{data[error.start]:02x} at {error.start} is not {shown})",
            "text files and PDF can be attached",
        ) from None
    if "\0" in text:
        raise UsageError(f"{name} is not text (it holds zeros)", "text files and PDF can be attached")
    return text.replace("\r\n", "\n")


def _read_pdf(name: str, path: Path, size: int) -> str:
    if importlib.util.find_spec("pypdf") is None:
        raise UsageError(f"{name} is a PDF, and pypdf is not installed", "pip install 'localllm[pdf]'")
    if size > MAX_PDF:
        raise UsageError(f"{name} is larger than {MAX_PDF >> 20} MB", "attach a part of it")
    worker = Path(__file__).with_name("pdf_worker.py")
    try:
        done = subprocess.run(
            bounded.command(worker, PDF_MEMORY, str(path.absolute()), str(MAX_TEXT)),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PDF_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{name} could not be read within {PDF_SECONDS:g} seconds", "attach its text instead"
        ) from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines and done.returncode == 3 else "it breaks the bounds of time and memory"
        raise UsageError(f"{name} cannot be read: {reason}", "attach its text instead")
    text = done.stdout.decode(errors="replace")
    if not text.strip():
        raise UsageError(f"{name} holds no text (pictures of pages?)", "attach its text instead")
    return text


def _fenced(attachment: Attachment) -> str:
    longest = max(map(len, re.findall("`+", attachment.text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if attachment.text.endswith("\n") else "\n"
    return f"{attachment.name}:\n{fence}\n{attachment.text}{end}{fence}"
