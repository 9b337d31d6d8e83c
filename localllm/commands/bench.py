"""`localllm bench`: prompt and decode speed, as llama-bench prints them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from localllm.commands._options import ModelOption, YesOption, with_options
from localllm.errors import UsageError
from localllm.types import EngineOptions


@with_options(EngineOptions)
def bench(
    name: Annotated[str | None, typer.Argument(metavar="MODEL", help="The model; the default one without it.")] = None,
    model: ModelOption = None,
    prompts: Annotated[
        str, typer.Option("--n-prompt", "-p", metavar="N,...", help="Prompt lengths; 0 for none.")
    ] = "512",
    generations: Annotated[
        str, typer.Option("--n-gen", "-n", metavar="N,...", help="Tokens to decode; 0 for none.")
    ] = "128",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Counted runs of each test.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="An array of objects with llama-bench's field names.")
    ] = False,
    yes: YesOption = False,
    *,
    given: dict[str, Any],
) -> None:
    """Measure prompt and decode speed in tokens per second."""
    import json

    from localllm import hardware
    from localllm.commands._model import resolve
    from localllm.engines import open_bare
    from localllm.jobs.bench import BenchResult
    from localllm.jobs.bench import bench as run_bench
    from localllm.settings import build, load_settings

    sizes = {"prompts": _sizes(prompts), "generations": _sizes(generations)}
    settings = load_settings()
    found = resolve(model or name or settings.model, yes=yes)
    own = settings.of(found.name, model or name or settings.model)
    options = build(EngineOptions, found.options, own, given)
    opened, where = open_bare(found.path, options)
    try:
        description = opened.describe()
        common = {
            "cpu_info": hardware.processor(),
            "gpu_info": where.gpus,
            "backends": where.backends,
            "model_filename": str(found.path),
            "model_type": description.type,
            "model_size": description.size,
            "model_n_params": description.parameters,
            "n_threads": options.threads or hardware.physical_cores(),
            "type_k": options.cache_type_k,
            "type_v": options.cache_type_v,
            "n_gpu_layers": where.gpu_layers,
        }
        results: list[BenchResult] = []
        for result in run_bench(opened, opened.vocabulary_size, repetitions=repetitions, **sizes):
            if not as_json:
                _print_row(common, result, first=not results)
            results.append(result)
    finally:
        opened.close()
    if as_json:
        print(json.dumps([common | _fields(result) for result in results], indent=2))


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [-1]
    if min(sizes) < 0:
        raise UsageError(f"{text!r} is not a list of whole numbers", "for example -p 512,1024")
    return sizes


def _fields(result: Any) -> dict[str, Any]:
    import statistics
    from datetime import datetime, timezone

    samples = result.samples_ns
    return {
        "n_prompt": result.n_prompt,
        "n_gen": result.n_gen,
        "n_depth": 0,
        "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(statistics.fmean(samples)),
        "stddev_ns": round(statistics.stdev(samples)) if len(samples) > 1 else 0,
        "avg_ts": result.avg_ts,
        "stddev_ts": result.stddev_ts,
        "samples_ns": samples,
        "samples_ts": result.samples_ts,
    }


_COLUMNS = (("model", 30), ("size", 10), ("params", 10), ("backend", 10), ("threads", 7), ("test", 8), ("t/s", 16))


def _print_row(common: dict[str, Any], result: Any, *, first: bool) -> None:
    """A row of a Markdown table, printed as soon as it is measured."""
    if first:
        print("| " + " | ".join(n.ljust(w) if n == "model" else n.rjust(w) for n, w in _COLUMNS) + " |")
        print("|" + "|".join(("-" * (w + 2)) if n == "model" else "-" * (w + 1) + ":" for n, w in _COLUMNS) + "|")
    cells = (
        common["model_type"],
        f"{common['model_size'] / (1 << 20):.2f} MiB",
        f"{common['model_n_params'] / 1e6:.2f} M",
        common["backends"],
        str(common["n_threads"]),
        result.name,
        f"{result.avg_ts:.2f} ± {result.stddev_ts:.2f}",
    )
    print(
        "| "
        + " | ".join(c.ljust(w) if n == "model" else c.rjust(w) for c, (n, w) in zip(cells, _COLUMNS, strict=True))
        + " |",
        flush=True,
    )
