"""Gives models that the user brings a name and a manifest, where they lie or as a copy."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from localllm.errors import DownloadError, UsageError
from localllm.hub import catalogue, local, store
from localllm.hub.download import BLOCK, DISK_RESERVE, Event, Report, disk_error
from localllm.hub.foreign import Foreign
from localllm.hub.local import Manifest, ManifestFile
from localllm.hub.reference import parse_name

LEFTOVER = ".import-"
Reader = Callable[[int], bytes]


def register(found: Foreign, name: str = "", *, force: bool = False) -> tuple[Manifest, bool]:
    """Write the manifest of a model that is used in place; False where it was there already. Raises UsageError."""
    chosen, same = _choose_name(found.name, found, name, force=force)
    if same is not None:
        return same, False
    how = f"used in place, from {found.owner}" if found.owner else "used in place"
    manifest = Manifest(chosen, "gguf", found.files, found.quant, found.files[0].path, "", how)
    with arriving(chosen) as folder:  # what had the name, where it is forced, goes with all its files
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
    chosen, same = _choose_name(found.name, found, name, force=force)
    if same is not None and not same.in_place:
        return same, False
    require_space(sum(file.size for file in found.files))
    with arriving(chosen) as folder:
        files = []
        for file in found.files:
            source = Path(file.path)
            target = folder / source.with_suffix(".gguf").name
            with source.open("rb") as opened:
                files.append(write_file(opened.read, target, file.size, report))
        how = f"copied from {found.files[0].path}"
        manifest = Manifest(chosen, "gguf", tuple(files), found.quant, found.files[0].path, "", how)
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
def arriving(name: str) -> Iterator[Path]:
    """A hidden folder that becomes the model's when everything went well, and vanishes when not."""
    models = store.models_directory()
    try:
        models.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{LEFTOVER}{os.getpid()}-", dir=models))
    except OSError as error:
        raise disk_error(error, models) from None
    old = folder.with_name(folder.name + "-old")
    try:
        yield folder
        target = local.folder_of(models, name)
        folder.chmod(0o755)
        if target.exists():
            target.replace(old)
        folder.replace(target)
    except OSError as error:
        raise disk_error(error, models) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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
    """Folders of imports that were killed: whose process is no more."""
    import psutil

    found = []
    for path in store.models_directory().glob(f"{LEFTOVER}*"):
        pid = path.name.removeprefix(LEFTOVER).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            found.append(path)
    return found


def _choose_name(wanted: str, found: Foreign, name: str, *, force: bool) -> tuple[str, Manifest | None]:
    """The name to use, and the manifest that is there where it is of this very model."""
    if name:
        chosen = str(parse_name(name))
        manifest = taken(chosen, force=force)
        if manifest is None or _same(manifest, found):
            return chosen, manifest
        raise UsageError(f"{chosen} is another model's name already", "choose another --name, or --force to replace it")
    family, _, tag = wanted.partition(":")
    suffix = {"Ollama": "-ollama", "LM Studio": "-lmstudio"}.get(found.owner, "-local")
    for number in range(1, 1000):
        base = family if catalogue.find(parse_name(wanted)) is None else family + suffix
        more = "" if number == 1 else f"-{number}"
        chosen = str(parse_name(f"{base}{more}" + (f":{tag}" if tag else "")))
        manifest = local.read_manifest(local.folder_of(store.models_directory(), chosen))
        if manifest is None or _same(manifest, found):
            return chosen, manifest
    raise UsageError(f"there are too many models named like {wanted}", "--name NAME gives it another")


def _same(manifest: Manifest, found: Foreign) -> bool:
    """Whether a manifest is of these very files, unchanged since."""
    mine, theirs = ([(f.path, f.size, f.modified) for f in files] for files in (manifest.files, found.files))
    return mine == theirs


def taken(name: str, *, force: bool) -> Manifest | None:
    """The manifest that has a name already; raises UsageError for a name of the catalogue or an alias."""
    if catalogue.find(parse_name(name)) is not None:
        raise UsageError(f"{name} is a name of the catalogue", "choose another --name")
    if name in local.read_aliases(store.data_directory()):
        raise UsageError(f"{name} is an alias", f"choose another --name, or: localllm alias --remove {name}")
    return None if force else local.read_manifest(local.folder_of(store.models_directory(), name))
