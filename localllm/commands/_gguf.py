"""Finds the GGUF that a command works on: a file, an installed model, or a checkpoint converted on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllm.commands._checkpoint import find_checkpoint
from localllm.commands._model import resolve
from localllm.errors import BadModelFile
from localllm.hub import store
from localllm.hub.files import quantization
from localllm.hub.reference import HubReference, LocalPath, ModelName, parse


def gguf_of(source: str, *, yes: bool) -> tuple[Path, str]:
    """An existing GGUF (fetched if need be), and what its model is called without its quantization."""
    model = resolve(source, yes=yes)
    if model.path.suffix.lower() != ".gguf":
        raise BadModelFile(f"{source} is not a GGUF", f"localllm convert {source} makes one")
    return model.path, bare_name(model.path)


@contextmanager
def as_gguf(
    source: str, folder: Path, *, yes: bool = False, quiet: bool = False, hollow: bool = False
) -> Iterator[tuple[Path, str]]:
    """A GGUF and its model's name. A checkpoint becomes one in `folder` for as long as the block lasts.

    `hollow`: nobody looks at its data.
    """
    if not is_checkpoint(source):
        yield gguf_of(source, yes=yes)
        return
    from localllm.convert import gguf
    from localllm.ui.progress import say, work_progress
    from localllm.whole import scratch

    path, name = find_checkpoint(source, yes=yes, quiet=quiet)
    plan = gguf.plan(path, "auto", name)
    if not quiet:
        for notice in plan.notices:
            say(f"{name}: {notice}")
    name = name.rpartition("/")[2]
    with scratch(folder / f"{name}.gguf") as beside:
        with work_progress(f"converting {name}", "quiet" if quiet else "auto") as report:
            gguf.write(plan, beside, report, hollow=hollow)
        yield beside, name


def is_checkpoint(source: str) -> bool:
    """Whether a word means a checkpoint: a folder, a repository without a quantization, or what is here as one."""
    reference = store.dereference(parse(source))
    if isinstance(reference, LocalPath):
        return reference.path.is_dir()
    if isinstance(reference, HubReference):
        return not reference.file and reference.quant.lower() in ("", "safetensors")
    assert isinstance(reference, ModelName)
    found = store.find(reference)
    return found is not None and found.format == "safetensors"


def bare_name(path: Path) -> str:
    """A file's name without its quantization and its suffix: model-BF16.gguf is `model`."""
    stem = path.name.removesuffix(path.suffix)
    quant = quantization(path.name)
    if quant:
        start = stem.upper().rfind(quant.upper())
        stem = stem[:start].rstrip("-_.") or stem
    return stem
