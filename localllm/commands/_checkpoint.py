"""Finds the checkpoint that a command line names, fetching it first where it is on the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.commands._model import agree, describe_plan, fetch_plan, make_plan
from localllm.errors import BadModelFile
from localllm.hub import store
from localllm.hub.reference import HubReference, LocalPath, parse

if TYPE_CHECKING:
    from localllm.ui.progress import Style


def find_checkpoint(source: str, *, yes: bool, quiet: bool = False) -> tuple[Path, str]:
    """A checkpoint's folder, and what the model is called. Raises ModelNotFound, BadModelFile, DownloadError."""
    from localllm.ui.progress import say

    reference = store.dereference(parse(source))
    if isinstance(reference, LocalPath):
        if reference.path.is_file() and reference.path.suffix.lower() == ".gguf":
            raise _is_gguf(source)
        return reference.path, reference.path.resolve().name
    if isinstance(reference, HubReference):
        reference = reference if reference.quant or reference.file else replace(reference, quant="safetensors")
    found = store.find(reference)
    if found is not None:
        if found.format == "gguf":
            raise _is_gguf(source)
        return found.path.parent, found.repository or found.name
    if not isinstance(reference, HubReference):
        raise _is_gguf(source)
    style: Style = "quiet" if quiet else "auto"
    plan = make_plan(reference, style)
    if plan.variant.format != "safetensors":
        raise BadModelFile(f"{reference} is no checkpoint in safetensors but {plan.variant.format}")
    if not quiet:
        say(f"{reference} is not here yet: {describe_plan(plan)}.")
    agree(str(reference), yes)
    return fetch_plan(plan, style).parent, reference.repository


def local_checkpoint(source: str) -> Path | None:
    """The folder of a checkpoint that is on this machine, or None."""
    reference = store.dereference(parse(source))
    if isinstance(reference, LocalPath):
        return reference.path if (reference.path / "config.json").exists() else None
    if isinstance(reference, HubReference) and not reference.quant:
        reference = replace(reference, quant="safetensors")
    found = store.find(reference)
    return found.path.parent if found is not None and found.format == "safetensors" else None


def _is_gguf(source: str) -> BadModelFile:
    return BadModelFile(
        f"{source} is a GGUF, not a checkpoint",
        "convert takes a folder with safetensors, or owner/repo; --to onnx takes GGUFs too",
    )
