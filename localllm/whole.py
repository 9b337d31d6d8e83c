"""Files and folders that appear whole or not at all: written beside their target, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from localllm.errors import UsageError

_SUFFIX = ".part"
_FORMER = ".former"


def require_target(path: Path, *, force: bool) -> None:
    """Whether a file may be written there. Raises UsageError."""
    if path.exists() and not path.is_file():  # to put a file in the place of /dev/null would harm everybody
        raise UsageError(f"{path} is not a regular file", "name a new file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "--force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", "make it first, or name another file with -o")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes `path`'s place when the block ends and is removed when it fails."""
    with scratch(path) as beside:
        yield beside
        sync(beside)
        beside.replace(path)
        with suppress(OSError):  # no folder can be opened on Windows
            sync(path.parent)


def require_folder(path: Path, *, ours: Collection[str]) -> None:
    """Whether a folder may be written there: it must be new, or hold nothing but files of these names (`a`, `b/c`).

    Raises UsageError.
    """
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", "make it first, or name another with -o")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f"{path} is not a folder", "name a new one with -o")
    if not path.exists():
        return
    if not ours and any(path.iterdir()):
        raise UsageError(f"{path} exists", "--force replaces it")
    other = next((name for name in _names_in(path) if name not in ours), None)
    if other is not None:
        raise UsageError(f"{path} holds more than an export writes ({other})", "name a new folder with -o")


def _names_in(folder: Path) -> Iterator[str]:
    """What a folder and those in it hold, relative to it; an empty one by its own name."""
    for entry in folder.rglob("*"):
        if entry.is_symlink() or not entry.is_dir() or not any(entry.iterdir()):
            yield entry.relative_to(folder).as_posix() + "/" * entry.is_dir()


@contextmanager
def replacing_folder(path: Path, ours: Collection[str] = ()) -> Iterator[Path]:
    """A new folder to write files to, which takes `path`'s place when the block ends and is removed when it fails.

    What `path` holds of the names in `ours` is replaced, and anything else is an error, as in `require_folder`.
    """
    require_folder(path, ours=ours)
    _remove_leftovers(path)
    beside, former = (path.with_name(f".{path.name}.{os.getpid()}{end}{_SUFFIX}") for end in ("", _FORMER))
    try:
        beside.mkdir()
        yield beside
        for entry in [*beside.rglob("*"), beside]:
            with suppress(OSError) if entry.is_dir() else nullcontext():  # no folder can be opened on Windows
                sync(entry)
        require_folder(path, ours=ours)  # it may have been filled meanwhile
        if path.exists():
            path.rename(former)
        beside.rename(path)
        with suppress(OSError):
            sync(path.parent)
    except OSError as error:
        place = Path(error.filename or beside)
        if beside in (place, *place.parents):  # nobody knows the names beside the target
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        for folder in (beside, former):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A path beside another for a file that is only needed on the way.

    What a killed process left beside the same target is removed first.
    """
    _remove_leftovers(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        yield beside
    except OSError as error:
        if error.filename is None:  # a write tells what failed, and not to what
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the operating system write a file, or a folder's entries, to the disk."""
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove_leftovers(path: Path) -> None:
    import psutil

    prefix = f".{path.name}."
    for other in path.parent.glob(f".*{_SUFFIX}"):
        process = other.name.removeprefix(prefix).removesuffix(_SUFFIX).removesuffix(_FORMER)
        if other.name.startswith(prefix) and process.isdecimal() and not psutil.pid_exists(int(process)):
            if other.is_dir() and not other.is_symlink():
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)
