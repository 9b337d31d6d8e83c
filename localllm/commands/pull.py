"""`localllm pull`: fetch models before they are needed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import EventsOption, QuietOption, ReferencesArgument
from localllm.errors import DownloadError, LocalLLMError, Unreachable, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from localllm.hub.reference import HubReference, ModelName
    from localllm.ui.progress import Style


def pull(
    references: ReferencesArgument,
    quiet: QuietOption = False,
    as_json: EventsOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched, and fetch nothing.")] = False,
) -> None:
    """Fetch models: catalogue names, owner/repo[:QUANT], owner/repo/file.gguf, owner/repo@revision, Hub addresses.

    Without a quantization the best one is chosen that fits this machine's memory. What is here already is not fetched
    again, and what was interrupted goes on where it stopped. The model's path is printed.
    """
    from localllm.ui.progress import emit, say

    style: Style = "json" if as_json else "quiet" if quiet else "auto"
    failures = 0
    for text in references:
        try:
            _pull(text, style, dry_run=dry_run)
        except LocalLLMError as error:
            if as_json:
                emit("error", model=text, error=str(error), hint=error.hint)
            if len(references) == 1:
                raise
            failures += 1
            say(f"localllm: {text}: {error} ({error.hint})", error=True)
    if failures:
        raise DownloadError(f"{failures} of {len(references)} were not fetched", "the reasons stand above")


def _pull(text: str, style: Style, *, dry_run: bool) -> None:
    from localllm.hub import store
    from localllm.hub.reference import HubReference, LocalPath, parse
    from localllm.ui.progress import emit

    reference = store.dereference(parse(text))
    if isinstance(reference, LocalPath):
        raise UsageError(f"{text} is a file on this machine", "pull takes names; localllm import takes files")
    if isinstance(reference, HubReference):
        path = _from_hub(reference, style, dry_run=dry_run)
    else:
        path = _from_catalogue(reference, style, dry_run=dry_run)
    if path is None:
        return
    if style == "json":
        emit("pulled", model=str(reference), path=str(path))
    else:
        sys.stdout.write(f"{path}\n")


def _from_catalogue(name: ModelName, style: Style, *, dry_run: bool) -> Path | None:
    from localllm.commands._model import describe_entry, fetch_entry
    from localllm.hub import catalogue, store
    from localllm.hub.catalogue import HubSource
    from localllm.ui.progress import emit, say

    path = store.locate(name)
    if path is not None:
        return path
    entry = catalogue.get(name)
    names = [(s.file if isinstance(s, HubSource) else s.member, s) for s in entry.sources]
    sources = [f"{file} from {source}" for file, source in names]
    if style == "auto":
        say(f"{entry.title} ({entry.name}): {describe_entry(entry)}")
        if dry_run:
            say("\n".join(sources))
    elif dry_run and style == "json":
        emit("plan", model=entry.name, sources=sources)
    return None if dry_run else fetch_entry(entry, style)


def _from_hub(reference: HubReference, style: Style, *, dry_run: bool) -> Path | None:
    from localllm.commands._model import describe_plan, fetch_plan, gpu_free, make_plan
    from localllm.hub import preview, store
    from localllm.hub.remote import offline
    from localllm.ui.progress import emit, say
    from localllm.ui.units import size

    # Only the Hub knows what a branch means now; where it must not be asked, what is here is what there is.
    if offline() and (path := store.locate(reference)) is not None:
        return path
    try:
        plan = make_plan(reference, style)
    except Unreachable as error:
        if (path := store.locate(reference)) is None:
            raise
        say(f"localllm: {error}; what is here may not be the newest")
        return path
    missing = plan.missing()
    if style == "auto":
        say(f"{reference.repository} at {plan.listing.commit[:7]}: {describe_plan(plan)}")
        if missing < plan.size:
            say(f"{size(plan.size - missing)} of it are here already" if missing else "all of it is here already")
    if missing and style != "quiet" and (warning := preview.warning(plan.listing, plan.variant, gpu_free())):
        say(f"localllm: {warning}")
    if dry_run and style == "json":
        files = [{"file": file.path, "size": file.size} for file in plan.files]
        emit("plan", model=str(reference), revision=plan.listing.commit, missing=missing, files=files)
    if dry_run:
        return None
    try:
        return fetch_plan(plan, style if missing or style == "json" else "quiet")
    except KeyboardInterrupt:
        if style == "auto":
            say("interrupted; what is here of it stays, and the next pull goes on from there")
        raise
