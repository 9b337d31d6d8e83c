"""`localllm tune`: the quantization, the threads and the KV cache that serve a model best on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption, QuietOption, YesOption, with_options
from localllm.commands.convert import ForceOption
from localllm.commands.imatrix import TextOption, read_text
from localllm.errors import UsageError
from localllm.settings import build, load_settings
from localllm.types import EngineOptions

if TYPE_CHECKING:
    from localllm.jobs.tune import Measured, Setting

TYPES = ("Q4_0", "IQ4_NL", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)


@with_options(EngineOptions, without=("context", "template", "threads", "cache_type_k", "cache_type_v"))
def tune(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A GGUF in F16, BF16 or F32, or a checkpoint.")],
    candidates: Annotated[
        list[str] | None,
        typer.Argument(metavar="TYPE|FILE", help=f"What to compare (default {' '.join(TYPES)})."),
    ] = None,
    goal: Annotated[str, typer.Option("--goal", help="speed, balanced or quality.")] = "balanced",
    max_size: Annotated[str, typer.Option("--max-size", metavar="SIZE", help="Of the file, for example 4GB.")] = "",
    max_memory: Annotated[str, typer.Option("--max-memory", metavar="SIZE", help="With 4096 tokens of context.")] = "",
    imatrix: Annotated[str, typer.Option("--imatrix", metavar="FILE|auto", help="An importance matrix.")] = "",
    text: TextOption = None,
    chunks: Annotated[int, typer.Option("--chunks", min=1, help="Chunks of 512 tokens to compare on.")] = 4,
    use: Annotated[bool, typer.Option("--use", help="Keep the chosen one under the model's name.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep every file that was made.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it as a .png or .svg.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go; this folder without it.")
    ] = Path(),
    force: ForceOption = False,
    as_json: JsonOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Make or take quantizations, measure each on this machine, and recommend one."""
    from localllm.commands._gguf import as_gguf
    from localllm.jobs.tune import GOALS, Tuner, pareto_front, recommend
    from localllm.ui.plot import check_plot_file, draw

    if goal not in GOALS:
        raise UsageError(f"--goal {goal}: the goals are {', '.join(GOALS)}")
    if not output.is_dir():
        raise UsageError(f"{output} is not a folder")
    bounds = {"max_size": _bytes("--max-size", max_size), "max_memory": _bytes("--max-memory", max_memory)}
    if plot is not None:
        check_plot_file(plot)
    options = build(EngineOptions, load_settings().given, given or {})
    content, _ = read_text(text, evaluation=True)
    wanted = _check(candidates or list(TYPES))
    with ExitStack() as stack:
        path, name = stack.enter_context(as_gguf(source, output, yes=yes, quiet=quiet))
        made = stack.enter_context(_made(path, name, wanted, imatrix, output, force=force, quiet=quiet))
        tuner = Tuner(path, content, chunks, options)
        stack.callback(tuner.close)
        found = [_measure(tuner, kind, file, quiet=quiet) for kind, file in made.items()]
        front = pareto_front(found)
        chosen = recommend(found, goal, **bounds)
        if not as_json:
            _print_table(found, front)
        settings: list[Setting] = []
        setting = tuner.settings(chosen, settings.append)
        targets = _keep(found, chosen, name, output, keep=keep, force=force)
    if plot is not None:
        draw(found, front, name, plot)
    named = _use(targets[chosen.name], setting) if use else ""
    if as_json:
        _print_json(found, front, chosen, setting, settings, targets)
    else:
        _print_choice(chosen, setting, settings, targets[chosen.name], named, goal)


def _bytes(option: str, text: str) -> int | None:
    if not text:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text!r} is not a size", "for example 4GB or 800MB")
    return int(float(match[1]) * 1000 ** ("KMGT".index(match[2].upper()) + 1 if match[2] else 0))


def _check(candidates: list[str]) -> list[str]:
    """Types by their names, and files that exist. Raises UsageError."""
    from localllm.jobs.quantize import find_type

    found = [c if c.lower().endswith(".gguf") else find_type(c) for c in candidates]
    missing = next((c for c in found if c.endswith(".gguf") and not Path(c).is_file()), None)
    if missing is not None:
        raise UsageError(f"no such file: {missing}")
    return list(dict.fromkeys(found))


@contextmanager
def _made(
    source: Path, name: str, wanted: list[str], imatrix: str, folder: Path, *, force: bool, quiet: bool
) -> Iterator[dict[str, Path]]:
    """Every candidate's file by its name; what is made here goes at the end, if nobody has moved it."""
    from localllm.commands.imatrix import compute_builtin
    from localllm.jobs.quantize import Choice, quantize
    from localllm.ui.progress import work_progress
    from localllm.whole import scratch

    if imatrix == "auto":
        imatrix = str(folder / f"{name}.imatrix.gguf")
        compute_builtin(source, Path(imatrix), force=force, quiet=quiet)
    with ExitStack() as stack:
        found = {}
        for candidate in wanted:
            if candidate.endswith(".gguf"):
                found[Path(candidate).name] = Path(candidate)
                continue
            beside = stack.enter_context(scratch(folder / f"{name}-{candidate}.gguf"))
            with work_progress(f"making {candidate}", "quiet" if quiet else "auto") as report:
                quantize(source, beside, candidate, Choice(imatrix), report)
            found[candidate] = beside
        yield found


def _measure(tuner: Any, kind: str, path: Path, *, quiet: bool) -> Measured:
    from localllm.ui.progress import work_progress

    with work_progress(f"measuring {kind}", "quiet" if quiet else "auto", unit="chunks") as report:
        found: Measured = tuner.measure(kind, path, report)
    return found


def _keep(
    found: list[Measured], chosen: Measured, name: str, folder: Path, *, keep: bool, force: bool
) -> dict[str, Path]:
    """Give the chosen file its name, and with `keep` every other: name of a candidate -> its file."""
    from localllm.whole import require_target, sync

    targets = {}
    for measured in found:
        target = folder / f"{name}-{measured.name}.gguf"
        if measured.name.endswith(".gguf"):
            targets[measured.name] = measured.path
        elif keep or measured == chosen:
            require_target(target, force=force)
            sync(measured.path)
            measured.path.replace(target)
            targets[measured.name] = target
    return targets


def _use(path: Path, setting: Setting) -> str:
    """Register the chosen file under its model's name, with the settings; returns the name."""
    from localllm.commands._gguf import bare_name
    from localllm.hub import foreign, keep, local, store

    name = foreign.clean_name(bare_name(path), "")
    there = local.read_manifest(local.folder_of(store.models_directory(), name))
    if there is not None and not there.in_place:  # a model of the user's own, which must not be replaced
        name = f"{name}-tuned"
    found = next(iter(foreign.in_folder(path.absolute())))
    if isinstance(found, foreign.Skipped):
        raise UsageError(f"{path} cannot be registered: {found.reason}")
    try:
        manifest, _ = keep.register(found, name, force=True, options=setting.options)
    except UsageError:  # a name of the catalogue, or an alias
        manifest, _ = keep.register(found, f"{name}-tuned", force=True, options=setting.options)
    return manifest.name


def _print_table(found: list[Measured], front: list[Measured]) -> None:
    import shutil
    import sys

    from localllm.ui.plot import characters, letter_of
    from localllm.ui.table import print_table
    from localllm.ui.units import size

    rows = [
        (
            letter_of(i), "*" * (m in front), m.name, size(m.size), size(m.memory), f"{m.prompt_ts:.0f}",
            f"{m.decode_ts:.1f}", f"{m.kld:.4f}", f"{m.same_top:.1%}",
        )
        for i, m in enumerate(found)
    ]  # fmt: skip
    head = ("", "", "type", "size", "memory", "prompt t/s", "decode t/s", "KL div.", "same top")
    print_table(head, rows, right=(3, 4, 5, 6, 7, 8))
    print("*: no other is faster, smaller and nearer to the original at once")
    if sys.stdout.isatty() and len(found) > 1:
        print("\n" + "\n".join(characters(found, front, min(100, shutil.get_terminal_size().columns))))


def _print_choice(
    chosen: Measured, setting: Setting, settings: list[Setting], path: Path, named: str, goal: str
) -> None:
    from localllm.ui.table import print_table

    print()
    rows = [
        (
            "*" * (s == setting), str(s.threads), s.cache_type, f"{s.prompt_ts:.0f}", f"{s.decode_ts:.1f}",
            f"{s.added_kld:+.4f}" if s.cache_type != "f16" else "",
        )
        for s in settings
    ]  # fmt: skip
    head = ("", "threads", "KV cache", "prompt t/s", "decode t/s", "KL div.")
    print_table(head, rows, right=(1, 3, 4, 5))
    flags = "".join(f" --{key.replace('_', '-')} {value}" for key, value in setting.options.items())
    print(f"\nfor {goal}: {chosen.name}, {path}")
    print(f"localllm run {named} ..." if named else f"localllm run -m {path}{flags} ...")


def _print_json(
    found: list[Measured], front: list[Measured], chosen: Measured, setting: Setting, settings: list[Setting],
    targets: dict[str, Path],
) -> None:  # fmt: skip
    import json

    def row(measured: Measured) -> dict[str, Any]:
        path = str(targets[measured.name]) if measured.name in targets else None
        return asdict(measured) | {"path": path, "pareto": measured in front, "chosen": measured == chosen}

    rows = [asdict(s) | {"chosen": s == setting} for s in settings]
    print(json.dumps({"candidates": [row(m) for m in found], "settings": rows, "options": setting.options}, indent=1))
