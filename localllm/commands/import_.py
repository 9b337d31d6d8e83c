"""`localllm import`: a GGUF file, an ONNX model's folder, or a model that `export` packed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import QuietOption
from localllm.errors import BadModelFile, ModelNotFound, UsageError

if TYPE_CHECKING:
    from localllm.hub.local import Manifest
    from localllm.hub.reference import LocalPath
    from localllm.ui.progress import Style


def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A .gguf, an ONNX FOLDER[:QUANT], a .tar made by export, or - for a tar on stdin."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="The model's name here; by default its file's.")] = "",
    copy: Annotated[bool, typer.Option("--copy/--in-place", help="Copy the model, or use it where it lies.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that has the name.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Bring a model: a GGUF file or an ONNX folder, in place or copied, or a tar exported on another machine.

    Prints the name that `run` takes.
    """
    from localllm.hub.reference import local_place
    from localllm.ui.progress import say

    style: Style = "quiet" if quiet else "auto"
    place = None if file == "-" else local_place(file)
    if place is not None and not place.path.exists():
        raise ModelNotFound(f"{place.path} does not exist", "import takes a .gguf, an ONNX folder or a .tar")
    if place is None or place.path.suffix.lower() == ".tar":
        if copy:
            raise UsageError("--copy is for a model's own files; a tar is always unpacked")
        manifest, new = _from_tar(place.path if place else None, name, style, force=force)
    else:
        manifest, new = _from_files(place, name, style, copy=copy, force=force)
    if not new and not quiet:
        say(f"{manifest.name} is here already")
    print(manifest.name)


def _from_files(place: LocalPath, name: str, style: Style, *, copy: bool, force: bool) -> tuple[Manifest, bool]:
    from localllm.hub import keep
    from localllm.hub.foreign import Foreign, in_folder
    from localllm.ui.progress import download_progress

    found = list(in_folder(place.path, place.quant))
    ours = [each for each in found if isinstance(each, Foreign)]
    if not ours:
        reasons = [each.reason for each in found if not isinstance(each, Foreign)]
        raise BadModelFile(reasons[0]) if reasons else _nothing(place)
    if len(ours) > 1:
        names = ", ".join(each.quant or each.files[0].path for each in ours[:5])
        raise UsageError(
            f"{place.path} holds {len(ours)} models", f"{place.path}:QUANT imports one of {names}; register takes all"
        )
    total = sum(f.size for f in ours[0].files)
    with download_progress(len(ours[0].files), total, style, plain=False) as report:
        if not copy:
            return keep.register(keep.with_sums(ours[0], report), name, force=force)
        return keep.copy(ours[0], name, report, force=force)


def _nothing(place: LocalPath) -> BadModelFile:
    if place.path.is_dir():
        what = f"{place.path} holds no {place.quant or 'GGUF and no ONNX model'}"
        return BadModelFile(what, "localllm convert makes one of a checkpoint")
    return BadModelFile(f"{place.path} is no GGUF and no ONNX model, or not the first of its shards")


def _from_tar(path: Path | None, name: str, style: Style, *, force: bool) -> tuple[Manifest, bool]:
    from localllm.hub import carry
    from localllm.ui.progress import download_progress

    if path is None and sys.stdin.isatty():
        raise UsageError("there is no tar on standard input", "localllm import - < model.tar")
    total = path.stat().st_size if path else 0
    with download_progress(1, total, style, plain=False) as report:
        if path is None:
            return carry.import_tar(sys.stdin.buffer, name, report, force=force)
        with path.open("rb") as opened:
            return carry.import_tar(opened, name, report, force=force)
