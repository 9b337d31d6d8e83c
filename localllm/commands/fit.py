"""`localllm fit`: will a model run here, before anything of it is downloaded?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption, ReferenceArgument

if TYPE_CHECKING:
    from localllm.hardware import Memory
    from localllm.hub.preview import Candidate

CONTEXTS = (4096, 8192, 32768, 131072)


def fit(
    reference: ReferenceArgument,
    context: Annotated[
        list[int] | None,
        typer.Option("--context", "-c", min=1, max=1 << 24, help="Tokens of context; may be repeated."),
    ] = None,
    type_k: Annotated[str, typer.Option("--cache-type-k", help="Type of the K cache.")] = "f16",
    type_v: Annotated[str, typer.Option("--cache-type-v", help="Type of the V cache.")] = "f16",
    as_json: JsonOption = False,
) -> None:
    """Show what a model needs on this machine, by quantization and context, without downloading it.

    Of a GGUF on the Hub only the header is read, of a checkpoint its configuration.
    """
    import json

    from localllm import hardware
    from localllm.commands._model import gpu_free
    from localllm.formats.gguf import TYPE_IDS

    for flag, name in (("--cache-type-k", type_k), ("--cache-type-v", type_v)):
        if name.upper() not in TYPE_IDS:
            from localllm.errors import UsageError

            raise UsageError(f"{flag} {name} is no type", "f16, q8_0, q5_1, q5_0, q4_1 or q4_0")
    title, candidates = _candidates(reference)
    memory, bandwidth = hardware.memory(), hardware.memory_bandwidth()
    gpu = gpu_free()
    rows = [
        _row(candidate, tokens, (type_k, type_v), memory, gpu, bandwidth)
        for candidate in candidates
        for tokens in (context or _contexts(candidate.trained))
    ]
    machine = {"total": memory.total, "available": memory.available, "gpu_free": gpu, "bandwidth": round(bandwidth)}
    if as_json:
        print(json.dumps({"model": title, "machine": machine, "rows": rows}, indent=1))
        return
    _print(title, candidates[0].trained, machine, rows)


def _contexts(trained: int) -> list[int]:
    return sorted({min(tokens, trained) for tokens in CONTEXTS})


def _candidates(text: str) -> tuple[str, list[Candidate]]:
    from localllm.commands._model import listing_of
    from localllm.hub import files, preview, store
    from localllm.hub.reference import HubReference, parse
    from localllm.ui.progress import say

    reference = store.dereference(parse(text))
    here = store.find(reference)
    # Of a repository all quantizations are wanted, though one may be here.
    if here is not None and not (isinstance(reference, HubReference) and not reference.quant and not reference.file):
        return here.name, preview.of_installed(here)
    listing, quant, file = listing_of(reference)
    found = files.variants(listing.files)
    chosen = files.require(found, listing.repository, quant, file, listing.paths)
    return f"{listing.repository} at {listing.commit[:7]}", preview.of_listing(listing, chosen, say)


def _row(
    candidate: Candidate, context: int, types: tuple[str, str], memory: Memory, gpu: int, bandwidth: float
) -> dict[str, Any]:
    from localllm import fit as fitting

    need = candidate.need(context, *types)
    return {
        "quant": candidate.quant,
        "context": context,
        "file": candidate.size,
        "weights": need.weights + need.repacked,
        "kv_cache": need.kv_cache,
        "compute": need.compute,
        "total": need.total,
        "verdict": fitting.verdict(need, memory, fitting.layers_on_gpu(need, gpu)).name.lower(),
        "layers": need.layers + 1,
        "gpu_layers": fitting.layers_on_gpu(need, gpu),
        "tokens_per_second": round(fitting.tokens_per_second(need, bandwidth), 1),
    }


def _print(title: str, trained: int, machine: dict[str, int], rows: list[dict[str, Any]]) -> None:
    from localllm.ui.table import print_table
    from localllm.ui.units import size

    gpu = f"{size(machine['gpu_free'])} free on the GPU" if machine["gpu_free"] else "no GPU"
    print(f"{title}, trained for {trained:,} tokens of context")
    print(
        f"this machine: {size(machine['available'])} of {size(machine['total'])} free, "
        f"read at {size(machine['bandwidth'])}/s; {gpu}\n"
    )
    sizes = ("file", "weights", "kv_cache", "compute", "total")
    print_table(
        ("quant", "context", "file", "weights", "KV cache", "compute", "total", "verdict", "on GPU", "tokens/s"),
        [
            (
                row["quant"] or "-",
                str(row["context"]),
                *(size(row[key]) for key in sizes),
                row["verdict"],
                f"{row['gpu_layers']}/{row['layers']}" if machine["gpu_free"] else "-",
                f"{row['tokens_per_second']:.0f}",
            )
            for row in rows
        ],
        right=(1, 2, 3, 4, 5, 6, 8, 9),
        expendable=() if machine["gpu_free"] else (8,),
    )
    print(
        "\nfits: into what is free now; tight: others must give way; no: run refuses it"
        "\nweights: with the copies of them that this processor reads faster"
        "\ntokens/s: estimated from the memory's speed, with half of the context filled"
    )
