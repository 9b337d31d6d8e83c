"""What a user types for a model, parsed: a path, a name, or a repository on the Hugging Face Hub.

Pure: whether the thing exists is the store's to find out.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from localllm.errors import UsageError

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REVISION = r"[A-Za-z0-9_][A-Za-z0-9_./-]*"
_FILE = r"[^/:@\\]+(?:/[^/:@\\]+)*\.(?:gguf|onnx|safetensors)"
_HUB = re.compile(
    rf"(?P<owner>{_PART})/(?P<repo>{_PART})(?:/(?P<file>{_FILE}))?"
    rf"(?::(?P<before>{_PART}))?(?:@(?P<revision>{_REVISION}))?(?::(?P<quant>{_PART}))?",
    re.IGNORECASE,
)
_NAME = re.compile(rf"(?P<family>{_PART})(?::(?P<tag>{_PART}))?")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

MAX_LENGTH = 200  # of a name; a longer word is prompt, not a model


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A file, or a folder, of whose models `quant` names one."""

    path: Path
    quant: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.quant}" if self.quant else str(self.path)


@dataclass(frozen=True, slots=True)
class ModelName:
    """`family:tag`, in lower case: a name of the catalogue, or one that the user gave (an alias, an import).

    Without a tag the family's first model is meant.
    """

    family: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.family}:{self.tag}" if self.tag else self.family


@dataclass(frozen=True, slots=True)
class HubReference:
    """`owner/repo[/path/file][@revision][:QUANT]`; without a revision `main` is meant."""

    owner: str
    repo: str
    quant: str = ""
    file: str = ""
    revision: str = ""

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.repo}"

    def __str__(self) -> str:
        file, revision, quant = (f"{m}{t}" if t else "" for m, t in zip("/@:", self._rest, strict=True))
        return self.repository + file + revision + quant

    @property
    def _rest(self) -> tuple[str, str, str]:
        return self.file, self.revision, self.quant


Reference = LocalPath | ModelName | HubReference


def parse(text: str) -> Reference:
    """Read a reference; what exists on disk is a path before it is anything else. Raises UsageError."""
    if len(text) > MAX_LENGTH and not _exists(Path(text)):
        raise UsageError(f"{text[:40]!r}... is not a model: it is {len(text)} characters long")
    path, place = local_path(text), local_place(text)
    is_path = text.startswith(("/", "./", "../", "~", ".\\", "..\\"))
    if place.quant and (is_path or _holds_models(place.path)):
        return place
    if is_path or _exists(path):
        return LocalPath(path)
    if (page := _page(text)) is not None:
        return _from_page(text, page)
    if "://" in text:
        raise UsageError(f"{text!r} is not an address on the Hugging Face Hub", "download it, and give the file's path")
    match = _HUB.fullmatch(text)
    if text.lower().endswith((".gguf", ".onnx")) and not (match and match["file"]):
        return LocalPath(path)
    if match:
        return _hub(text, match)
    if _NAME.fullmatch(text):
        return parse_name(text)
    raise UsageError(
        f"{text!r} is not a model", "write a .gguf file, a name such as smollm2:135m, or owner/repo[:QUANT]"
    )


def local_path(text: str) -> Path:
    """A path as the user writes it, with `~`. Raises UsageError where that means nobody's home."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):
        raise UsageError(f"{text[:40]!r} is not a path", "whose home should that be?") from None


def local_place(text: str) -> LocalPath:
    """A path, or a folder with `:QUANT` behind it where nothing has that very name. Raises UsageError."""
    path = local_path(text)
    folder, _, quant = text.rpartition(":")
    if folder and re.fullmatch(_PART, quant) and not _exists(path) and _is_folder(local_path(folder)):
        return LocalPath(local_path(folder), quant)
    return LocalPath(path)


def parse_name(text: str) -> ModelName:
    """Read a name that the user gives to a model. Raises UsageError."""
    match = _NAME.fullmatch(text)
    if match is None or ".." in text or len(text) > MAX_LENGTH:
        raise UsageError(f"{text[:40]!r} is not a name for a model", "letters, digits, and . _ - between them")
    return ModelName(match["family"].lower(), (match["tag"] or "").lower())


def looks_like_model(word: str) -> bool:
    """Whether a word has the shape of a reference that cannot be an ordinary word: `a/b`, `name:tag`, `x.gguf`."""
    if not word or len(word) > MAX_LENGTH or any(c.isspace() for c in word):
        return False
    if word.lower().endswith((".gguf", ".onnx")) or _HUB.fullmatch(word) or _page(word):
        return True
    match = _NAME.fullmatch(word)
    return bool(match and match["tag"])


def _hub(text: str, match: re.Match[str]) -> HubReference:
    if ".." in text or "--" in match["owner"] or "--" in match["repo"]:
        raise UsageError(f"{text!r} is not a repository name")
    if match["before"] and match["quant"]:
        raise UsageError(f"{text!r} names two quantizations")
    quant = match["before"] or match["quant"] or ""
    return HubReference(match["owner"], match["repo"], quant, match["file"] or "", match["revision"] or "")


def _page(text: str) -> str | None:
    """The path of a Hub address as a browser or another tool writes it; None for what is no such address."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        host, slash, path = text.partition("/")
        return path if slash and host.lower() in _HOSTS else None
    if scheme == "hf":
        # hf://owner/repo@revision/file
        return re.sub(r"^([^/@]+/[^/@]+)@([^/]+)/(.+)$", r"\1/\3@\2", rest)
    hosts = (*_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc)
    try:
        address = urlsplit(text)
    except ValueError:
        return None
    known = scheme in ("http", "https") and address.netloc and address.netloc.lower() in hosts
    return address.path if known else None


def _from_page(text: str, page: str) -> HubReference:
    parts = [unquote(part) for part in page.split("/") if part]
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):
        # Of a tree only the repository and the revision count: a folder is no model by itself.
        file = "/".join(parts[4:]) if parts[2] != "tree" else ""
        page = "/".join(parts[:2]) + (f"/{file}" if file else "") + f"@{parts[3]}"
    else:
        page = "/".join(parts)
    match = _HUB.fullmatch(page)
    if match is None:
        raise UsageError(f"{text!r} is not the address of a model", "write owner/repo[:QUANT]")
    reference = _hub(page, match)
    return replace(reference, revision="") if reference.revision == "main" else reference


def _is_folder(path: Path) -> bool:
    return _exists(path) and path.is_dir()


def _holds_models(folder: Path) -> bool:
    """Whether a folder is one of models, and not only called as one of the catalogue."""
    try:
        return any(found for pattern in _MODELS for found in folder.glob(pattern))
    except OSError:  # a folder that may not be read
        return False


_MODELS = ("*.gguf", "*.onnx", "onnx/*.onnx")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a prompt may be too long for a file name, or hold a NUL
        return False
