"""`localllm imatrix`: which columns of a model's weights matter, for better quantizations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import QuietOption, YesOption, with_options
from localllm.commands.convert import ForceOption, OutputOption
from localllm.settings import build, load_settings
from localllm.types import EngineOptions

if TYPE_CHECKING:
    from localllm.jobs.imatrix import Imatrix

TextOption = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="The text; without it one that comes with Python."),
]
ChunksOption = Annotated[int, typer.Option("--chunks", min=0, help="At most so many chunks; 0 takes all.")]
BUILTIN_CHUNKS = 100


@with_options(EngineOptions, without=("context", "template"))
def imatrix(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF, best of F16 or BF16, or a checkpoint.")],
    text: TextOption = None,
    chunks: ChunksOption = BUILTIN_CHUNKS,
    output: OutputOption = None,
    force: ForceOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Compute an importance matrix from a text, in llama.cpp's format; its path is printed."""
    from localllm.commands._gguf import as_gguf
    from localllm.jobs.imatrix import write_imatrix
    from localllm.whole import require_target

    if output is not None:
        require_target(output, force=force)
    folder = output.parent if output else Path()
    with as_gguf(model, folder, yes=yes, quiet=quiet) as (path, name):
        target = output or folder / f"{name}.imatrix.gguf"
        require_target(target, force=force)
        options = build(EngineOptions, load_settings().given, given or {})
        found = _compute(path, *read_text(text), chunks, options, quiet=quiet)
        write_imatrix(found, target)
    print(target)


def compute_builtin(model: Path, target: Path, *, force: bool, quiet: bool) -> None:
    """Compute one from the built-in text and keep it. Raises UsageError where there is one already."""
    from localllm.errors import UsageError
    from localllm.jobs.imatrix import write_imatrix
    from localllm.ui.progress import say

    if target.exists() and not force:
        raise UsageError(f"{target} exists", f"--imatrix {target} uses it, --force replaces it")
    write_imatrix(_compute(model, *read_text(None), BUILTIN_CHUNKS, EngineOptions(), quiet=quiet), target)
    if not quiet:
        say(f"the importance matrix is kept as {target}")


def _compute(model: Path, text: str, dataset: str, chunks: int, options: EngineOptions, *, quiet: bool) -> Imatrix:
    from contextlib import closing

    from localllm.engines.llama_cpp import open_scorer
    from localllm.jobs.imatrix import compute
    from localllm.ui.progress import work_progress

    with closing(open_scorer(model, options)) as scorer, scorer.interruptible():
        tokens = scorer.tokenize(text, begin=True, special=False)
        with work_progress("importance matrix", "quiet" if quiet else "auto", unit="chunks") as report:
            return compute(scorer, tokens, dataset, chunks=chunks, report=report)


def read_text(path: Path | None, *, evaluation: bool = False) -> tuple[str, str]:
    """A text and its name: a file's, or the built-in one to calibrate or to evaluate with. Raises UsageError."""
    from localllm.errors import UsageError
    from localllm.jobs import calibration

    if path is None:
        return calibration.evaluation_text() if evaluation else calibration.calibration_text(), calibration.NAME
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n"), path.name  # \r is a character like others
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {path} cannot be read: {error}", "name a file of UTF-8 text") from None
