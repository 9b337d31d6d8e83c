"""`localllm update`: is there something newer on the Hub?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localllm.commands._options import JsonOption
from localllm.errors import LocalLLMError, ModelNotFound

if TYPE_CHECKING:
    from localllm.hub.files import RepoFile
    from localllm.hub.remote import Listing
    from localllm.hub.store import Installed, StoredFile


def update(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="What to ask about; everything from the Hub without it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the Hub whether the models that came from it have changed; `pull` fetches what has."""
    import json

    from localllm.hub import store
    from localllm.hub.reference import parse
    from localllm.ui.progress import say
    from localllm.ui.table import print_table

    models = [store.find(parse(text)) for text in references] if references else store.everything()
    for text, model in zip(references or (), models, strict=False):
        if model is None:
            raise ModelNotFound(f"{text} is not on this machine", "localllm list shows what is")
    asked: dict[tuple[str, str], Listing | LocalLLMError] = {}
    rows = [(m.name, *_state(m, asked)) for m in models if m is not None and m.place == "hub"]
    if as_json:
        print(json.dumps([{"name": n, "state": s, "detail": d} for n, s, d in rows], indent=1, ensure_ascii=False))
    elif rows:
        print_table(("name", "state", "detail"), rows)
    else:
        say("none of these models came from the Hub")
    if any(state == "unknown" for _, state, _ in rows):
        raise LocalLLMError("not every model could be asked about", "the last column says why")


def _state(model: Installed, asked: dict[tuple[str, str], Listing | LocalLLMError]) -> tuple[str, str]:
    """`current`, `newer`, `gone`, `pinned` or `unknown`, and what follows from it; each repository is asked once."""
    from localllm.hub.cache import CachedRepository
    from localllm.hub.reference import HubReference, parse
    from localllm.hub.store import hub_cache
    from localllm.ui.units import size

    home = CachedRepository(hub_cache(), model.repository)
    names = next((s.names for s in home.snapshots(model.revision)), ())
    reference = parse(model.name)
    # A plain name means main, though the snapshot that has the file may be an older one.
    plain = isinstance(reference, HubReference) and not reference.revision and bool(home.commit("main"))
    if not names and not plain:
        return "pinned", f"it is commit {model.revision[:7]}, which does not change"
    branch = "main" if plain or "main" in names else names[0]
    key = (model.repository, branch)
    if key not in asked:
        asked[key] = _ask(*key)
    listing = asked[key]
    if isinstance(listing, ModelNotFound):
        return "gone", f"{listing}; the files here stay"
    if isinstance(listing, LocalLLMError):
        return "unknown", str(listing)
    there = {file.path: file for file in listing.files}
    changed = 0
    for file in model.files:
        now = there.get(file.path.relative_to(model.folder).as_posix())
        if now is None:
            return "gone", f"{file.path.name} is not in {branch} any more; the files here stay"
        changed += now.size if _differs(file, now) else 0
    for file in model.companions:
        beside = there.get(file.path.relative_to(model.folder).as_posix())
        changed += beside.size if beside is not None and _differs(file, beside) else 0
    if changed:
        return "newer", f"{size(changed)} at {listing.commit[:7]}: localllm pull {model.name}"
    return "current", f"{branch} is {listing.commit[:7]}"


def _differs(file: StoredFile, now: RepoFile) -> bool:
    return now.etag != file.checksum if file.checksum else now.size != file.size


def _ask(repository: str, branch: str) -> Listing | LocalLLMError:
    from localllm.hub import remote

    try:
        return remote.listing(repository, branch)
    except LocalLLMError as error:
        return error
