"""One file from the Hub into its cache: resumed, checked, and only then given its final name.

A partial file stays when the process dies: the next one, which must hold the blob's lock as huggingface_hub's own
processes do, hashes what is there and asks for the rest. Bytes go to the kernel as they come, a megabyte at a time, so
that a kill loses no more than that and what the socket held.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from localllm.errors import ChecksumMismatch, DownloadError
from localllm.hub import remote
from localllm.hub.cache import PARTIAL, CachedRepository
from localllm.hub.files import RepoFile
from localllm.hub.remote import TRIES, Later

BLOCK = 1 << 20
DISK_RESERVE = 64 << 20  # bytes that stay free for others
LARGEST = 50_000_000_000  # bytes; the Hub serves nothing larger over plain HTTP
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Event:
    """How far a file is: `done` of `total` bytes; `note` is a line for the user, mostly "" ."""

    file: str
    done: int
    total: int
    note: str = ""


Report = Callable[[Event], None]


class Cancelled(Exception):
    """Another file failed, or the user does not want to wait."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file to fetch. `wait(seconds)` sleeps, and raises Cancelled when there is no more need."""

    home: CachedRepository
    revision: str
    commit: str
    file: RepoFile
    report: Report
    wait: Callable[[float], None]

    def run(self) -> Path:
        """Fetch the file, or find it here. Raises DownloadError, ChecksumMismatch, Unreachable, Cancelled."""
        try:
            if self.home.holds(self.commit, self.file):
                self._tell(self.file.size)
                return self.home.pointer(self.commit, self.file.path)
            with _Lock(self.home.lock(self.file.etag), self._wait_for_the_other):
                blob = self.home.blob(self.file.etag)
                if not (blob.exists() and blob.stat().st_size == self.file.size):
                    self._fetch(blob)
                for leftover in blob.parent.glob(f"{self.file.etag}*{PARTIAL}"):
                    leftover.unlink(missing_ok=True)
                self._tell(self.file.size)
                return self.home.link(self.commit, self.file)
        except OSError as error:
            raise disk_error(error, self.home.cache) from None

    def _fetch(self, blob: Path) -> None:
        if self.file.size > LARGEST:
            raise DownloadError(
                f"{self.file.path} is larger than 50 GB, which the Hub does not serve over HTTP",
                f"hf download {self.home.repository} {self.file.path} puts it into the same cache",
            )
        path = self.home.partial(self.file.etag, self.revision)
        path.parent.mkdir(parents=True, exist_ok=True)
        if (begun := self.home.begun(self.file.etag)) is not None:
            begun.replace(path)
        # What an earlier process left may have been damaged since, by a power cut for one: then once more from nothing.
        try:
            digest = self._resume(path) or self._resume(path)
        except ChecksumMismatch:
            path.unlink()
            raise
        finally:
            if self.file.size and path.exists() and not path.stat().st_size:
                path.unlink()
        if digest != self.file.etag:
            path.unlink(missing_ok=True)
            raise ChecksumMismatch(
                f"{self.file.path} of {self.home.repository} has the checksum {digest}, not {self.file.etag}"
            )
        path.replace(blob)

    def _resume(self, path: Path) -> str | None:
        """Bring the partial file to its full size and return its checksum; None where an old beginning was wrong."""
        with path.open("r+b" if path.exists() else "x+b", buffering=0) as file:
            digest = _hash_of(self.file)
            old = min(os.fstat(file.fileno()).st_size, self.file.size)
            file.truncate(old)
            position = 0
            while position < old:
                block = file.read(min(BLOCK, old - position))
                digest.update(block)
                position += len(block)
                self.wait(0)
            self._tell(position)
            digest = self._receive(file, position, digest)
            if old and digest.hexdigest() != self.file.etag:
                file.truncate(0)
                return None
            os.fsync(file.fileno())
            return str(digest.hexdigest())

    def _receive(self, file: BinaryIO | Any, position: int, digest: Any) -> Any:
        """Append what is missing, over as many connections as it takes."""
        url = remote.connect().hf_hub_url(self.home.repository, self.file.path, revision=self.commit)
        failures, furthest = 0, position
        while position < self.file.size:
            try:
                with remote.stream(self.home.repository, url, position) as response:
                    if position and not remote.continues(response, position):
                        # The server sends the file from its beginning.
                        position, digest = 0, _hash_of(self.file)
                        file.seek(0)
                        file.truncate()
                    for block in response.iter_bytes(BLOCK):
                        position += len(block)
                        if position > self.file.size:
                            raise ChecksumMismatch(f"{self.file.path} is longer than the Hub promised")
                        digest.update(block)
                        _write(file, block)
                        self._tell(position)
                        self.wait(0)
                if position < self.file.size:
                    raise Later(DownloadError(f"{self.file.path} ended after {position:,} bytes"))
            except Later as later:
                # A server that begins anew each time, and breaks at the same place, brings nothing either.
                failures = 1 if position > furthest else failures + 1
                furthest = max(furthest, position)
                if failures >= TRIES:
                    raise later.error from None
                self.wait(remote.seconds_to_wait(later, failures, partial(self._tell, position)))
        return digest

    def _tell(self, done: int, note: str = "") -> None:
        self.report(Event(self.file.path, done, self.file.size, note))

    def _wait_for_the_other(self, first: bool) -> None:
        if first:
            self._tell(0, f"another process is fetching {self.file.path}; waiting for it")
        self.wait(0)


def disk_error(error: OSError, folder: Path, way_out: str = "") -> DownloadError:
    """What an error of the file system means to somebody who downloads, or with another `way_out` to others."""
    if error.errno in _FULL:
        again = way_out or "free some space and run it again: it goes on where it stopped"
        return DownloadError(f"the disk of {folder} is full", again)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR):
        return DownloadError(f"{folder} cannot be written", way_out or "set HF_HUB_CACHE to a folder that can")
    return DownloadError(f"{error.strerror or error}: {folder}", way_out or "is the disk sound?")


def _hash_of(file: RepoFile) -> Any:
    """The hash that names the file's blob: sha256 for LFS, git's own for the others."""
    return hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _write(file: Any, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]  # a raw file may take less than all, before it says that the disk is full


class _Lock:
    """The blob's lock, as huggingface_hub takes it, asked for in a way that can be interrupted."""

    def __init__(self, path: Path, waiting: Callable[[bool], None]) -> None:
        self._path, self._waiting = path, waiting
        self._held: Any = None

    def __enter__(self) -> None:
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self._path.parent.mkdir(parents=True, exist_ok=True)
        first = True
        while True:
            self._held = WeakFileLock(self._path, timeout=0.5)
            try:
                self._held.__enter__()
                return
            except Timeout:
                self._waiting(first)
                first = False

    def __exit__(self, *_: object) -> None:
        self._held.__exit__(None, None, None)
