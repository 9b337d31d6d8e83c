"""Where models lie on this disk, found without opening a network connection or a heavy library.

Files from the Hub lie in the Hub's own cache (`cache.py`), shared with every other Hugging Face tool. What came another
way lies in the platform's data directory (`local.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import platformdirs

from localllm.errors import BadModelFile, ModelNotFound
from localllm.hub import catalogue, files, local
from localllm.hub.cache import CachedRepository, Snapshot, repositories
from localllm.hub.catalogue import Entry, HubSource, Source
from localllm.hub.files import Format, Variant
from localllm.hub.local import Manifest
from localllm.hub.reference import HubReference, LocalPath, ModelName, Reference, parse


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`checksum` is the sha256, or the git blob id of a small file from the Hub, or ""."""

    path: Path
    size: int
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Installed:
    """A model that is here. `files[0]` is what is opened; `modified` in seconds since 1970."""

    name: str
    format: Format
    quant: str
    files: tuple[StoredFile, ...]
    companions: tuple[StoredFile, ...]
    place: Literal["hub", "data", "in place", "file"]
    modified: float
    repository: str = ""
    revision: str = ""
    source: str = ""
    how: str = ""
    folder: Path = field(default_factory=Path)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.files[0].path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def engine(self) -> str:
        """The engine that runs it; a checkpoint has to be converted first."""
        return {"gguf": "llama.cpp", "onnx": "onnx", "safetensors": "-"}[self.format]


def data_directory() -> Path:
    """`LOCALLLM_HOME`, or the platform's data directory."""
    home = os.environ.get("LOCALLLM_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_data_dir("localllm", appauthor=False))


def models_directory() -> Path:
    return data_directory() / "models"


def hub_cache() -> Path:
    """The Hub's cache, by the same variables that huggingface_hub reads."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(cache)).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME") or Path(base) / "huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def everything() -> list[Installed]:
    """All models on this machine, by name."""
    found = [*_local_models(), *(m for r in repositories(hub_cache()) for m in hub_models(r))]
    return sorted(found, key=lambda m: m.name.lower())


def find(reference: Reference, *, whole: bool = True) -> Installed | None:
    """The model a reference means, or None when it is not on this disk. Raises ModelNotFound for an unknown name.

    A model used in place whose files have gone raises BadModelFile, or is returned all the same where not `whole`.
    """
    reference = dereference(reference)
    if isinstance(reference, LocalPath):
        return _of_folder(reference) if reference.path.is_dir() else _of_path(_local_file(reference.path))
    if isinstance(reference, HubReference):
        return _in_hub_cache(reference)
    if (own := _own(reference, whole=whole)) is not None:
        return own
    entry = _entry(reference)
    path_ = installed(entry)
    return None if path_ is None else _of_entry(entry, path_)


def _entry(name: ModelName) -> Entry:
    """The catalogue's. Raises ModelNotFound, which names what is nearly called so: first of the user's own names."""
    try:
        return catalogue.get(name)
    except ModelNotFound as error:
        from difflib import get_close_matches

        own = [*(m.name for _, m in local.manifests(models_directory())), *local.read_aliases(data_directory())]
        near = get_close_matches(str(name), own, 3)
        raise ModelNotFound(str(error), f"did you mean {' or '.join(near)}?" if near else error.hint) from None


def locate(reference: Reference) -> Path | None:
    """The file a reference means, or None when it is not on this disk. Raises ModelNotFound for an unknown name."""
    found = find(reference)
    return found.path if found else None


def is_known(reference: Reference) -> bool:
    """Whether a word is a model: an existing file or folder, a name that is known, an installed model."""
    if dereference(reference) != reference:
        return True  # an alias, even of something that has gone: then the user must hear of it
    if isinstance(reference, LocalPath):
        return reference.path.exists()
    if isinstance(reference, ModelName):
        return local.folder_of(models_directory(), str(reference)).is_dir() or catalogue.find(reference) is not None
    return _in_hub_cache(reference) is not None


def dereference(reference: Reference) -> Reference:
    """What an alias stands for; anything else is itself."""
    if isinstance(reference, ModelName) and (target := local.read_aliases(data_directory()).get(str(reference))):
        return parse(target)
    return reference


def source_path(source: Source) -> Path:
    """Where a source's file lies once it is fetched (for the Hub: if it is; the commit decides the folder)."""
    if isinstance(source, HubSource):
        home = CachedRepository(hub_cache(), source.repository)
        return home.pointer(home.commit(source.revision) or source.revision, source.file)
    return models_directory() / f"{source.distribution}-{source.version}" / Path(source.member).name


def installed(entry: Entry) -> Path | None:
    """The file of a catalogue entry, from whichever of its sources it came; None when it is not here."""
    own = local.read_manifest(local.folder_of(models_directory(), entry.name))
    if own is not None:  # carried here in a tar
        return local.folder_of(models_directory(), entry.name) / own.files[0].path
    for source in entry.sources:
        path = source_path(source)
        if path.is_file():
            return path
        if isinstance(source, HubSource) and source.sha256:
            # The same bytes, pulled at another revision.
            for snapshot in CachedRepository(hub_cache(), source.repository).snapshots():
                if any(f.path == source.file and f.etag == source.sha256 for f in snapshot.files):
                    return snapshot.folder / source.file
    return None


def hub_models(home: CachedRepository) -> Iterator[Installed]:
    """The models of a repository that are in the cache; the same file at several revisions counts once."""
    seen: dict[str, set[str]] = {}
    for snapshot in home.snapshots():
        found = files.variants(snapshot.files)
        for variant in found:
            etags = seen.setdefault(variant.path, set())
            etag = variant.files[0].etag or snapshot.commit  # where nothing tells, each revision has bytes of its own
            if etag not in etags:
                # The first that has a file is meant where no revision is named; the older ones need their commit.
                yield _of_variant(home, snapshot, variant, found, plain=not etags)
                etags.add(etag)


def _in_hub_cache(reference: HubReference) -> Installed | None:
    home = CachedRepository(hub_cache(), reference.repository)
    for snapshot in home.snapshots(reference.revision):
        found = files.variants(snapshot.files)
        if chosen := files.select(found, reference.quant, reference.file):
            # Several are here and none was named: the best, as `pull` would choose.
            variant, _ = files.best(chosen, lambda _: True)
            return _of_variant(home, snapshot, variant, found, plain=not reference.revision)
    return None


def _of_variant(
    home: CachedRepository, snapshot: Snapshot, variant: Variant, found: list[Variant], *, plain: bool
) -> Installed:
    revision = "" if plain or "main" in snapshot.names else (*snapshot.names, snapshot.commit[:12])[0]
    by_quant = files.select(found, variant.quant, "") if variant.quant else []
    quant, file = (variant.quant, "") if by_quant == [variant] else ("", variant.path)
    owner, _, repo = home.repository.partition("/")
    name = str(HubReference(owner, repo, quant, file, revision))
    stored, companions = (
        tuple(StoredFile(snapshot.path(file), file.size, file.etag) for file in group)
        for group in (variant.files, variant.companions)
    )
    modified = max((f.path.stat().st_mtime for f in stored), default=0.0)
    return Installed(
        name, variant.format, variant.quant, stored, companions, "hub", modified,
        home.repository, snapshot.commit, home.repository, "fetched from the Hub", snapshot.folder,
    )  # fmt: skip


def _local_models() -> Iterator[Installed]:
    for folder, manifest in local.manifests(models_directory()):
        # A file used in place may have gone, and the user should see that; ours may be on its way.
        if manifest.in_place or all((folder / file.path).is_file() for file in manifest.files):
            yield _of_manifest(folder, manifest)


def _own(name: ModelName, *, whole: bool) -> Installed | None:
    """A model that the user made or brought. Raises BadModelFile where its files have gone."""
    folder = local.folder_of(models_directory(), str(name))
    manifest = local.read_manifest(folder)
    if manifest is None:
        return None
    for file in manifest.files:
        path = folder / file.path
        if whole and not path.is_file():
            raise BadModelFile(f"{path}, which {name} used in place, has gone", f"localllm rm {name} forgets it")
    return _of_manifest(folder, manifest)


def _of_manifest(folder: Path, manifest: Manifest) -> Installed:
    stored = tuple(StoredFile(folder / f.path, f.size, f.sha256) for f in manifest.files)
    if manifest.format == "onnx":  # a graph's data may be called anything; what is around it may not
        weights = tuple(f for f in stored if not files.is_companion(f.path.name))
    else:
        weights = tuple(f for f in stored if f.path.suffix.lower() in (".gguf", ".safetensors"))
    weights = weights or stored
    return Installed(
        manifest.name, manifest.format, manifest.quant, weights, tuple(f for f in stored if f not in weights),
        "in place" if manifest.in_place else "data", manifest.created, "", manifest.revision, manifest.source,
        manifest.how, folder, manifest.options,
    )  # fmt: skip


def _of_entry(entry: Entry, path: Path) -> Installed:
    """A catalogue entry that is here; from the Hub's cache with all that is known of it there."""
    for model in (m for s in entry.sources if isinstance(s, HubSource) for m in _hub_models_of(s)):
        if model.path == path:
            return model
    manifest = local.read_manifest(path.parent)
    if manifest is not None:
        return _of_manifest(path.parent, manifest)
    stat = path.stat()
    sha256 = next((s.sha256 for s in entry.sources if source_path(s) == path), "")
    return Installed(
        entry.name, "gguf", files.quantization(path.name), (StoredFile(path, stat.st_size, sha256),), (), "data",
        stat.st_mtime, folder=path.parent,
    )  # fmt: skip


def _hub_models_of(source: HubSource) -> Iterator[Installed]:
    return hub_models(CachedRepository(hub_cache(), source.repository))


def _of_path(path: Path) -> Installed:
    """A file of the user's own, with the shards that follow it, or the data and all else that belongs to it."""
    if path.suffix.lower() == ".onnx":
        folder = home_of(path)
        found = [v for v in files.variants(files_in(folder)) if folder / v.path == path.absolute()]
        return _of_local(folder, found[0], str(path))
    beside = files.variants(files.RepoFile(p.name, p.stat().st_size) for p in path.parent.glob("*.gguf") if p.is_file())
    names = next(([f.path for f in v.files] for v in beside if v.path == path.name), [path.name])
    stored = tuple(StoredFile(path.parent / name, (path.parent / name).stat().st_size) for name in names)
    quant = files.quantization(path.name)
    return Installed(str(path), "gguf", quant, stored, (), "file", path.stat().st_mtime, folder=path.parent)


def _of_folder(reference: LocalPath) -> Installed:
    """The model of a folder: the one that is named, its only GGUF, or the plainest of its ONNX models."""
    folder = reference.path
    everything = files.variants(files_in(folder))
    found = [v for v in everything if v.format != "safetensors"]
    if everything and not found:
        hint = f"localllm convert {folder} makes a GGUF of it, with --to onnx an ONNX model"
        raise BadModelFile(f"{folder} is a checkpoint, which has to be converted first", hint)
    if reference.quant:
        chosen = files.require(found, str(folder), reference.quant, "", ())
    else:
        chosen = [v for v in found if v.format == "gguf"] or sorted(
            (v for v in found if v.format == "onnx"), key=lambda v: (v.quant != "f32", v.path)
        )
        plain = [v for v in chosen if v.path in _PLAIN]
        chosen = plain or chosen
    if not chosen:
        raise BadModelFile(f"{folder} is a folder with no .gguf and no .onnx files", "name one file")
    if len(chosen) > 1:
        names = ", ".join(v.quant or v.path for v in chosen[:5])
        raise BadModelFile(f"{folder} is a folder with {len(chosen)} models", f"name one: {folder}:QUANT of {names}")
    return _of_local(folder, chosen[0], str(reference))


_PLAIN = ("model.onnx", "onnx/model.onnx")


def home_of(model: Path) -> Path:
    """The folder of an ONNX model's repository: where the file lies, or the one around `onnx/`."""
    folder = model.absolute().parent  # of a file that is named in its own folder the parent has no name
    return folder.parent if folder.name == "onnx" else folder


def files_in(folder: Path) -> Iterator[files.RepoFile]:
    """The files of a folder and of its folder `onnx`, where transformers.js and Optimum put their models."""
    for path in sorted((*folder.glob("*"), *folder.glob("onnx/*"))):
        if path.is_file():
            yield files.RepoFile(path.relative_to(folder).as_posix(), path.stat().st_size)


def _of_local(folder: Path, variant: Variant, name: str) -> Installed:
    stored, companions = (
        tuple(StoredFile(folder / file.path, file.size) for file in group)
        for group in (variant.files, variant.companions)
    )
    modified = stored[0].path.stat().st_mtime
    return Installed(name, variant.format, variant.quant, stored, companions, "file", modified, folder=folder)


def _local_file(path: Path) -> Path:
    if not path.exists():
        raise ModelNotFound(
            f"no such file: {path}", "give the path of a .gguf or .onnx file, or a name from `localllm models`"
        )
    if not path.is_file():
        raise BadModelFile(f"{path} is not a regular file")
    return path
