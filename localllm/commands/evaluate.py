"""`localllm evaluate`: how well a model predicts a text, and how far it is from the model it was made of."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption, QuietOption, YesOption, with_options
from localllm.commands.imatrix import TextOption, read_text
from localllm.settings import build, load_settings
from localllm.types import EngineOptions

if TYPE_CHECKING:
    from localllm.jobs.evaluate import Quality


@with_options(EngineOptions, without=("context", "template"))
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF, an ONNX model or a model's name.")],
    against: Annotated[str, typer.Option("--against", metavar="REFERENCE", help="The model it was made of.")] = "",
    text: TextOption = None,
    ctx: Annotated[int, typer.Option("--ctx", min=8, help="Tokens of a chunk; its second half is predicted.")] = 512,
    chunks: Annotated[int, typer.Option("--chunks", min=0, help="At most so many chunks; 0 takes all.")] = 16,
    as_json: JsonOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Measure perplexity, and KL divergence against a reference, as llama-perplexity does."""
    import json
    from dataclasses import asdict

    from localllm.commands._model import resolve
    from localllm.engines import open_scorer
    from localllm.jobs.evaluate import evaluate
    from localllm.ui.progress import work_progress

    options = build(EngineOptions, load_settings().given, given or {})
    content, _ = read_text(text, evaluation=True)
    paths = [resolve(name, yes=yes).path for name in (model, against) if name]
    with ExitStack() as stack:
        scorers = [stack.enter_context(closing(open_scorer(path, options))) for path in paths]
        stack.enter_context(scorers[0].interruptible())
        tokens = scorers[0].tokenize(content, begin=True, special=False)
        reference = scorers[1] if against else None
        with work_progress("evaluating", "quiet" if quiet else "auto", unit="chunks") as report:
            found = evaluate(scorers[0], reference, tokens, context=ctx, chunks=chunks, report=report)
    if as_json:
        print(json.dumps({key: value for key, value in asdict(found).items() if value is not None}, indent=1))
    else:
        _print(found)


def _print(found: Quality) -> None:
    from localllm.ui.table import print_table

    rows = [("perplexity", f"{found.perplexity:.4f}", f"{found.perplexity_stderr:.4f}")]
    if found.mean_kld is not None:
        rows += [
            ("perplexity of the reference", f"{found.reference_perplexity:.4f}", ""),
            ("ratio of the perplexities", f"{found.ppl_ratio:.4f}", f"{found.ppl_ratio_stderr:.4f}"),
            ("mean KL divergence", f"{found.mean_kld:.5f}", f"{found.mean_kld_stderr:.5f}"),
            ("KL divergence, 99th percentile", f"{found.kld_p99:.5f}", ""),
            ("same top token", f"{found.same_top:.2%}", f"{found.same_top_stderr:.2%}"),
        ]
    print_table(("", "", "±"), rows, right=(1, 2))
    print(f"{found.tokens} tokens in {found.chunks} chunks of {found.context}")
