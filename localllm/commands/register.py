"""`localllm register`: use models in place that other programs already hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from localllm.commands._options import JsonOption
from localllm.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localllm.hub.foreign import Foreign, Skipped


def register(
    path: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="PATH", help="A .gguf file, or a folder with such files anywhere below."),
    ] = None,
    ollama: Annotated[bool, typer.Option("--ollama", help="What Ollama has.")] = False,
    lmstudio: Annotated[bool, typer.Option("--lmstudio", help="What LM Studio has.")] = False,
    name: Annotated[str, typer.Option("--name", help="The name, where it is one model.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Use models in place, without a copy, that Ollama, LM Studio or a folder of yours already holds."""
    import json

    from localllm.hub import foreign, keep
    from localllm.ui.progress import say

    if (path is not None) + ollama + lmstudio != 1:
        raise UsageError("register takes one of PATH, --ollama and --lmstudio")
    if ollama:
        found = _search(foreign.ollama_folders(), foreign.in_ollama)
    elif lmstudio:
        found = _search(foreign.lmstudio_folders(), foreign.in_lmstudio)
    else:
        assert path is not None
        found = _search([path.expanduser()], foreign.in_folder)
    if name and len(found) != 1:
        raise UsageError(f"--name is for one model, and there are {len(found)}")
    rows = []
    for each in found:
        manifest, new = keep.register(each, name)
        if not new:
            say(f"{manifest.name} is registered already")
        rows.append((manifest.name, manifest.quant, sum(f.size for f in manifest.files), manifest.files[0].path))
    if as_json:
        keys = ("name", "quant", "size", "path")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=1, ensure_ascii=False))
        return
    from localllm.ui.table import print_table
    from localllm.ui.units import size

    print_table(("name", "quant", "size", "place"), [(n, q, size(s), p) for n, q, s, p in rows], right=(2,))


def _search(folders: list[Path], search: Callable[[Path], Iterator[Foreign | Skipped]]) -> list[Foreign]:
    """What the first folder that exists holds; what cannot be used is told on stderr."""
    from localllm.hub.foreign import Foreign
    from localllm.ui.progress import say

    found = []
    for folder in [f for f in folders if f.exists()][:1]:
        for each in search(folder):
            if isinstance(each, Foreign):
                found.append(each)
            else:
                say(f"{each.path} is passed over: {each.reason}")
    if not found:
        raise ModelNotFound(f"no model was found in {', '.join(map(str, folders))}", "name the folder that holds them")
    return found
