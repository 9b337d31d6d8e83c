"""`localllm fill-mask`: what a masked language model would write in the place of [MASK]."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption, LinesOption, ModelOption, YesOption, with_options
from localllm.errors import ModelNotFound, UsageError
from localllm.types import EngineOptions

if TYPE_CHECKING:
    from localllm.jobs.fill_mask import Candidate


@with_options(EngineOptions, without=("template", "lora", "cache_type_k", "cache_type_v", "gpu_layers", "mmap",
                                      "flash_attention"))  # fmt: skip
def fill_mask(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL TEXT", help="A folder or file of an ONNX model, and a text with [MASK] in it."),
    ] = None,
    model: ModelOption = None,
    file: LinesOption = None,
    top: Annotated[int, typer.Option("--top", min=1, max=1000, help="How many candidates for each mask.")] = 5,
    as_json: JsonOption = False,
    yes: YesOption = False,
    *,
    given: dict[str, Any],
) -> None:
    """Show what may stand in the place of [MASK], and how likely it is: for masked language models such as BERT."""
    import json
    from dataclasses import asdict

    from localllm.commands._encoder import find_encoder, texts_of
    from localllm.commands._model import split_model
    from localllm.engines import open_masked
    from localllm.jobs.fill_mask import fill
    from localllm.settings import build, load_settings

    name, rest = split_model(words or [], model)
    if name is None and len(rest) > 1:
        raise ModelNotFound(f"no such model: {rest[0]}", "the first word names it, or -m")
    if name is None:
        raise UsageError(
            "fill-mask needs a masked language model",
            "localllm convert google-bert/bert-base-uncased --to onnx makes one",
        )
    found = find_encoder(name, yes=yes)
    options = build(EngineOptions, load_settings().given, given)
    texts = texts_of([" ".join(rest)] if rest else [], file)
    with closing(open_masked(found.path, options)) as opened, opened.interruptible():
        for text in texts:
            masks = fill(opened, text, top)
            if as_json:
                print(json.dumps({"text": text, "masks": [[asdict(c) for c in m] for m in masks]}, ensure_ascii=False))
            else:
                _show(masks)


def _show(masks: list[list[Candidate]]) -> None:
    from localllm.ui.table import print_table

    several = len(masks) > 1
    rows = [
        ([str(number + 1)] if several else []) + [c.piece, f"{c.probability:.2%}", c.text]
        for number, candidates in enumerate(masks)
        for c in candidates
    ]
    head = (["mask"] if several else []) + ["token", "likely", "text"]
    print_table(head, rows, right=[len(head) - 2])
