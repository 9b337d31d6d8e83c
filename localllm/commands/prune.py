"""`localllm prune`: remove what nothing needs."""

from __future__ import annotations

from typing import Annotated

import typer


def prune(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove interrupted downloads, and files of the Hub's cache that no model needs."""
    from localllm.commands.rm import agree
    from localllm.hub import upkeep
    from localllm.ui.progress import say
    from localllm.ui.table import print_table
    from localllm.ui.units import size

    found = upkeep.waste()
    freed = sum(item.size for item in found)
    if not found:
        say("there is nothing to remove")
        return
    print_table(("what", "size", "place"), [(i.why, size(i.size), str(i.path)) for i in found], right=(1,))
    if dry_run:
        return
    if not yes:
        agree(freed)
    upkeep.remove_waste(found)
    say(f"{size(freed)} freed")
