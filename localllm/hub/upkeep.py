"""Keeping what is here in order: re-hashing, removing, and finding what nothing needs any more."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import LocalLLMError
from localllm.hub import files, store
from localllm.hub.cache import CachedRepository, claim, repositories
from localllm.hub.download import BLOCK, Event, Report
from localllm.hub.keep import FETCH, leftovers
from localllm.hub.local import MANIFEST
from localllm.hub.store import Installed, StoredFile


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A file whose bytes are not those that were recorded; `found` is "" where it cannot be read."""

    file: StoredFile
    found: str


def verify(model: Installed, report: Report) -> Iterator[Corrupt]:
    """Hash every file of a model again, and yield those that are not what was recorded: the checksum, or the size."""
    for file in (*model.files, *model.companions):
        try:
            found = _hash(file, report) if file.checksum else ""
            wrong = found != file.checksum or (model.place == "in place" and file.path.stat().st_size != file.size)
        except OSError:
            found, wrong = "", True
        if wrong:
            yield Corrupt(file, found)


def _hash(file: StoredFile, report: Report) -> str:
    size = file.path.stat().st_size
    digest = hashlib.sha256() if len(file.checksum) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    done = 0
    with file.path.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
            done += len(block)
            report(Event(str(file.path), done, size))
    return digest.hexdigest()


def discard(model: Installed, corrupt: list[Corrupt]) -> None:
    """Remove corrupt files, and the blobs behind them, so that they are fetched anew."""
    for bad in corrupt:
        if model.place == "hub":
            CachedRepository(store.hub_cache(), model.repository).blob(bad.file.checksum).unlink(missing_ok=True)
        bad.file.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Removal:
    """What `remove` will do: names that vanish, and bytes that become free."""

    model: Installed
    paths: tuple[Path, ...]
    freed: int


def removals(models: list[Installed]) -> list[Removal]:
    """What removing models, one after the other, takes away. Files used in place, and what others need, stay.

    Raises LocalLLMError for a file that was named by its path.
    """
    once = list({(m.folder, m.path): m for m in models}.values())
    return [_removal(model, once[: index + 1]) for index, model in enumerate(once)]


def _removal(model: Installed, going: list[Installed]) -> Removal:
    if model.place == "hub":
        return _removal_from_hub(model, going)
    if model.place == "file":
        raise LocalLLMError(f"{model.path} is a file, and localllm removes models by name", "localllm list shows names")
    own = () if model.place == "in place" else (*model.files, *model.companions)
    paths = (*(file.path for file in own), model.folder / MANIFEST)
    return Removal(model, paths, sum(file.size for file in own))


def remove(planned: Removal) -> None:
    """Remove the names first and then what nothing names any more, so that no name ever leads nowhere."""
    for path in planned.paths:
        path.unlink(missing_ok=True)
    if planned.model.place == "hub":
        _sweep(CachedRepository(store.hub_cache(), planned.model.repository))
    else:
        _remove_empty(planned)


def _remove_empty(planned: Removal) -> None:
    """Remove the model's folder and those in it, where nothing is left in them; the innermost first."""
    home = planned.model.folder
    inside = {above for path in planned.paths for above in path.parents if above.is_relative_to(home)}
    for folder in sorted(inside, key=lambda f: -len(f.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _removal_from_hub(model: Installed, going: list[Installed]) -> Removal:
    """The model's files in every snapshot that has them, with the companions that no other model there needs."""
    home = CachedRepository(store.hub_cache(), model.repository)
    mine = {_identity(m, f) for m in (model,) for f in m.files}
    leaving = {_identity(m, f) for m in going if m.repository == model.repository for f in m.files}
    companions = {file.path.relative_to(model.folder).as_posix() for file in model.companions}
    paths: list[Path] = []
    kept: list[Path] = []
    for snapshot in home.snapshots():
        staying = [f for f in snapshot.files if (f.path, f.etag or snapshot.commit) not in leaving]
        here = any((f.path, f.etag or snapshot.commit) in mine for f in snapshot.files)
        needed = {c.path for v in files.variants(staying) for c in v.companions}
        for file in snapshot.files:
            goes = file not in staying or (here and file.path in companions - needed)
            (paths if goes else kept).append(snapshot.path(file))
    blobs = {path.resolve() for path in paths} - {path.resolve() for path in kept}
    return Removal(model, tuple(paths), sum(_size(blob) for blob in blobs))


def _identity(model: Installed, file: StoredFile) -> tuple[str, str]:
    """What a file is known by in every snapshot: its name and checksum; where none is known, in this one only."""
    return file.path.relative_to(model.folder).as_posix(), file.checksum or model.revision


def _sweep(home: CachedRepository) -> None:
    """Remove blobs without a name, empty snapshots with their references, and the repository when it is empty."""
    for blob in home.orphans():
        _remove_blob(home, blob)
    for snapshot in home.snapshots():
        if not snapshot.files:
            shutil.rmtree(snapshot.folder, ignore_errors=True)
            for name in snapshot.names:
                (home.folder / "refs" / name).unlink(missing_ok=True)
    if not home.snapshots() and not home.partials() and not home.orphans():
        for name in ("refs", ".no_exist"):  # what huggingface_hub noted of the repository
            shutil.rmtree(home.folder / name, ignore_errors=True)
        # Folder by folder, from the innermost, and only empty ones: another process may begin to fetch this moment.
        for folder in (*sorted(home.folder.rglob("*/"), reverse=True), home.folder):
            with suppress(OSError):
                folder.rmdir()


def _remove_blob(home: CachedRepository, blob: Path) -> None:
    with claim(home.lock(blob.name)) as free:
        if not free:
            return  # another process has fetched it this moment, and is about to name it
        if blob.is_symlink():
            _remove_shared(home, blob)
        else:
            blob.unlink(missing_ok=True)


def _remove_shared(home: CachedRepository, blob: Path) -> None:
    """Remove a blob that huggingface_hub keeps once for all repositories; it counts who needs it."""
    from huggingface_hub.utils import DeleteCacheStrategy  # type: ignore[attr-defined]

    nothing: frozenset[Path] = frozenset()
    DeleteCacheStrategy(
        expected_freed_size=0,
        blobs=frozenset([blob]),
        refs=nothing,
        repos=nothing,
        snapshots=nothing,
        cache_dir=home.cache.resolve(),
    ).execute()


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that nothing needs; `why` in a word or two, `size` in bytes, `lock` what to hold when it is removed."""

    path: Path
    why: str
    size: int
    lock: Path | None = None


def waste() -> list[Waste]:
    """Interrupted downloads that nobody is working on, blobs and links without the other, and leftovers of ours."""
    found = []
    for home in repositories(store.hub_cache()):
        for why, paths in (("interrupted download", home.partials()), ("blob without a name", home.orphans())):
            found += [Waste(path, why, _size(path), home.lock(path.name.partition(".")[0])) for path in paths]
        links = (p for p in (home.folder / "snapshots").rglob("*") if p.is_symlink() and not p.exists())
        found += [Waste(path, "link to nothing", 0) for path in links]
    found += [Waste(path, _kind(path), sum(_size(p) for p in path.rglob("*"))) for path in leftovers()]
    free = []
    for item in found:
        with claim(item.lock) as claimed:
            if claimed:
                free.append(item)
    return free


def remove_waste(items: list[Waste]) -> None:
    """Remove what `waste` found, but for what another process has taken up since."""
    for item in items:
        with claim(item.lock) as claimed:
            if not claimed:
                continue
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path, ignore_errors=True)
            else:
                item.path.unlink(missing_ok=True)
    for home in repositories(store.hub_cache()):
        if not home.partials() and not any(snapshot.files for snapshot in home.snapshots()):
            _sweep(home)


def _kind(leftover: Path) -> str:
    return "interrupted download" if leftover.name.startswith(FETCH) else "interrupted import"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
