"""`localllm embed`: texts -> vectors."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import (
    LinesOption,
    ModelOption,
    QuietOption,
    VerboseOption,
    YesOption,
    show_log,
    with_options,
)
from localllm.errors import UsageError
from localllm.types import EngineOptions

if TYPE_CHECKING:
    import numpy as np

    from localllm.jobs.prefixes import Purpose
    from localllm.protocols import Embedder
    from localllm.ui.vectors import Format

_MOST_COMPARED = 2000  # texts of one matrix of similarities


@with_options(EngineOptions, without=("template", "lora", "cache_type_k", "cache_type_v"))
def embed(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL TEXT...", help="The first word is the model if it is one; every other is a text."
        ),
    ] = None,
    model: ModelOption = None,
    file: LinesOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to FILE.npy, .json, .jsonl or .csv."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    as_jsonl: Annotated[bool, typer.Option("--jsonl", help="A JSON object a text, as they come.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values: the text, then its numbers.")] = False,
    similarity: Annotated[bool, typer.Option("--similarity", help="Print how alike the texts are: cosines.")] = False,
    query: Annotated[
        bool, typer.Option("--query", help="The texts are queries: the model's prefix goes first.")
    ] = False,
    passage: Annotated[bool, typer.Option("--passage", help="The texts are passages to be found by queries.")] = False,
    prefix: Annotated[str, typer.Option("--prefix", help="Put this before every text.")] = "",
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Vectors of length 1.", show_default=False)
    ] = True,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are longer than the model takes.")
    ] = False,
    pooling: Annotated[
        str, typer.Option("--pooling", help="mean, cls, last or max, instead of what the model notes.")
    ] = "",
    yes: YesOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    *,
    given: dict[str, Any],
) -> None:
    """Turn texts into vectors: a line of numbers each, or JSON, CSV or an .npy file.

    Files with more lines than fit into memory will do, with --jsonl and --csv.
    """
    from localllm.commands._encoder import find_encoder, texts_of
    from localllm.commands._model import split_model
    from localllm.engines import open_embedder
    from localllm.jobs.embed import stream
    from localllm.settings import build, load_settings
    from localllm.ui import vectors
    from localllm.ui.progress import say, work_progress
    from localllm.whole import require_target

    format = _format(output, as_json=as_json, as_jsonl=as_jsonl, as_csv=as_csv)
    if similarity and (output or as_jsonl or as_csv):
        raise UsageError("--similarity prints a table, or with --json one object", "leave the other format out")
    if query and passage:
        raise UsageError("--query and --passage: which of them?")
    if output is not None:
        require_target(output, force=True)
    name, rest = split_model(words or [], model)
    texts = texts_of(rest, file)
    found = find_encoder(name, yes=yes)
    show_log(verbose)
    started = time.perf_counter()
    options = build(EngineOptions, found.options, load_settings().given, given)
    with closing(open_embedder(found.path, options, pooling)) as embedder:
        notices = [*embedder.notices]
        if query or passage:
            known = _prefix(embedder, found.name, found.path, "query" if query else "passage", notices)
            prefix = known + prefix
        elif not prefix:
            prefix = embedder.prompts.get("", "")
        for notice in [] if quiet else notices:
            say(f"localllm: {notice}")
        loaded, total = time.perf_counter(), len(rest) or _lines_in(file)
        shown = total and not quiet and not sys.stdout.isatty()
        bar = work_progress(found.path.name, unit="texts") if shown else nullcontext(lambda _done, _total: None)
        with embedder.interruptible(), bar as report:
            parts = _Parts(texts)
            made = stream(
                embedder, (prefix + t for t in parts), normalize=normalize or similarity, truncate=truncate,
                report=lambda done: report(done, total),
            )  # fmt: skip
            if similarity:
                _compare(parts, made, found.name, as_json=as_json)
            elif output is not None:
                _save(output, parts.with_vectors(made), format, found.name, embedder.dimensions)
            else:
                vectors.write(sys.stdout, parts.with_vectors(made), format, found.name, embedder.dimensions)
        if verbose:
            seconds = time.perf_counter() - loaded
            say(f"load {loaded - started:.2f} s; {parts.count} texts in {seconds:.2f} s")


class _Parts:
    """Remembers texts on their way in until their vectors come out."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self._waiting, self.count = texts, list[str](), 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.count += 1
            self._waiting.append(text)
            yield text

    def with_vectors(self, made: Iterable[np.ndarray]) -> Iterator[tuple[list[str], np.ndarray]]:
        for vectors in made:
            texts, self._waiting[: len(vectors)] = self._waiting[: len(vectors)], []
            yield texts, vectors


def _format(output: Path | None, **chosen: bool) -> Format:
    """The format that is meant, by an option or by the ending of a file. Raises UsageError."""
    from localllm.ui.vectors import FORMATS

    named = [name.removeprefix("as_") for name, wanted in chosen.items() if wanted]
    if len(named) > 1:
        raise UsageError(f"--{named[0]} and --{named[1]}: which of them?")
    ending = output.suffix.lower().removeprefix(".") if output is not None else ""
    found = named[0] if named else ending or "lines"
    if found not in FORMATS or (found == "lines" and output is not None):
        raise UsageError(f"{output}: the ending tells no format", "write .npy, .json, .jsonl or .csv")
    return found


def _prefix(embedder: Embedder, name: str, path: Path, purpose: Purpose, notices: list[str]) -> str:
    from localllm.jobs.prefixes import prefix_for

    found = prefix_for(purpose, embedder.prompts, (*embedder.names, name, path.name))
    if found is None:
        notices.append(f"nothing is known of what {name} wants before a {purpose} (--prefix TEXT writes it)")
    return found or ""


def _lines_in(file: Path | None) -> int:
    """How many lines a file has; 0 for what cannot be read twice."""
    if file is None or not file.is_file():
        return 0
    with file.open("rb") as source:
        return sum(block.count(b"\n") for block in iter(lambda: source.read(1 << 20), b""))


def _compare(parts: _Parts, made: Iterable[np.ndarray], name: str, *, as_json: bool) -> None:
    import numpy as np

    from localllm.ui import vectors

    texts, rows = list[str](), []
    for some, found in parts.with_vectors(made):
        texts += some
        rows.append(found)
        if len(texts) > _MOST_COMPARED:
            raise UsageError(
                f"--similarity compares at most {_MOST_COMPARED} texts", "-o FILE.npy, and numpy does more"
            )
    whole = np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)
    matrix = (whole @ whole.T).clip(-1, 1)
    if as_json:
        vectors.similarity_json(texts, matrix, name)
    else:
        vectors.print_similarity(texts, matrix)


def _save(
    output: Path, parts: Iterator[tuple[list[str], np.ndarray]], format: Format, name: str, dimensions: int
) -> None:
    from localllm.ui import vectors
    from localllm.whole import replacing

    with replacing(output) as beside:
        if format == "npy":
            vectors.save_npy(beside, parts, dimensions)
        else:
            with beside.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
                vectors.write(file, parts, format, name, dimensions)
    print(output)
