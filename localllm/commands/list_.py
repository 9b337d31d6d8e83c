"""`localllm list`: the models on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localllm.commands._options import JsonOption

if TYPE_CHECKING:
    from localllm.hub.facts import Facts
    from localllm.hub.store import Installed


def list_(as_json: JsonOption = False) -> None:
    """List the models on this machine, from the Hub's cache and your own; the name is what `run` takes.

    A narrow terminal goes without some columns; a pipe and --json have them all.
    """
    import json
    import math

    from localllm.hub import store
    from localllm.hub.facts import facts_of

    models = store.everything()
    # Scripts get what is true; a person should not wait for a cache that other tools have filled.
    rows = list(zip(models, facts_of(models, math.inf if as_json else 0.12), strict=True))
    if as_json:
        print(json.dumps([_object(m, f) for m, f in rows], indent=1, ensure_ascii=False))
        return
    if not rows:
        from localllm.ui.progress import say

        say("no model is here yet; localllm models names some, localllm pull fetches them")
        return
    from localllm.ui.table import print_table

    print_table(
        ("name", "engine", "format", "quant", "parameters", "size", "modified", "place"),
        [_row(model, known) for model, known in rows],
        right=(4, 5),
        expendable=(7, 1, 2, 6),
    )


def _row(model: Installed, facts: Facts) -> tuple[str, ...]:
    from localllm.ui.units import count, date, size

    parameters = "~" * facts.guessed + count(facts.parameters)
    kind = (model.engine, model.format, model.quant, parameters)
    place = str(model.path) if model.path.exists() else f"(gone) {model.path}"
    return (model.name, *kind, size(model.size), date(model.modified), place)


def _object(model: Installed, facts: Facts) -> dict[str, object]:
    return {
        "name": model.name,
        "engine": model.engine,
        "format": model.format,
        "quant": model.quant,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "context": facts.context,
        "size": model.size,
        "modified": model.modified,
        "place": model.place,
        "path": str(model.path),
        "files": [str(file.path) for file in (*model.files, *model.companions)],
        "repository": model.repository,
        "revision": model.revision,
        "source": model.source,
    }
