"""`localllm batch`: one prompt over many rows, answered side by side, going on where a killed run stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from io import TextIOWrapper
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._form import Form
from localllm.commands._options import (
    EngineOption,
    ModelOption,
    QuietOption,
    SystemOption,
    VerboseOption,
    YesOption,
    show_log,
    with_options,
)
from localllm.errors import LocalLLMError, UsageError
from localllm.types import EngineOptions, Limits, Reasoning, Sampling

if TYPE_CHECKING:
    from localllm.jobs.batch import Progress, Recipe, Vectors
    from localllm.jobs.rows import Format, Output, Row
    from localllm.protocols import Answers, Embedder, Engine


@with_options(Form, Reasoning, Limits, Sampling, EngineOptions)
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="JSONL, CSV or lines; - is standard input.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to append the answers; else, or with -, stdout."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="The prompt, with {field} for a row's field."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="The same from a file.")
    ] = None,
    system: SystemOption = None,
    format: Annotated[str, typer.Option("--format", help="jsonl, csv or lines; else by the file's name.")] = "",
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", min=1, max=200, help="Answers at once; as memory allows without it, at most 64."),
    ] = None,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="FILE", help="Where to write the failed rows.")
    ] = None,
    retries: Annotated[int, typer.Option("--retries", min=0, max=100, help="Times a failed row is tried again.")] = 1,
    embed: Annotated[bool, typer.Option("--embed", help="Make a vector of each row's prompt, not an answer.")] = False,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    yes: YesOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    *,
    given: dict[str, Any],
) -> None:
    """Answer a prompt for every row of a file. The same command again goes on where it was stopped."""
    from localllm.commands._encoder import find_encoder
    from localllm.commands._model import resolve
    from localllm.hub.digest import fingerprint
    from localllm.jobs.batch import Batch, Recipe
    from localllm.jobs.rows import Errors, Output, format_of, open_input
    from localllm.settings import build, load_settings
    from localllm.ui.progress import be_quiet, rows_progress, say

    if quiet:
        be_quiet()
    show_log(verbose)
    kind = format_of(source, format)
    output = None if str(output) == "-" else output
    piped = str(source) == "-" or not (source.is_file() or source.is_dir() or not source.exists())
    if not piped:
        open_input(source).close()  # before a model is opened for nothing
    _require_three_files(source, output, errors)
    settings = load_settings()
    found = find_encoder(model, yes=yes) if embed else resolve(model or settings.model, yes=yes)
    own = settings.of(found.name, model or settings.model)
    # What has no answer depends on nothing that shapes answers.
    sampling = Sampling() if embed else build(Sampling, found.sampling, own, given)
    limits = Limits() if embed else build(Limits, own, given)
    options = build(EngineOptions, found.options, own, given)
    made_with = f"{fingerprint(found.path)} {'embed' if embed else engine} {_changes(options)}"
    recipe = Recipe(
        made_with,
        _prompt(prompt, prompt_file),
        system,
        sampling,
        limits,
        build(Form, given).checked(),
        build(Reasoning, own, given),
    )
    if embed and recipe.constraint:
        raise UsageError(f"--{recipe.constraint.kind} is for answers, and --embed makes vectors")
    with ExitStack() as stack:
        failed = Errors(errors)
        results = stack.enter_context(Output(output, None if output else sys.stdout.buffer))
        total = None if piped else _count_pending(source, kind, recipe, results)  # a pipe is read once
        stack.enter_context(failed)  # emptied by the one process that writes the output, once all is known to fit
        report = stack.enter_context(rows_progress(total))
        job = Batch(recipe, results, failed, lambda now: report(now.rows, now.tokens), retries + 1)
        started = time.perf_counter()
        try:
            if total != 0:
                opened, answers = _open(engine, found.path, options, parallel, embed=embed)
                stack.enter_context(closing(opened))
                for notice in opened.notices:
                    say(f"localllm: {notice}")
                job.run(_rows(source, kind), answers)
        except BaseException:
            if output:
                say(f"{len(results.done) + results.written} rows are done; the same command goes on from there")
            raise
    say(_summary(job.progress, len(results.done), time.perf_counter() - started))
    if failed.count:
        hint = "the same command tries them again" if output else "--errors FILE lists them all"
        raise LocalLLMError(f"{failed.count} of {job.progress.rows} rows failed, the first: {job.first_error}", hint)


def _open(
    engine: str, path: Path, options: EngineOptions, parallel: int | None, *, embed: bool
) -> tuple[Engine | Embedder, Answers | Vectors]:
    """The model, and what answers or embeds many rows with it."""
    from localllm.engines import open_embedder, open_together

    if not embed:
        return open_together(engine, path, options, parallel)
    from localllm.jobs.embed_rows import vectors

    embedder = open_embedder(path, options, "")
    return embedder, partial(vectors, embedder)


def _rows(source: Path, kind: Format) -> Iterator[Row]:
    from localllm.engines.interrupt import waiting
    from localllm.jobs.rows import open_input, read_rows

    if str(source) == "-":
        yield from waiting(read_rows(TextIOWrapper(sys.stdin.buffer, "utf-8-sig", "surrogateescape", ""), kind))
        return
    with open_input(source) as file:
        yield from waiting(read_rows(file, kind))


def _count_pending(source: Path, kind: Format, recipe: Recipe, results: Output) -> int:
    keyed = ((row, "" if row.fault else recipe.key(row)) for row in _rows(source, kind))
    return sum(not results.is_done(*pair) for pair in keyed)


def _require_three_files(source: Path, output: Path | None, errors: Path | None) -> None:
    """Raise UsageError where one would be emptied or written to as another; devices and pipes may be the same."""
    if str(errors) == "-":
        raise UsageError("--errors: failed rows go to a file of their own", "--errors /dev/stderr shows them")
    named = [("IN", source), ("-o", output), ("--errors", errors)]
    files = [(name, path.resolve()) for name, path in named if path and (path.is_file() or not path.exists())]
    for (name, path), (other, same) in combinations(files, 2):
        if path == same:
            raise UsageError(f"{name} and {other} are the same file, {path}", "name another file")


def _changes(options: EngineOptions) -> list[str]:
    """What a chat template and adapters make of a model, by what is in their files. Raises UsageError, BadModelFile."""
    from localllm.engines.llama_adapters import parse
    from localllm.formats.gguf import read_header
    from localllm.hub.digest import fingerprint
    from localllm.text.template import template_source

    source, _ = template_source(options.template, None, False, ())
    adapters = [(fingerprint(read_header(path).path), scale) for path, scale in map(parse, options.lora)]
    return [options.template if source is None else source, *(f"{digest}:{scale}" for digest, scale in adapters)]


def _prompt(text: str | None, file: Path | None) -> str | None:
    if file is None:
        return text
    if text is not None:
        raise UsageError("--prompt and --prompt-file are given both", "keep one of them")
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None


def _summary(progress: Progress, before: int, seconds: float) -> str:
    known = f"; {before} were done before" if before else ""
    speed = f", {progress.tokens / seconds:.0f} tokens/s" if progress.tokens else ""
    return f"{progress.rows} rows, {progress.tokens} tokens in {seconds:.1f} s{speed}{known}"
