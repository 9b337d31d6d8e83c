"""A model in one file: a tar that carries it to a machine without a network, and back out of it.

The tar (POSIX pax, not compressed: weights do not shrink) holds `manifest.json` first and then the files that it names,
each with its size and sha256. Reading trusts nothing: other members, links, names that lead out, wrong sizes and wrong
sums are refused, and a model appears under its name only when all of it was right.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from localllm.errors import BadModelFile, ChecksumMismatch, UsageError
from localllm.formats import onnx
from localllm.formats.gguf import read_header, read_model
from localllm.hub import catalogue, local, store
from localllm.hub.download import BLOCK, Event, Report, disk_error
from localllm.hub.files import UNSAFE, is_safe
from localllm.hub.foreign import clean_name
from localllm.hub.keep import arriving, is_whole, require_space, taken, write_file
from localllm.hub.local import MANIFEST, Manifest, ManifestFile
from localllm.hub.reference import parse_name
from localllm.hub.store import Installed, StoredFile
from localllm.whole import replacing, require_target

MAX_MANIFEST = 1 << 20  # bytes
_HEADERS = 4 << 20  # bytes that may stand between two files, with what is read ahead


def export(model: Installed, target: IO[bytes], name: str, report: Report) -> Manifest:
    """Write a model as a tar. Raises ChecksumMismatch where a file is not what was recorded, OSError."""
    names = _flat_names(model)
    entries = tuple(ManifestFile(flat, file.size, _sha256(file, flat, report)) for file, flat in names.items())
    source = model.source or str(model.path)
    how = "" if model.place == "in place" else model.how  # which will not be so over there
    manifest = Manifest(name, model.format, entries, model.quant, source, model.revision, how)
    text = json.dumps(asdict(manifest), indent=1).encode()
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BLOCK) as tar:
        tar.copybufsize = BLOCK  # type: ignore[attr-defined]  # its own 16 KiB would be a report each
        _add(tar, MANIFEST, len(text), io.BytesIO(text))
        for file, entry in zip(names, entries, strict=True):
            with file.path.open("rb") as opened:
                checked = _Checked(opened, file, entry, report)
                _add(tar, entry.path, entry.size, checked)
                checked.check()
    return manifest


def export_file(model: Installed, path: Path, name: str, report: Report, *, force: bool) -> Manifest:
    """The same into a file: written beside it, synced, renamed. Raises UsageError, DownloadError, ChecksumMismatch."""
    require_target(path, force=force)
    try:
        with replacing(path) as beside, beside.open("wb") as file:
            manifest = export(model, file, name, report)
    except OSError as error:
        raise disk_error(error, path.parent, "name a FILE in another folder") from None
    return manifest


def import_tar(source: IO[bytes], name: str, report: Report, *, force: bool) -> tuple[Manifest, bool]:
    """Unpack a model below the data directory; False where it was there already.

    Raises BadModelFile, ChecksumMismatch, DownloadError, UsageError.
    """
    metered = _Metered(source)
    with _sound("the tar"), tarfile.open(fileobj=metered, mode="r|", bufsize=BLOCK) as tar:
        members = _members(tar, metered)
        manifest = _read_manifest(tar, next(members, None))
        chosen = str(parse_name(name)) if name else _free_of_the_catalogue(manifest)
        if (entry := catalogue.find(parse_name(chosen))) is not None and store.installed(entry) is not None:
            taken(chosen, force=force, sha256=manifest.files[0].sha256)
            return replace(manifest, name=chosen), False
        known = taken(chosen, force=force, sha256=manifest.files[0].sha256)
        if known is not None:
            if {f.sha256 for f in known.files} != {f.sha256 for f in manifest.files}:
                raise UsageError(f"{chosen} is another model's name already", "--name NAME or --force")
            if is_whole(known):
                return known, False
        require_space(sum(file.size for file in manifest.files))
        # What was found best on another machine need not be so here.
        manifest = replace(manifest, name=chosen, how=manifest.how or "unpacked from a tar", options={})
        with arriving(chosen) as folder:
            _unpack(tar, metered, manifest, folder, report)
            if manifest.format == "gguf":
                read_model(folder / manifest.files[0].path)
                for more in (f.path for f in manifest.files[1:] if f.path.lower().endswith(".gguf")):
                    read_header(folder / more)
            elif manifest.format == "onnx":
                onnx.read_model(folder / manifest.files[0].path)
            local.write_manifest(folder, manifest)
    return manifest, True


def _free_of_the_catalogue(manifest: Manifest) -> str:
    """The model's name, or another where the catalogue means another model by that."""
    name = parse_name(manifest.name)
    entry = catalogue.find(name)
    if entry is None or manifest.files[0].sha256 in {source.sha256 for source in entry.sources}:
        return str(name)
    return str(replace(name, family=f"{name.family}-local"))


def _read_manifest(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> Manifest:
    if member is None or member.name != MANIFEST or not member.isreg() or member.size > MAX_MANIFEST:
        raise BadModelFile("the tar does not begin with a manifest", "was it made by localllm export?")
    file = tar.extractfile(member)
    assert file is not None, "a regular member has content"
    manifest = local.parse_manifest(file.read().decode("utf-8", "replace"), "the tar's manifest.json")
    names = [file.path for file in manifest.files]
    if len({name.lower() for name in names}) < len(names) or any("/" in n or n == MANIFEST for n in names):
        raise BadModelFile("the tar's manifest names a file twice, or one in a folder")
    if not names[0].lower().endswith(f".{manifest.format}"):  # else another file would be opened than was checked
        raise BadModelFile("the tar's manifest does not begin with the model")
    for entry in manifest.files:
        if Path(entry.path).is_absolute() or entry.size < 0 or len(entry.sha256) != 64:
            raise BadModelFile(f"the tar's manifest has no size or sha256 of {entry.path[:100]!r}")
        if entry.path.lower().endswith(UNSAFE):
            raise BadModelFile(f"the tar holds {entry.path[:100]!r}, which runs code when it is opened")
    return manifest


class _Metered(io.RawIOBase):
    """A stream that gives `left` bytes at most: a header may claim to be larger than this machine's memory."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.left = source, _HEADERS

    def read(self, size: int = -1, /) -> bytes:
        if size > self.left:
            raise BadModelFile("the tar has a header that is larger than any", "was it made by localllm export?")
        block = self._source.read(size)
        self.left -= len(block)
        return block


def _members(tar: tarfile.TarFile, metered: _Metered) -> Iterator[tarfile.TarInfo]:
    while True:
        metered.left = _HEADERS
        member = tar.next()
        if member is None:
            return
        yield member


def _unpack(tar: tarfile.TarFile, metered: _Metered, manifest: Manifest, folder: Path, report: Report) -> None:
    expected = {file.path: file for file in manifest.files}
    for member in _members(tar, metered):
        entry = expected.pop(member.name, None)
        if entry is None or not member.isreg() or member.size != entry.size:
            raise BadModelFile(f"the tar holds {member.name[:100]!r}, which its manifest does not name so")
        file = tar.extractfile(member)
        assert file is not None, "a regular member has content"
        metered.left = entry.size + _HEADERS
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


class _Checked(io.RawIOBase):
    """A file on its way into the tar, which must hold what the manifest in front of it says."""

    def __init__(self, opened: IO[bytes], file: StoredFile, entry: ManifestFile, report: Report) -> None:
        self._opened, self._file, self._entry, self._report = opened, file, entry, report
        self._digest, self._done = hashlib.sha256(), 0

    def read(self, size: int = -1, /) -> bytes:
        block = self._opened.read(size)
        if len(block) < size:
            raise _mismatch(self._file)
        self._digest.update(block)
        self._done += len(block)
        done = self._done if _is_sha256(self._file.checksum) else (self._entry.size + self._done) // 2
        self._report(Event(self._entry.path, done, self._entry.size))
        return block

    def check(self) -> None:
        """Raise ChecksumMismatch where it was another file, or goes on."""
        if self._digest.hexdigest() != self._entry.sha256 or self._opened.read(1):
            raise _mismatch(self._file)


def _sha256(file: StoredFile, flat: str, report: Report) -> str:
    """The sha256 that was recorded, which is checked while the file is written; else the file's own."""
    if _is_sha256(file.checksum):
        return file.checksum
    sha256 = hashlib.sha256()
    sha1 = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    done = 0
    with file.path.open("rb") as opened:
        while block := opened.read(BLOCK):
            sha256.update(block)
            sha1.update(block)
            done += len(block)
            report(Event(flat, done // 2, file.size))
    if done != file.size or file.checksum not in ("", sha1.hexdigest()):
        raise _mismatch(file)
    return sha256.hexdigest()


def _is_sha256(checksum: str) -> bool:
    return len(checksum) == 64


def _mismatch(file: StoredFile) -> ChecksumMismatch:
    return ChecksumMismatch(f"{file.path} is not what was recorded of it", "localllm verify --fix mends it")


def _flat_names(model: Installed) -> dict[StoredFile, str]:
    """Names without folders, safe on every platform; of two alike the later gets its folder's name in front."""
    names: dict[StoredFile, str] = {}
    for file in (*model.files, *model.companions):
        name = _safe(file.path.name)
        if model.format == "gguf" and file is model.files[0] and file.path.suffix.lower() != ".gguf":
            name = f"{local_name(model).replace(':', '-')}.gguf"  # Ollama's blobs are named by their sums alone
        while name.lower() in {n.lower() for n in names.values()}:
            name = _safe(f"{file.path.parent.name}_{name}")
        names[file] = name
    return names


def _safe(name: str) -> str:
    return name if is_safe(name) else "_" + re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-200:]


def local_name(model: Installed) -> str:
    """The name a model goes by where it has no repository and no path: repo:quant, or its file's."""
    if model.place == "hub":
        return clean_name(model.repository.rpartition("/")[2], model.quant)
    if model.folder.parent == store.models_directory():
        return str(parse_name(model.name))
    return clean_name(model.path.stem, "")


def _add(tar: tarfile.TarFile, name: str, size: int, file: IO[bytes] | _Checked) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, file)
