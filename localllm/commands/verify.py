"""`localllm verify`: are the bytes on this disk the ones that were fetched?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import JsonOption, QuietOption
from localllm.errors import ChecksumMismatch, LocalLLMError, ModelNotFound

if TYPE_CHECKING:
    from localllm.hub.reference import Reference
    from localllm.hub.store import Installed
    from localllm.hub.upkeep import Corrupt
    from localllm.ui.progress import Style


def verify(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="What to verify; everything that is here without it."),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Fetch corrupt files again.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hash models again, compare with the recorded checksums, and name every corrupt file; fails where there is one."""
    import json

    from localllm.hub import store
    from localllm.hub.reference import parse
    from localllm.ui.progress import say

    models = [_find(parse(text)) for text in references] if references else store.everything()
    rows = []
    corrupt = 0
    for model in models:
        found = _verify(model, "quiet" if quiet or as_json else "auto")
        checked = sum(1 for f in (*model.files, *model.companions) if f.checksum)
        names = [str(c.file.path) for c in found]
        fixed = bool(found) and fix and _fix(model, found)
        corrupt += 0 if fixed else len(found)
        rows.append({"name": model.name, "checked": checked, "corrupt": names, "fixed": fixed})
        if not as_json:
            _tell(model, found, checked, fixed=fixed, quiet=quiet)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    if corrupt:
        hint = "what cannot be fetched must be brought again" if fix else "localllm verify --fix fetches them again"
        raise ChecksumMismatch(f"{corrupt} file is corrupt" if corrupt == 1 else f"{corrupt} files are corrupt", hint)
    if not models:
        say("there is no model here to verify")


def _find(reference: Reference) -> Installed:
    from localllm.hub import store

    model = store.find(reference)
    if model is None:
        raise ModelNotFound(f"{reference} is not on this machine", "localllm list shows what is")
    return model


def _verify(model: Installed, style: Style) -> list[Corrupt]:
    from localllm.hub import upkeep
    from localllm.ui.progress import download_progress

    with download_progress(len(model.files), model.size, style, plain=False) as report:
        return list(upkeep.verify(model, report))


def _tell(model: Installed, found: list[Corrupt], checked: int, *, fixed: bool, quiet: bool) -> None:
    for bad in found:
        state = "fetched again" if fixed else f"has the checksum {bad.found or '(cannot be read)'}"
        print(f"CORRUPT {bad.file.path} {state}, not {bad.file.checksum}" if not fixed else f"FIXED {bad.file.path}")
    if not found and not quiet:
        count = f"{checked} file{'s' * (checked != 1)}"
        print(f"ok {model.name}: {count}" if checked else f"unknown {model.name}: no checksum is recorded")


def _fix(model: Installed, found: list[Corrupt]) -> bool:
    from localllm.commands._model import fetch_entry, fetch_plan
    from localllm.hub import catalogue, files, pull, remote, upkeep
    from localllm.hub.reference import ModelName, parse_name
    from localllm.ui.progress import say

    try:
        if model.place == "hub":
            listing = remote.listing(model.repository, model.revision, say)
            path = model.path.relative_to(model.folder).as_posix()
            (variant,) = files.require(files.variants(listing.files), model.repository, "", path, listing.paths)[:1]
            upkeep.discard(model, found)
            fetch_plan(pull.Plan(listing, variant))
            return True
        name = parse_name(model.name) if model.place == "data" else ModelName("")
        if (entry := catalogue.find(name)) is not None:
            remote.require_network()
            upkeep.discard(model, found)
            fetch_entry(entry)
            return True
        say(f"localllm: {model.name} cannot be fetched again: {model.how or 'it is a file of your own'}", error=True)
    except LocalLLMError as error:
        say(f"localllm: {model.name} was not fetched again: {error} ({error.hint})", error=True)
    return False
