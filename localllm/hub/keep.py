"""Gives models that the user brings a name and a manifest, where they lie or as a copy."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, DownloadError, UsageError
from localllm.hub import catalogue, local, store
from localllm.hub.download import BLOCK, DISK_RESERVE, Event, Report, disk_error
from localllm.hub.files import check_path
from localllm.hub.foreign import Foreign
from localllm.hub.local import Manifest, ManifestFile
from localllm.hub.reference import parse_name

LEFTOVER = ".import-"
FETCH = ".fetch-"
MAX_AGE = 24 * 3600  # seconds without a write, after which a folder's pid is another process's by now
Reader = Callable[[int], bytes]


def register(
    found: Foreign, name: str = "", *, force: bool = False, options: Mapping[str, Any] | None = None
) -> tuple[Manifest, bool]:
    """Write the manifest of a model that is used in place; False where it was there already. Raises UsageError.

    `options` are the engine's for this model.
    """
    chosen, same = _choose_name(found, name, lambda _: None, force=force)
    if same is not None and (options is None or same.options == options):
        return same, False
    how = f"used in place, from {found.owner}" if found.owner else "used in place"
    manifest = Manifest(
        chosen, found.format, found.files, found.quant, found.files[0].path, "", how, options=dict(options or {})
    )
    with arriving(chosen, tuple(Path(file.path) for file in found.files)) as folder:
        local.write_manifest(folder, manifest)
    return manifest, True


def with_sums(found: Foreign, report: Report) -> Foreign:
    """The same model with the sha256 of every file of which it is not known yet, so that `verify` can compare."""
    files = []
    for file in found.files:
        digest, done = hashlib.sha256(), 0
        with Path(file.path).open("rb") as opened:
            while not file.sha256 and (block := opened.read(BLOCK)):
                digest.update(block)
                done += len(block)
                report(Event(Path(file.path).name, done, file.size))
        files.append(replace(file, sha256=file.sha256 or digest.hexdigest()))
    return replace(found, files=tuple(files))


def copy(found: Foreign, name: str, report: Report, *, force: bool = False) -> tuple[Manifest, bool]:
    """Copy a model below the data directory, hashing it on the way. Raises DownloadError, UsageError."""
    chosen, same = _choose_name(found, name, report, force=force)
    if same is not None and not same.in_place:
        return same, False
    for file in found.files:
        check_path(found.kept_as(file))
    require_space(sum(file.size for file in found.files))
    with arriving(chosen, tuple(Path(file.path) for file in found.files)) as folder:
        files = []
        for file in found.files:
            target = folder / found.kept_as(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            with Path(file.path).open("rb") as opened:
                written = write_file(opened.read, target, file.size, report)
            files.append(replace(written, path=found.kept_as(file)))
        how = f"copied from {found.files[0].path}"
        manifest = Manifest(chosen, found.format, tuple(files), found.quant, found.files[0].path, "", how)
        local.write_manifest(folder, manifest)
    return manifest, True


def write_file(read: Reader, target: Path, size: int, report: Report) -> ManifestFile:
    """Write what `read(n)` brings, `size` bytes, synced; returns its entry with the sha256. Raises DownloadError."""
    digest, done = hashlib.sha256(), 0
    with target.open("xb") as file:
        while done < size and (block := read(min(BLOCK, size - done))):
            digest.update(block)
            file.write(block)
            done += len(block)
            report(Event(target.name, done, size))
        file.flush()
        os.fsync(file.fileno())
    if done != size:
        raise DownloadError(f"{target.name} ends after {done:,} of {size:,} bytes", "bring the file again")
    return ManifestFile(target.name, size, digest.hexdigest())


@contextmanager
def arriving(name: str, sources: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A hidden folder that becomes the model's when everything went well, and vanishes when not.

    What had the name before goes with its files: the caller has looked at it. Raises DownloadError; UsageError where
    that would take more than a model of ours, or one of the `sources`, and where another process gave the name to
    another model meanwhile.
    """
    models = store.models_directory()
    _require_replaceable(local.folder_of(models, name), sources)
    try:
        models.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{LEFTOVER}{os.getpid()}-", dir=models))
    except OSError as error:
        raise _disk_error(error, models) from None
    old, target = folder.with_name(folder.name + "-old"), local.folder_of(models, name)
    replaces = target.exists()  # the caller has looked at what is there
    try:
        yield folder
        folder.chmod(0o755)
        if replaces and target.exists():
            target.replace(old)
        try:
            folder.replace(target)
        except OSError:
            # The system refuses to replace a folder that holds something: another process was faster.
            if not target.exists():
                raise
            _require_same(name, target, folder)
    except OSError as error:
        raise _disk_error(error, models) from None
    finally:
        if old.exists() and not target.exists():  # interrupted between the two: the old one stays
            old.replace(target)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _require_replaceable(target: Path, sources: tuple[Path, ...]) -> None:
    """Raise UsageError where a folder holds what its manifest does not name, or something that is still needed."""
    manifest = local.read_manifest(target) if target.is_dir() else None
    ours = {local.MANIFEST, *(file.path for file in manifest.files)} if manifest else set()
    for path in target.rglob("*"):
        if path.is_file() and path.relative_to(target).as_posix() not in ours:
            raise UsageError(f"{path} is there, and is no part of a model of ours", "move it, or choose another --name")
    for source in sources:
        if source.resolve().is_relative_to(target.resolve()):
            raise UsageError(f"{source} lies in the folder that would be replaced", "move it, or choose another --name")


def _require_same(name: str, target: Path, folder: Path) -> None:
    """Raise UsageError where two folders do not hold the same model."""
    there, here = (local.read_manifest(each) for each in (target, folder))
    if there is None or here is None or _contents(there) != _contents(here):
        raise UsageError(f"{name} has become another model's name meanwhile", "choose another --name, or --force")


def _contents(manifest: Manifest) -> list[tuple[str, int]]:
    return [(file.sha256 or file.path, file.size) for file in manifest.files]


def _disk_error(error: OSError, models: Path) -> DownloadError:
    return disk_error(error, models, "free some space, or set LOCALLLM_HOME to another folder")


def require_space(size: int) -> None:
    """Raise DownloadError where the data directory's disk cannot hold `size` bytes more."""
    models = store.models_directory()
    folder = next(p for p in (models, *models.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if size + DISK_RESERVE > free:
        raise DownloadError(
            f"the model needs {size / 1e9:.2f} GB on {folder} and {free / 1e9:.2f} GB are free",
            "free some space, or set LOCALLLM_HOME to another disk",
        )


def leftovers() -> list[Path]:
    """Folders of imports and fetches that were killed: whose process is no more, or that nobody wrote to for a day.

    A model that was set aside, and not replaced any more, is none: it gets its name back.
    """
    import psutil

    found = []
    models = store.models_directory()
    for path in sorted((*models.glob(f"{LEFTOVER}*"), *models.glob(f"*/{FETCH}*"))):
        pid = path.name.removeprefix(LEFTOVER).removeprefix(FETCH).partition("-")[0]
        if not pid.isdecimal() or (psutil.pid_exists(int(pid)) and time.time() - _written(path) < MAX_AGE):
            continue
        if not (path.name.endswith("-old") and _set_back(path)):
            found.append(path)
    return found


def _written(folder: Path) -> float:
    """When something in a folder was last written, in seconds since 1970; now, where it has just gone."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return time.time()


def _set_back(folder: Path) -> bool:
    """Give a model its name back, where nothing has it now."""
    try:
        manifest = local.read_manifest(folder)
        target = manifest and local.folder_of(store.models_directory(), manifest.name)
        if not target or target.exists():
            return False
        folder.replace(target)
    except (OSError, BadModelFile):
        return False
    return True


def is_whole(manifest: Manifest) -> bool:
    """Whether all files of a model that has a manifest here are still there."""
    folder = local.folder_of(store.models_directory(), manifest.name)
    return all((folder / file.path).is_file() for file in manifest.files)


def _choose_name(found: Foreign, name: str, report: Report, *, force: bool) -> tuple[str, Manifest | None]:
    """The name to use, and the manifest that is there where it is of this very model, unchanged since."""
    if name:
        chosen = str(parse_name(name))
        manifest = taken(chosen, force=force)
        if manifest is None or _same(manifest, found, report):
            return chosen, _unchanged(manifest, found)
        raise UsageError(f"{chosen} is another model's name already", "choose another --name, or --force to replace it")
    family, _, tag = found.name.partition(":")
    if catalogue.find(parse_name(found.name)) is not None:
        family += {"Ollama": "-ollama", "LM Studio": "-lmstudio"}.get(found.owner, "-local")
    aliases = local.read_aliases(store.data_directory())
    for number in range(1, 1000):
        more = "" if number == 1 else f"-{number}"
        chosen = str(parse_name(f"{family}{more}" + (f":{tag}" if tag else "")))
        if chosen in aliases or catalogue.find(parse_name(chosen)) is not None:
            continue
        manifest = None if force else local.read_manifest(local.folder_of(store.models_directory(), chosen))
        if manifest is None or _same(manifest, found, report):
            return chosen, _unchanged(manifest, found)
    raise UsageError(f"there are too many models named like {found.name}", "--name NAME gives it another")


def _same(manifest: Manifest, found: Foreign, report: Report) -> bool:
    """Whether a manifest is of these very files, or of a copy of them; only a copy of the same size is hashed."""
    if manifest.in_place:
        return [f.path for f in manifest.files] == [f.path for f in found.files]
    if [f.size for f in manifest.files] != [f.size for f in found.files] or not is_whole(manifest):
        return False
    return [f.sha256 for f in manifest.files] == [f.sha256 for f in with_sums(found, report).files]


def _unchanged(manifest: Manifest | None, found: Foreign) -> Manifest | None:
    """The manifest, where what is used in place has not been written since: else it is out of date."""
    if manifest is None or not manifest.in_place:
        return manifest
    mine, theirs = ([(f.size, f.modified) for f in files] for files in (manifest.files, found.files))
    return manifest if mine == theirs else None


def taken(name: str, *, force: bool, sha256: str = "") -> Manifest | None:
    """The manifest that has a name already; raises UsageError for an alias, a file's name, or one of the catalogue.

    But the model with the catalogue's `sha256` may have the catalogue's name.
    """
    if name.endswith((".gguf", ".onnx")):
        raise UsageError(f"{name} would always be read as a file", "choose another --name")
    entry = catalogue.find(parse_name(name))
    if entry is not None and (not sha256 or sha256 not in {source.sha256 for source in entry.sources}):
        raise UsageError(f"{name} is a name of the catalogue", "choose another --name")
    if name in local.read_aliases(store.data_directory()):
        raise UsageError(f"{name} is an alias", f"choose another --name, or: localllm alias --remove {name}")
    return None if force else local.read_manifest(local.folder_of(store.models_directory(), name))
