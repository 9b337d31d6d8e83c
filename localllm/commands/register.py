"""`localllm register`: use models in place that other programs already hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import JsonOption
from localllm.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localllm.hub.foreign import Foreign, Skipped


def register(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH",
            help="A .gguf or .onnx file, or a folder with such anywhere below; FOLDER:QUANT takes one of several.",
        ),
    ] = None,
    ollama: Annotated[bool, typer.Option("--ollama", help="What Ollama has.")] = False,
    lmstudio: Annotated[bool, typer.Option("--lmstudio", help="What LM Studio has.")] = False,
    name: Annotated[str, typer.Option("--name", help="The name, where it is one model.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Use models in place, without a copy, that Ollama, LM Studio or a folder of yours already holds."""
    import json

    from localllm.errors import LocalLLMError
    from localllm.hub import foreign, keep
    from localllm.hub.reference import local_place
    from localllm.ui.progress import say

    if (path is not None) + ollama + lmstudio != 1:
        raise UsageError("register takes one of PATH, --ollama and --lmstudio")
    if ollama:
        found = _search(foreign.ollama_folders(), foreign.in_ollama)
    elif lmstudio:
        found = _search(foreign.lmstudio_folders(), foreign.in_lmstudio)
    else:
        assert path is not None
        place = local_place(path)
        found = _search([place.path], lambda folder: foreign.in_folder(folder, place.quant), place.quant)
    if name and len(found) != 1:
        raise UsageError(f"--name is for one model, and there are {len(found)}")
    rows = []
    for each in found:
        try:
            manifest, new = keep.register(each, name)
        except LocalLLMError as error:
            if len(found) == 1:
                raise
            say(f"{each.files[0].path} is passed over: {error}")
            continue
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
    if rows:
        say(f'localllm run {rows[0][0]} "..." runs {"it" if len(rows) == 1 else "the first"}')


def _search(
    folders: list[Path], search: Callable[[Path], Iterator[Foreign | Skipped]], quant: str = ""
) -> list[Foreign]:
    """What the first folder that holds anything holds; what cannot be used is told on stderr."""
    from localllm.hub.foreign import Foreign
    from localllm.ui.progress import say

    found = []
    for folder in (f for f in folders if _is_there(f)):
        for each in search(folder):
            if isinstance(each, Foreign):
                found.append(each)
            else:
                say(f"{each.path} is passed over: {each.reason}")
        if found:
            break
    if not found:
        what = f"no {quant or 'model'} was found in {', '.join(map(str, folders))}"
        raise ModelNotFound(what, "name the folder that holds them")
    return found


def _is_there(folder: Path) -> bool:
    """Whether a folder exists; raises ModelNotFound where one may not even ask, as with a service's."""
    try:
        folder.stat()
    except PermissionError:
        hint = "for Ollama's service: sudo usermod -aG ollama $USER, and log in again"
        raise ModelNotFound(f"{folder} is another user's and cannot be read", hint) from None
    except OSError:
        return False
    return True
