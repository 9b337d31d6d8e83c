"""`localllm models`: the catalogue, and which of its models are here."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    as_json: Annotated[bool, typer.Option("--json", help="An array of objects instead of a table.")] = False,
) -> None:
    """List the models that are known by name; * marks the ones on this machine."""
    import json
    from dataclasses import asdict

    from localllm.hub import catalogue, store

    entries = [(entry, store.installed(entry)) for entry in catalogue.everything()]
    if as_json:
        rows = [
            asdict(e) | {"sources": [asdict(s) for s in e.sources], "path": str(p) if p else None} for e, p in entries
        ]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from localllm.ui.table import print_table
    from localllm.ui.units import count, size

    print_table(
        ("", "name", "parameters", "download", "memory", "licence", "title"),
        [
            (
                "*" if path else "",
                entry.name,
                count(entry.parameters),
                size(max(s.download_size for s in entry.sources)),
                size(entry.memory),
                entry.licence,
                entry.title,
            )
            for entry, path in entries
        ],
        right=(2, 3, 4),
        expendable=(5, 4),
    )
