"""`localllm search`: which models does the Hub have?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption

if TYPE_CHECKING:
    from localllm.hub.remote import Found


def search(
    text: Annotated[list[str], typer.Argument(metavar="TEXT", help="What the repository's name holds.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="How many at most.")] = 10,
    sort: Annotated[str, typer.Option("--sort", help="downloads, likes or last_modified.")] = "downloads",
    as_json: JsonOption = False,
) -> None:
    """Search the Hub for GGUF and ONNX models that generate text: downloads, likes, sizes, and what fits here.

    Whether a quantization fits is told by its size alone; `localllm fit` tells exactly.
    """
    import json
    from concurrent.futures import ThreadPoolExecutor

    from localllm.errors import ModelNotFound, UsageError
    from localllm.hub import remote
    from localllm.ui.progress import say

    if sort not in ("downloads", "likes", "last_modified"):
        raise UsageError(f"--sort {sort} is not downloads, likes or last_modified")
    found = remote.search(" ".join(text), limit, sort, say)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(_row, found))
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        raise ModelNotFound(f"the Hub has no GGUF or ONNX model named like {' '.join(text)!r}", "try fewer letters")
    for row in rows:
        _show(row)


def _row(found: Found) -> dict[str, Any]:
    """A repository with its quantizations; one whose files cannot be listed is shown without."""
    from localllm import hardware
    from localllm.errors import LocalLLMError
    from localllm.hub import files, preview, remote

    row: dict[str, Any] = {
        "repository": found.repository,
        "downloads": found.downloads,
        "likes": found.likes,
        "modified": found.modified,
        "variants": [],
    }
    try:
        listing = remote.listing(found.repository)
    except LocalLLMError as error:
        return row | {"error": str(error)}
    memory = hardware.memory()
    variants = [v for v in files.variants(listing.files) if v.format in ("gguf", "onnx")]
    row["variants"] = [
        {"quant": v.quant or v.path, "format": v.format, "size": v.size, "fits": preview.fits_by_size(v.size, memory)}
        for v in sorted(variants, key=lambda v: v.size)
    ]
    return row


def _show(row: dict[str, Any]) -> None:
    import textwrap

    from localllm.ui.render import visible
    from localllm.ui.units import date, size

    head = f"{row['repository']}  {row['downloads']:,} downloads  {row['likes']:,} likes  {date(row['modified'])}"
    print(visible(head))
    if "error" in row:
        print(visible(f"    {row['error']}"))
    for label, fits in (("fits", True), ("too large", False)):
        names = [f"{v['quant']} {size(v['size'])}" for v in row["variants"] if v["fits"] is fits]
        if names:
            line = visible(f"{label}: {', '.join(names)}")
            print(textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="        "))
