"""Models that the user made or brought: a folder each below the data directory, with a manifest.

    models/<name>/manifest.json      name, format, files with sizes and sha256, source, revision, how it was made
    aliases.json                     names the user gave to references

A file named relatively lies beside its manifest and belongs to us; one with an absolute path is used in place and is
never changed or removed. `=` stands for the `:` of a name, which no Windows folder can hold.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, UsageError
from localllm.fields import options
from localllm.hub.files import Format, check_path
from localllm.hub.reference import parse_name
from localllm.types import EngineOptions

MANIFEST = "manifest.json"
TUNED = ("threads", "cache_type_k", "cache_type_v")
_YEAR_3000 = 32_503_680_000  # in seconds since 1970; no system's calendar ends before


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """`path` as in the module's docstring; `modified` in nanoseconds, for files in place; `sha256` "" if not known."""

    path: str
    size: int
    sha256: str = ""
    modified: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """`options` are those of the engine that `tune` found best for it on this machine."""

    name: str
    format: Format
    files: tuple[ManifestFile, ...]
    quant: str = ""
    source: str = ""
    revision: str = ""
    how: str = ""
    created: float = field(default_factory=time.time)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        return any(Path(file.path).is_absolute() for file in self.files)


def folder_of(models: Path, name: str) -> Path:
    """Where a model of a (checked) name lies."""
    return models / str(parse_name(name)).replace(":", "=")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a model's manifest, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none. Raises BadModelFile."""
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None


def parse_manifest(text: str, where: str) -> Manifest:
    """Read and check a manifest; it may come from another machine. Raises BadModelFile."""
    try:
        data: dict[str, Any] = json.loads(text)
        files = tuple(
            ManifestFile(str(f["path"]), int(f["size"]), str(f.get("sha256", "")), int(f.get("modified", 0)))
            for f in data["files"]
        )
        texts = {key: str(data.get(key, "")) for key in ("quant", "source", "revision", "how")}
        created = float(data.get("created", 0))
        name, engine = str(parse_name(data["name"])), _options(data.get("options", {}))
        manifest = Manifest(name, data["format"], files, **texts, created=created, options=engine)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError) as error:
        raise BadModelFile(f"{where} is no manifest: {error!r}") from None
    if manifest.format not in ("gguf", "safetensors", "onnx") or not files:
        raise BadModelFile(f"{where} is no manifest: it has no files, or a format that is not known")
    if not 0 <= created < _YEAR_3000:
        raise BadModelFile(f"{where} is no manifest: it was created at {created}")
    for file in files:
        if not Path(file.path).is_absolute():
            check_path(file.path)
    return manifest


def _options(table: Any) -> dict[str, Any]:
    """How the model is best opened on this machine; no more than what `tune` decides can be said here.

    Raises UsageError, KeyError, AttributeError.
    """
    known = {name: option for name, option in options(EngineOptions).items() if name in TUNED}
    for name, value in table.items():
        known[name].check(value)
    return dict(table)


def manifests(models: Path) -> list[tuple[Path, Manifest]]:
    """All models below a data directory, by name, with their folders; a broken manifest is passed over."""
    found = []
    for folder in sorted(p for p in models.glob("*") if not p.name.startswith(".")):
        try:
            manifest = read_manifest(folder)
        except BadModelFile:
            continue
        if manifest is not None:
            found.append((folder, manifest))
    return found


def read_aliases(data: Path) -> dict[str, str]:
    """Alias -> reference."""
    path = data / "aliases.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}", "mend or remove it") from None
    return {str(k): str(v) for k, v in table.items()} if isinstance(table, dict) else {}


def change_aliases(data: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Read, change and write the aliases; two processes do so one after the other."""
    from filelock import FileLock

    data.mkdir(parents=True, exist_ok=True)
    with FileLock(data / ".aliases.lock"):
        aliases = change(read_aliases(data))
        write_whole(data / "aliases.json", json.dumps(aliases, indent=1, sort_keys=True) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a small file beside its target, sync it, rename it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
