"""`localllm export`: a model in one file, for a machine without a network."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import QuietOption, ReferenceArgument
from localllm.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from localllm.ui.progress import Style


def export(
    reference: ReferenceArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The .tar to write; - for stdout.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Pack a model with its manifest and checksums into a tar, which `import` unpacks on another machine."""
    from localllm.hub import carry, store
    from localllm.hub.reference import local_path, parse
    from localllm.ui.progress import download_progress, say
    from localllm.ui.units import size

    model = store.find(parse(reference))
    if model is None:
        raise ModelNotFound(f"{reference} is not on this machine", f"localllm pull {reference} fetches it")
    if file == "-" and sys.stdout.isatty():
        raise UsageError("a tar would be written to the terminal", "localllm export MODEL - > model.tar")
    name = carry.local_name(model)
    files = (*model.files, *model.companions)
    style: Style = "quiet" if quiet else "auto"
    with download_progress(len(files), sum(f.size for f in files), style, plain=False) as report:
        if file == "-":
            carry.export(model, sys.stdout.buffer, name, report)
        else:
            carry.export_file(model, local_path(file), name, report, force=force)
    if not quiet:
        say(f"{name} ({size(sum(f.size for f in files))}) is packed; over there: localllm import {file}")
