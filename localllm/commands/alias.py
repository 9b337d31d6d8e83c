"""`localllm alias`: names of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import JsonOption
from localllm.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from localllm.hub.reference import ModelName


def alias(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The new name.")] = None,
    reference: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="What it stands for: any name, file or owner/repo[:QUANT]."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Forget NAME.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Give a model a name of your own; without arguments, list the names given so far."""
    from localllm.hub import local, store

    data = store.data_directory()
    if name is None:
        _show(local.read_aliases(data), as_json=as_json)
        return
    key = str(_parse(name))
    if remove:
        if key not in local.read_aliases(data):
            raise ModelNotFound(f"{key} is no alias", "localllm alias lists them")
        local.change_aliases(data, lambda aliases: {k: v for k, v in aliases.items() if k != key})
        return
    if reference is None:
        raise UsageError(
            f"what should {key} stand for?", f"localllm alias {key} MODEL, or localllm alias --remove {key}"
        )
    target = _target(key, reference)
    local.change_aliases(data, lambda aliases: aliases | {key: target})


def _parse(name: str) -> ModelName:
    from localllm.hub.reference import parse_name

    return parse_name(name)


def _target(key: str, text: str) -> str:
    """The reference as it will mean the same from every folder; raises UsageError where the alias would mislead."""
    from localllm.hub import catalogue, local, store
    from localllm.hub.reference import LocalPath, ModelName, parse, parse_name

    name = parse_name(key)
    if catalogue.find(name) or local.folder_of(store.models_directory(), key).is_dir():
        raise UsageError(f"{key} is a model's name already", "choose another")
    reference = store.dereference(parse(text))
    if isinstance(reference, LocalPath):
        if not reference.path.exists():
            raise ModelNotFound(f"no such file: {reference.path}")
        return str(reference.path.absolute())
    if isinstance(reference, ModelName):
        store.locate(reference)  # raises where nobody knows the name
    return str(reference)


def _show(aliases: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(aliases, indent=1, ensure_ascii=False))
        return
    if not aliases:
        from localllm.ui.progress import say

        say("there is no alias yet; localllm alias NAME MODEL gives one")
        return
    from localllm.ui.table import print_table

    print_table(("name", "model"), sorted(aliases.items()))
