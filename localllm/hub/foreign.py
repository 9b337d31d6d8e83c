"""Models that other programs, or the user, already hold: found where they lie, to be used in place.

Ollama keeps `manifests/<host>/<namespace>/<model>/<tag>` (JSON, after the OCI image manifest) and `blobs/sha256-<hex>`;
LM Studio keeps `publisher/repository/file.gguf`. What is found is believed only after a look: a digest must be one, a
size the file's, and the file a sound GGUF, or a sound ONNX graph with all that belongs to it in its own folder.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, LocalLLMError, UsageError
from localllm.formats import onnx
from localllm.formats.gguf import read_header, read_model
from localllm.hub.files import Format, RepoFile, Variant, quantization, select, variants
from localllm.hub.local import ManifestFile
from localllm.hub.reference import parse_name
from localllm.hub.store import files_in, home_of

MAX_ENTRIES = 10_000
MAX_MANIFEST = 1 << 20  # bytes
_MODEL, _PROJECTOR, _ADAPTER = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "projector", "adapter"))


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model of somebody else's: the name it should get, its files (what is opened first), and where it is from.

    `home` is the folder below which an ONNX model's files keep their names, for one finds the other by them.
    """

    name: str
    quant: str
    files: tuple[ManifestFile, ...]
    owner: str
    format: Format = "gguf"
    home: Path | None = None

    def kept_as(self, file: ManifestFile) -> str:
        """The name that a copy of a file gets in the model's folder."""
        path = Path(file.path)
        return path.relative_to(self.home).as_posix() if self.home else path.with_suffix(".gguf").name


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that looks like a model and cannot be used, with the reason."""

    path: Path
    reason: str


def ollama_folders() -> list[Path]:
    """Where Ollama may keep its models; the first that exists counts."""
    if named := os.environ.get("OLLAMA_MODELS"):
        return [Path(named).expanduser()]
    service = [Path(f"{base}/.ollama/models") for base in ("/usr/share/ollama", "/var/lib/ollama")]
    return [Path("~/.ollama/models").expanduser(), *service]


def lmstudio_folders() -> list[Path]:
    """Where LM Studio may keep its models; the first that exists counts."""
    pointer = Path("~/.lmstudio-home-pointer").expanduser()
    try:
        moved = [Path(pointer.read_text(encoding="utf-8").strip()) / "models"]
    except (OSError, UnicodeDecodeError):
        moved = []
    return [*moved, *(Path(f"~/{name}/models").expanduser() for name in (".lmstudio", ".cache/lm-studio"))]


def in_ollama(root: Path) -> Iterator[Foreign | Skipped]:
    """The models below Ollama's folder."""
    for path in _walk(root / "manifests"):
        parts = path.relative_to(root / "manifests").parts
        if len(parts) != 4:
            continue
        try:
            yield _from_ollama(root, path, parts)
        except LocalLLMError as error:
            yield Skipped(path, str(error))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            yield Skipped(path, f"its manifest cannot be understood ({type(error).__name__})")


def _from_ollama(root: Path, path: Path, parts: tuple[str, ...]) -> Foreign | Skipped:
    _, namespace, model, tag = parts
    if path.stat().st_size > MAX_MANIFEST:
        return Skipped(path, "its manifest is larger than any")
    layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
    weights = [layer for layer in layers if layer["mediaType"] == _MODEL]
    if len(weights) != 1:
        return Skipped(path, f"it has {len(weights)} layers of weights, and one is what can be used in place")
    if any(layer["mediaType"] == _ADAPTER for layer in layers):
        return Skipped(path, "it has an adapter, without which it would be another model")
    projectors = [layer for layer in layers if layer["mediaType"] == _PROJECTOR]
    files = tuple(_blob(root, layer) for layer in (*weights, *projectors))
    header = read_model(Path(files[0].path))
    for projector in files[1:]:
        read_header(Path(projector.path))
    name = clean_name(model if namespace == "library" else f"{namespace}-{model}", tag)
    quant = _FILE_TYPES.get(header.metadata.get("general.file_type", -1), quantization(tag))
    return Foreign(name, quant, files, "Ollama")


def _blob(root: Path, layer: dict[str, Any]) -> ManifestFile:
    digest, size = layer["digest"], layer["size"]
    if not isinstance(digest, str) or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise UsageError(f"its manifest names the digest {str(digest)[:80]!r}, which is none")
    path = (root / "blobs" / digest.replace(":", "-")).absolute()
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would be to wait for ever
        raise UsageError(f"{path} is not a regular file")
    if status.st_size != size:
        raise UsageError(f"{path} has {status.st_size} bytes and its manifest says {size!r}")
    return ManifestFile(str(path), status.st_size, digest.removeprefix("sha256:"), status.st_mtime_ns)


def in_lmstudio(root: Path) -> Iterator[Foreign | Skipped]:
    """The models below LM Studio's folder: named after their repositories."""
    for folder in sorted({path.parent for path in _walk(root) if path.suffix.lower() == ".gguf"}):
        yield from _in_folder(folder, "LM Studio", folder.name)


def in_folder(root: Path, quant: str = "") -> Iterator[Foreign | Skipped]:
    """The models below a folder of the user's own, of one quantization or all, or the one that a file is.

    GGUF models are named after their files, ONNX models after their folders.
    """
    if root.is_file():
        if root.suffix.lower() == ".onnx":
            yield from _in_onnx_folder(home_of(root), "", root.absolute())
        else:
            yield from _in_folder(root.parent, "", "", root.name)
        return
    paths = list(_walk(root))
    for folder in sorted({path.parent for path in paths if path.suffix.lower() == ".gguf"}):
        yield from _in_folder(folder, "", "", quant=quant)
    for folder in sorted({home_of(path) for path in paths if path.suffix.lower() == ".onnx"}):
        yield from _in_onnx_folder(folder, quant)


def _in_folder(
    folder: Path, owner: str, repository: str, only: str = "", *, quant: str = ""
) -> Iterator[Foreign | Skipped]:
    """The models in one folder; where `only` is given, the one that begins with that file."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    found = _of_format("gguf", (RepoFile(name, size) for name, size in sizes.items()))
    for variant in select(found, quant, "") if quant else found:
        if only and variant.path != only:
            continue
        path = folder / variant.path
        projectors = [f for f in variant.companions if f.path.lower().endswith(".gguf")]
        try:
            header = read_model(path)
            quant = variant.quant or _FILE_TYPES.get(header.metadata.get("general.file_type", -1), "")
            for projector in projectors:
                read_header(folder / projector.path)
            stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
            title = repository or re.sub(rf"[-._]{re.escape(variant.quant)}$", "", stem, flags=re.IGNORECASE)
            name = clean_name(re.sub("-gguf$", "", title, flags=re.IGNORECASE), variant.quant)
        except LocalLLMError as error:
            yield Skipped(path, str(error))
            continue
        files = tuple(_in_place(folder / f.path) for f in (*variant.files, *projectors))
        yield Foreign(name, quant, files, owner)


def _of_format(format: Format, files: Iterable[RepoFile]) -> list[Variant]:
    return [variant for variant in variants(files) if variant.format == format]


def _in_onnx_folder(home: Path, quant: str, only: Path | None = None) -> Iterator[Foreign | Skipped]:
    """The ONNX models of a folder and of its folder `onnx`, each with its data, configuration and tokenizer.

    Several in one folder get their quantization behind the name, as in `folder:q4`.
    """
    found = _of_format("onnx", files_in(home))
    for variant in select(found, quant, "") if quant else found:
        path = home / variant.path
        if only not in (None, path):
            continue
        try:
            model = onnx.read_model(path)
            beside = [home / file.path for file in variant.companions]
            paths = [path, *model.external, *(p for p in beside if p not in model.external)]
            _require_inside(home, paths)
            type_ = variant.quant if variant.quant not in ("", "f32") else model.kind  # `model.onnx` holds any type
            name = clean_name(home.name, type_ if len(found) > 1 else "")
        except LocalLLMError as error:
            yield Skipped(path, str(error))
            continue
        yield Foreign(name, type_, tuple(map(_in_place, paths)), "", "onnx", home)


def _require_inside(home: Path, paths: Iterable[Path]) -> None:
    """Raise BadModelFile where a file is a link out of a folder. In the Hub's cache they lead to the blobs there."""
    real = home.resolve()
    places = [real, *([real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [])]
    for path in paths:
        if not any(path.resolve().is_relative_to(place) for place in places):
            raise BadModelFile(
                f"{path} is a link out of the model's folder", "copy the file there, if you trust where it comes from"
            )


def _in_place(path: Path) -> ManifestFile:
    status = path.stat()
    return ManifestFile(str(path.absolute()), status.st_size, "", status.st_mtime_ns)


def clean_name(family: str, tag: str) -> str:
    """A name in the shape that names have, of what others call a model; "model" where nothing of it is left."""
    # What ends in .gguf or .onnx would always be read as a file.
    parts = [re.sub(r"(\.(gguf|onnx))+$", "", part.lower())[:80] for part in (family, tag)]
    clean = [re.sub(r"[^a-z0-9_.-]+|\.\.+", "-", part).lstrip("-.").rstrip("-._") for part in parts]
    return str(parse_name(":".join(part for part in (clean[0] or "model", clean[1]) if part)))


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder, sorted, without hidden ones, following no links to folders; MAX_ENTRIES at most."""
    count = 0
    for here, folders, names in os.walk(root, followlinks=False):
        count += len(folders) + len(names)
        if count > MAX_ENTRIES:
            raise UsageError(f"{root} has more than {MAX_ENTRIES:,} files", "name a folder of models")
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for path in (Path(here) / name for name in sorted(names) if not name.startswith(".")):
            if path.is_file():
                yield path


# llama.cpp's file types (llama_ftype), for files whose name does not tell the quantization.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
