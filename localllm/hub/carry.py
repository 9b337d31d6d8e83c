"""A model in one file: a tar that carries it to a machine without a network, and back out of it.

The tar (POSIX pax, not compressed: weights do not shrink) holds `manifest.json` first and then the files that it names,
each with its size and sha256. Reading trusts nothing: other members, links, names that lead out, wrong sizes and wrong
sums are refused, and a model appears under its name only when all of it was right.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from localllm.errors import BadModelFile, ChecksumMismatch, UsageError
from localllm.formats.gguf import read_model
from localllm.hub import local
from localllm.hub.download import BLOCK, Event, Report, disk_error
from localllm.hub.keep import arriving, require_space, taken, write_file
from localllm.hub.local import MANIFEST, Manifest, ManifestFile
from localllm.hub.reference import parse_name
from localllm.hub.store import Installed, StoredFile

MAX_MANIFEST = 1 << 20  # bytes


def export(model: Installed, target: IO[bytes], name: str, report: Report) -> Manifest:
    """Write a model as a tar. Raises ChecksumMismatch where a file is not what was recorded, OSError."""
    names = _flat_names(model)
    sums = {file.path: _sha256(file, report) for file in names}
    entries = tuple(ManifestFile(name, file.size, sums[file.path]) for file, name in names.items())
    source = model.source or str(model.path)
    manifest = Manifest(name, model.format, entries, model.quant, source, model.revision, model.how)
    text = json.dumps(asdict(manifest), indent=1).encode()
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BLOCK) as tar:
        _add(tar, MANIFEST, len(text), io.BytesIO(text))
        for file, flat in names.items():
            with file.path.open("rb") as opened:
                # What changes between the two readings is found by whoever imports it.
                _add(tar, flat, file.size, opened)
                report(Event(flat, file.size, file.size))
    return manifest


def export_file(model: Installed, path: Path, name: str, report: Report, *, force: bool) -> Manifest:
    """The same into a file: written beside it, synced, renamed. Raises UsageError, DownloadError, ChecksumMismatch."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "--force replaces it")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            manifest = export(model, file, name, report)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise disk_error(error, path.parent) from None
    finally:
        beside.unlink(missing_ok=True)
    return manifest


def import_tar(source: IO[bytes], name: str, report: Report, *, force: bool) -> tuple[Manifest, bool]:
    """Unpack a model below the data directory; False where it was there already.

    Raises BadModelFile, ChecksumMismatch, DownloadError, UsageError.
    """
    with _sound("the tar"), tarfile.open(fileobj=source, mode="r|", bufsize=BLOCK) as tar:
        members = iter(tar)
        manifest = _read_manifest(tar, next(members, None))
        chosen = str(parse_name(name or manifest.name))
        known = taken(chosen, force=force)
        if known is not None:
            if {f.sha256 for f in known.files} == {f.sha256 for f in manifest.files}:
                return known, False
            raise UsageError(f"{chosen} is another model's name already", "--name NAME or --force")
        require_space(sum(file.size for file in manifest.files))
        manifest = replace(manifest, name=chosen)
        with arriving(chosen) as folder:
            _unpack(tar, members, manifest, folder, report)
            if manifest.format == "gguf":
                read_model(folder / manifest.files[0].path)
            local.write_manifest(folder, manifest)
    return manifest, True


def _read_manifest(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> Manifest:
    if member is None or member.name != MANIFEST or not member.isreg() or member.size > MAX_MANIFEST:
        raise BadModelFile("the tar does not begin with a manifest", "was it made by localllm export?")
    file = tar.extractfile(member)
    assert file is not None, "a regular member has content"
    manifest = local.parse_manifest(file.read().decode("utf-8", "replace"), "the tar's manifest.json")
    names = [file.path for file in manifest.files]
    if len({name.lower() for name in names}) < len(names) or any("/" in n or n == MANIFEST for n in names):
        raise BadModelFile("the tar's manifest names a file twice, or one in a folder")
    for entry in manifest.files:
        if Path(entry.path).is_absolute() or entry.size < 0 or len(entry.sha256) != 64:
            raise BadModelFile(f"the tar's manifest has no size or sha256 of {entry.path[:100]!r}")
    return manifest


def _unpack(
    tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo], manifest: Manifest, folder: Path, report: Report
) -> None:
    expected = {file.path: file for file in manifest.files}
    for member in members:
        entry = expected.pop(member.name, None)
        if entry is None or not member.isreg() or member.size != entry.size:
            raise BadModelFile(f"the tar holds {member.name[:100]!r}, which its manifest does not name so")
        file = tar.extractfile(member)
        assert file is not None, "a regular member has content"
        found = write_file(file.read, folder / entry.path, entry.size, report)
        if found.sha256 != entry.sha256:
            raise ChecksumMismatch(f"{entry.path} has the sha256 {found.sha256}, not {entry.sha256}", "carry it again")
    if expected:
        raise BadModelFile(f"the tar ends without {', '.join(expected)}", "carry it again")


@contextmanager
def _sound(what: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BadModelFile(f"{what} is damaged or none: {error}", "carry it again") from None


def _flat_names(model: Installed) -> dict[StoredFile, str]:
    """Names without folders; of two that would be alike the later gets its folder's name in front."""
    names: dict[StoredFile, str] = {}
    for file in (*model.files, *model.companions):
        name = file.path.name
        if model.format == "gguf" and file is model.files[0] and file.path.suffix.lower() != ".gguf":
            name = f"{parse_name_part(model.name)}.gguf"  # Ollama's blobs are named by their sums alone
        while name.lower() in {n.lower() for n in names.values()}:
            name = f"{file.path.parent.name}_{name}"
        names[file] = name
    return names


def parse_name_part(name: str) -> str:
    return name.rpartition("/")[2].replace(":", "-")


def local_name(model: Installed) -> str:
    """The name a model goes by when it has left the Hub's cache: repo:quant."""
    if model.place != "hub":
        text = model.name if model.place == "data" or "/" not in model.name else model.path.stem
        return str(parse_name(text))
    repo = model.repository.rpartition("/")[2]
    return str(parse_name(f"{repo}:{model.quant}" if model.quant else repo))


def _sha256(file: StoredFile, report: Report) -> str:
    """The file's sha256, and a check against what was recorded."""
    sums = [hashlib.sha256()]
    recorded = file.checksum
    if len(recorded) == 40:
        sums.append(hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False))
    done = 0
    with file.path.open("rb") as opened:
        while block := opened.read(BLOCK):
            for digest in sums:
                digest.update(block)
            done += len(block)
            report(Event(file.path.name, done // 2, file.size))
    if (recorded and sums[-1].hexdigest() != recorded) or done != file.size:
        raise ChecksumMismatch(
            f"{file.path} is not what was recorded of it: {sums[-1].hexdigest()}", "localllm verify --fix mends it"
        )
    return sums[0].hexdigest()


def _add(tar: tarfile.TarFile, name: str, size: int, file: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, file)
