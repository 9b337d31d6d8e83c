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

    A model used in place is only forgotten: its file is not ours. An alias is a name and no more: its model stays.
    """
    from localllm.hub import local, store, upkeep
    from localllm.hub.reference import parse
    from localllm.ui.progress import say
    from localllm.ui.units import size

    names = local.read_aliases(store.data_directory())
    aliases = [name for name in dict.fromkeys(str(parse(text)) for text in references) if name in names]
    models = []
    for text in references:
        if str(parse(text)) in aliases:
            continue
        model = store.find(parse(text), whole=False)
        if model is None:
            raise ModelNotFound(f"{text} is not on this machine", "localllm list shows what is")
        models.append(model)
    planned = upkeep.removals(models)
    for alias in aliases:
        say(f"{alias} is another name of {names[alias]}: only the name is removed")
    for each in planned:
        verb = "is only forgotten, its file stays" if each.model.place == "in place" else f"frees {size(each.freed)}"
        say(f"{each.model.name} ({each.model.path}): {verb}")
    if planned and not yes:
        agree(sum(each.freed for each in planned))
    if aliases:
        local.change_aliases(store.data_directory(), lambda now: {k: v for k, v in now.items() if k not in aliases})
    for each in planned:
        upkeep.remove(each)
    if planned:
        say(f"{size(sum(each.freed for each in planned))} freed")


def agree(freed: int) -> None:
    """Ask before anything is removed; raises LocalLLMError where the answer is no, or nobody is there."""
    from localllm.commands._model import ask
    from localllm.ui.units import size

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise LocalLLMError("nobody is here to ask, so nothing was removed", "--yes removes without asking")
    if not ask(f"Remove, and free {size(freed)}? [y/N] ", default=False):
        raise LocalLLMError("nothing was removed", "--yes removes without asking")
