"""Keeping what is here in order: re-hashing, removing, and finding what nothing needs any more."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import LocalLLMError
from localllm.hub import store
from localllm.hub.cache import CachedRepository, claim, repositories
from localllm.hub.download import BLOCK, Event, Report
from localllm.hub.keep import leftovers
from localllm.hub.local import MANIFEST
from localllm.hub.store import Installed, StoredFile


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A file whose bytes are not those that were recorded; `found` is "" where it cannot be read."""

    file: StoredFile
    found: str


def verify(model: Installed, report: Report) -> Iterator[Corrupt]:
    """Hash every file of a model again whose checksum is recorded, and yield those that differ."""
    for file in (*model.files, *model.companions):
        if not file.checksum:
            continue
        try:
            found = _hash(file, report)
        except OSError:
            found = ""
        if found != file.checksum:
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
    """What removing models, one after the other, takes away. Files used in place, and what others need, stay."""
    return [_removal(model, models[: index + 1]) for index, model in enumerate(models)]


def _removal(model: Installed, going: list[Installed]) -> Removal:
    if model.place == "hub":
        return _removal_from_hub(model, {_identity(m) for m in going})
    if model.folder.parent != store.models_directory():
        raise LocalLLMError(f"{model.path} is a file of your own, which localllm does not remove", "rm removes files")
    own = [f for f in (*model.files, *model.companions) if f.path.is_relative_to(model.folder)]
    paths = [f.path for f in own] + [model.folder / MANIFEST]
    return Removal(model, tuple(paths), sum(f.size for f in own))


def remove(planned: Removal) -> None:
    """Remove the names first and then what nothing names any more, so that no name ever leads nowhere."""
    for path in planned.paths:
        path.unlink(missing_ok=True)
    if planned.model.place == "hub":
        _sweep(CachedRepository(store.hub_cache(), planned.model.repository))
        return
    folder = planned.model.folder
    if folder.parent == store.models_directory() and not any(folder.iterdir()):
        folder.rmdir()


def _identity(model: Installed) -> tuple[str, str]:
    """What stays the same by whatever name, and in whichever snapshot, a model of the Hub's was found."""
    return model.path.relative_to(model.folder).as_posix(), model.files[0].checksum


def _removal_from_hub(model: Installed, going: set[tuple[str, str]]) -> Removal:
    home = CachedRepository(store.hub_cache(), model.repository)
    gone = {(f.path.relative_to(model.folder).as_posix(), f.checksum) for f in model.files}
    here = [m for m in store.hub_models(home) if _identity(m) not in going]
    needed = {f.path.relative_to(m.folder).as_posix() for m in here for f in m.companions}
    gone |= {
        (name, f.checksum)
        for f in model.companions
        if (name := f.path.relative_to(model.folder).as_posix()) not in needed
    }
    snapshots = home.snapshots()
    paths = [s.path(f) for s in snapshots for f in s.files if (f.path, f.etag) in gone]
    kept = {s.path(f).resolve() for s in snapshots for f in s.files if (f.path, f.etag) not in gone}
    blobs = {path.resolve() for path in paths} - kept
    return Removal(model, tuple(paths), sum(blob.stat().st_size for blob in blobs))


def _sweep(home: CachedRepository) -> None:
    """Remove blobs without a name, empty snapshots with their references, and the repository when it is empty."""
    for blob in home.orphans():
        _remove_blob(home, blob)
    for snapshot in home.snapshots():
        if not snapshot.files:
            shutil.rmtree(snapshot.folder, ignore_errors=True)
            for name in snapshot.names:
                (home.folder / "refs" / name).unlink(missing_ok=True)
    if not home.snapshots() and not home.partials():
        shutil.rmtree(home.folder, ignore_errors=True)
        shutil.rmtree(home.lock("").parent, ignore_errors=True)


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
    for path in store.models_directory().glob("*/.fetch-*"):
        found.append(Waste(path, "interrupted download", sum(_size(p) for p in path.rglob("*"))))
    found += [Waste(path, "interrupted import", sum(_size(p) for p in path.rglob("*"))) for path in leftovers()]
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
