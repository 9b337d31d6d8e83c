"""The Hub's cache on disk, in the layout that huggingface_hub describes in its guide to the cache.

    models--owner--repo/blobs/<etag>               the bytes, once for all revisions
    models--owner--repo/snapshots/<commit>/<path>  a relative symlink to a blob (the file itself, where there are none)
    models--owner--repo/refs/<revision>            the commit that a branch or tag means
    models--owner--repo/blobs/<etag>.<12 hex digits>.incomplete   a download that is going on, or was interrupted
    .locks/models--owner--repo/<etag>.lock         held by whoever fetches a blob

Everything here works without huggingface_hub, which costs a third of a second to import.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localllm.hub.files import RepoFile

PARTIAL = ".incomplete"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one commit that are here; `names` are the branches and tags that mean it."""

    commit: str
    folder: Path
    names: tuple[str, ...]
    files: tuple[RepoFile, ...]

    def path(self, file: RepoFile) -> Path:
        return self.folder / file.path


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """A repository's folder in the cache, whether or not it exists yet."""

    cache: Path
    repository: str

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repository.replace('/', '--')}"

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / etag

    def partial(self, etag: str, revision: str) -> Path:
        """Where a blob is fetched to. The name tells for which revision, so that it can be told when that has gone."""
        return self.folder / "blobs" / f"{etag}.{_slug(revision)}{PARTIAL}"

    def begun(self, etag: str) -> Path | None:
        """The longest beginning of a blob that is here, for whichever revision.

        huggingface_hub's own (8 hex digits) are left alone: since it has Xet they need not be written in order.
        """
        name = re.compile(re.escape(etag) + r"(\.[0-9a-f]{12})?" + re.escape(PARTIAL))
        return max((p for p in self.partials() if name.fullmatch(p.name)), key=_size, default=None)

    def begun_for(self, revision: str) -> list[Path]:
        """The beginnings of blobs that were fetched for a revision."""
        return [path for path in self.partials() if path.name.endswith(f".{_slug(revision)}{PARTIAL}")]

    def lock(self, etag: str) -> Path:
        return self.cache / ".locks" / self.folder.name / f"{etag}.lock"

    def pointer(self, commit: str, path: str) -> Path:
        return self.folder / "snapshots" / commit / path

    def holds(self, commit: str, file: RepoFile) -> bool:
        """Whether a file stands under its name, whole."""
        return _size(self.pointer(commit, file.path)) == file.size

    def link(self, commit: str, file: RepoFile) -> Path:
        """Give a blob that is here its name in a snapshot."""
        pointer, blob = self.pointer(commit, file.path), self.blob(file.etag)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        beside = pointer.with_name(f".{os.getpid()}.{file.etag[:8]}")
        try:
            beside.symlink_to(os.path.relpath(blob, pointer.parent))
            beside.replace(pointer)
        except OSError:
            if pointer.exists():  # another process was faster
                return pointer
            beside.unlink(missing_ok=True)
            shutil.move(blob, pointer)  # a file system without symlinks: the layout has the file itself there
        return pointer

    def write_reference(self, revision: str, commit: str) -> None:
        """Let a branch or tag mean a commit. The commit's snapshot must be there already, or `hf cache` balks."""
        path = self.folder / "refs" / revision
        if revision == commit or _read(path) == commit:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(commit, encoding="utf-8")
        beside.replace(path)

    def commit(self, revision: str) -> str:
        """The commit that a branch, a tag or the beginning of a commit id means here, or ""."""
        if revision and ".." not in revision and (commit := _read(self.folder / "refs" / revision)):
            return commit if _COMMIT.fullmatch(commit) else ""
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            return next((c for c in _names(self.folder / "snapshots") if c.startswith(revision)), "")
        return ""

    def snapshots(self, revision: str = "") -> list[Snapshot]:
        """What is here, what `main` means first, then the newest first; or the one that `revision` means."""
        commits = _names(self.folder / "snapshots")
        if revision:
            commits = [c for c in commits if c == self.commit(revision)]
        elif len(commits) > 1:
            main = self.commit("main")
            commits.sort(key=lambda c: (c == main, _modified(self.folder / "snapshots" / c)), reverse=True)
        references = self._references()
        found = []
        for commit in commits:
            folder = self.folder / "snapshots" / commit
            names = tuple(sorted(name for name, c in references.items() if c == commit))
            found.append(Snapshot(commit, folder, names, tuple(_files(folder, ""))))
        return found

    def partials(self) -> list[Path]:
        """Downloads that were interrupted, ours and those of huggingface_hub."""
        return [self.folder / "blobs" / name for name in _names(self.folder / "blobs") if name.endswith(PARTIAL)]

    def orphans(self) -> list[Path]:
        """Blobs that no snapshot names."""
        named = {os.path.realpath(s.path(f)) for s in self.snapshots() for f in s.files}
        blobs = [self.folder / "blobs" / name for name in _names(self.folder / "blobs") if not name.endswith(PARTIAL)]
        return [blob for blob in blobs if os.path.realpath(blob) not in named]

    def _references(self) -> dict[str, str]:
        root = self.folder / "refs"
        return {p.relative_to(root).as_posix(): _read(p) for p in root.rglob("*") if p.is_file()}


@contextmanager
def claim(lock: Path | None) -> Iterator[bool]:
    """Hold a blob's lock for a moment; False where another process does."""
    from filelock import FileLock, Timeout

    if lock is None or not lock.exists():
        yield True
        return
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def repositories(cache: Path) -> list[CachedRepository]:
    """All model repositories in a cache, by name, but for the few old ones without an owner."""
    names = (name.removeprefix("models--") for name in sorted(_names(cache)) if name.startswith("models--"))
    return [CachedRepository(cache, name.replace("--", "/")) for name in names if name.count("--") == 1]


def _slug(revision: str) -> str:
    return hashlib.sha256(revision.encode()).hexdigest()[:12]


def _files(folder: Path, prefix: str) -> Iterator[RepoFile]:
    """The files below a snapshot's folder that can be read; a link to nowhere is no file."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(folder / entry.name, f"{prefix}{entry.name}/")
                continue
            size = entry.stat().st_size
            # The blob's name is the checksum; where there are no symlinks nothing tells it.
            name = Path(entry.path).readlink().name if entry.is_symlink() else ""
            etag = name if _CHECKSUM.fullmatch(name) else ""  # other servers' names say nothing of the bytes
        except OSError:
            continue
        yield RepoFile(prefix + entry.name, size, etag)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
