"""`localllm rm`: remove models from this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from localllm.commands._options import ReferencesArgument
from localllm.errors import LocalLLMError, ModelNotFound


def rm(
    references: ReferencesArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Remove models. Shows what becomes free and asks; what another model still needs is kept.

    A model used in place is only forgotten: its file is not ours.
    """
    from localllm.hub import store, upkeep
    from localllm.hub.reference import parse
    from localllm.ui.progress import say
    from localllm.ui.units import size

    models = []
    for text in references:
        model = store.find(parse(text), whole=False)
        if model is None:
            raise ModelNotFound(f"{text} is not on this machine", "localllm list shows what is")
        models.append(model)
    planned = upkeep.removals(models)
    for each in planned:
        verb = "is only forgotten, its file stays" if each.model.place == "in place" else f"frees {size(each.freed)}"
        say(f"{each.model.name} ({each.model.path}): {verb}")
    if not yes:
        agree(sum(each.freed for each in planned))
    for each in planned:
        upkeep.remove(each)
    say(f"{size(sum(each.freed for each in planned))} freed")


def agree(freed: int) -> None:
    """Ask before anything is removed; raises LocalLLMError where the answer is no, or nobody is there."""
    from localllm.commands._model import ask
    from localllm.ui.units import size

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise LocalLLMError("nobody is here to ask, so nothing was removed", "--yes removes without asking")
    if not ask(f"Remove, and free {size(freed)}? [y/N] ", default=False):
        raise LocalLLMError("nothing was removed", "--yes removes without asking")
