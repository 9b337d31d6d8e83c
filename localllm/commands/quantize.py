"""`localllm quantize`: a GGUF, a checkpoint or an ONNX model in other quantization types."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import JsonOption, QuietOption, YesOption
from localllm.commands.convert import ForceOption, OutputOption
from localllm.errors import UsageError

if TYPE_CHECKING:
    from localllm.jobs.quantize import Choice, Foreseen


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A GGUF, a name, a checkpoint's folder, owner/repo, an ONNX file or folder."
        ),
    ],
    types: Annotated[
        list[str],
        typer.Argument(metavar="TYPE...", help="Q4_K_M, IQ4_XS, Q8_0, ...; of ONNX q4, q8; several are fine."),
    ],
    imatrix: Annotated[
        str,
        typer.Option("--imatrix", metavar="FILE|auto", help="An importance matrix; auto computes and keeps one."),
    ] = "",
    tensor: Annotated[
        list[str] | None, typer.Option("--tensor", metavar="PATTERN=TYPE", help="A type for some tensors (repeatable).")
    ] = None,
    keep_output: Annotated[bool, typer.Option("--keep-output", help="Leave output.weight as it is.")] = False,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, no better one for some.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell the sizes.")] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Even what is quantized already, at a loss.")
    ] = False,
    output: OutputOption = None,
    force: ForceOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize a model; the path of each file is printed. A checkpoint is converted on the way."""
    from localllm.commands._gguf import as_gguf
    from localllm.commands._quantize_onnx import is_onnx, quantize_onnx
    from localllm.jobs.quantize import Choice, find_type, foresee
    from localllm.whole import require_target

    if is_onnx(source):
        only_gguf = (bool(imatrix), bool(tensor), keep_output, pure, dry_run, allow_requantize, as_json)
        _refuse_for_onnx(only_gguf)
        quantize_onnx(Path(source), types, output, force=force, quiet=quiet)
        return
    kinds = list(dict.fromkeys(find_type(name) for name in types))
    folder = _folder(output, len(kinds))
    with as_gguf(source, _place(folder, dry_run), yes=yes, quiet=quiet, hollow=dry_run) as (path, name):
        targets = {kind: output if output and not output.is_dir() else folder / f"{name}-{kind}.gguf" for kind in kinds}
        if not dry_run:
            for target in targets.values():
                require_target(target, force=force)
        kept = folder / f"{name}.imatrix.gguf"
        with _importance(imatrix, path, kept, dry_run=dry_run, force=force, quiet=quiet) as matrix:
            choice = Choice(matrix, tuple(tensor or ()), keep_output, pure, allow_requantize)
            if dry_run:
                _print_sizes([foresee(path, kind, choice) for kind in kinds], as_json=as_json)
                return
            for kind, target in targets.items():
                _make(path, target, kind, choice, quiet=quiet)


def _refuse_for_onnx(given: tuple[bool, ...]) -> None:
    names = ("--imatrix", "--tensor", "--keep-output", "--pure", "--dry-run", "--allow-requantize", "--json")
    for name in (name for name, is_given in zip(names, given, strict=True) if is_given):
        raise UsageError(f"{name} is for GGUF files, not for ONNX models")


def _folder(output: Path | None, count: int) -> Path:
    if output is None:
        return Path()
    if count > 1 and not output.is_dir():
        raise UsageError(f"{output} is not a folder, and {count} files are to be written", "-o FOLDER")
    return output if output.is_dir() else output.parent


def _place(folder: Path, dry_run: bool) -> Path:
    """Where a checkpoint's GGUF lies on the way; nothing is written where only sizes are asked for."""
    return Path(tempfile.gettempdir()) if dry_run else folder


@contextmanager
def _importance(option: str, model: Path, kept: Path, *, dry_run: bool, force: bool, quiet: bool) -> Iterator[str]:
    """The path of the importance matrix, as the user wrote it, or ""."""
    if option != "auto" or dry_run:
        yield "" if option == "auto" else option
        return
    from localllm.commands.imatrix import compute_builtin

    compute_builtin(model, kept, force=force, quiet=quiet)
    yield str(kept)


def _make(path: Path, target: Path, kind: str, choice: Choice, *, quiet: bool) -> None:
    from localllm.jobs.quantize import quantize
    from localllm.ui.progress import say, work_progress

    with work_progress(target.name, "quiet" if quiet else "auto") as report:
        notices = quantize(path, target, kind, choice, report)
    if not quiet:
        for notice in notices:
            say(f"{target.name}: {notice}")
    print(target, flush=True)


def _print_sizes(rows: list[Foreseen], *, as_json: bool) -> None:
    import json

    from localllm.ui.table import print_table
    from localllm.ui.units import size

    if as_json:
        found = [
            {"type": r.type, "size": r.size, "bits_per_weight": round(r.bits_per_weight, 3), "tensors": r.tensors}
            for r in rows
        ]
        print(json.dumps(found, indent=1))
        return
    print_table(
        ("type", "size", "bits per weight", "tensors"),
        [(r.type, size(r.size), f"{r.bits_per_weight:.2f}", _counted(r.tensors)) for r in rows],
        right=(1, 2),
    )


def _counted(tensors: dict[str, str]) -> str:
    from collections import Counter

    return ", ".join(f"{count} {kind}" for kind, count in Counter(tensors.values()).most_common())
