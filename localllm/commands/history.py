"""`localllm history`: the conversations that were kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption
from localllm.errors import HistoryError, LocalLLMError, UsageError

if TYPE_CHECKING:
    from localllm.history import History, Record
    from localllm.tree import Tree

history = typer.Typer(help="List, search, show, export and remove conversations.", invoke_without_command=True)
_IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As much of its id as is needed.")]
_IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As much of each id as is needed.")]
_LIMIT = 20


@history.callback()
def root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


@history.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = _LIMIT,
    as_json: JsonOption = False,
) -> None:
    """List conversations, the one spoken in last first; --json has them all."""
    import json

    records = _open().records()
    if as_json:
        print(json.dumps([_object(record) for record in records], ensure_ascii=sys.stdout.isatty(), indent=1))
        return
    from localllm.ui.progress import say
    from localllm.ui.table import print_table
    from localllm.ui.units import date

    if not records:
        say("no conversation is kept yet; localllm chat begins one")
        return
    rows = [(r.id[:6], date(r.updated), str(r.messages), r.model_name, r.title) for r in records[:limit]]
    print_table(("id", "last", "messages", "model", "title"), rows, right=(2,), expendable=(2, 3))
    if len(records) > limit:
        say(f"{len(records) - limit} older ones: localllm history list -n {len(records)}")


@history.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="What was said; every word is looked for.")],
    as_json: JsonOption = False,
) -> None:
    """Find what was said, the best match first."""
    import json

    hits = _open().search(" ".join(words))
    if as_json:
        found = [_object(hit.record) | {"kind": hit.kind, "excerpt": hit.excerpt} for hit in hits]
        print(json.dumps(found, ensure_ascii=sys.stdout.isatty(), indent=1))
        return
    from localllm.ui.progress import say
    from localllm.ui.table import print_table
    from localllm.ui.units import date

    if not hits:
        say("nothing was found")
        return
    rows = [(h.record.id[:6], date(h.record.updated), h.kind, " ".join(h.excerpt.split())) for h in hits]
    print_table(("id", "last", "by", "what"), rows, expendable=(2, 1))


@history.command()
def show(id: _IdArgument) -> None:
    """Show a conversation as Markdown."""
    from localllm.transcript import markdown
    from localllm.ui.render import visible

    kept = _open()
    record = kept.find(id)
    text = markdown(record, kept.tree(record))
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


@history.command()
def export(
    ids: _IdsArgument = None,
    form: Annotated[
        str,
        typer.Option("--format", "-f", help="markdown, json (every branch) or jsonl; as the file is named without it."),
    ] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write conversations, all of them without an ID, to stdout or into a file."""
    from localllm.transcript import FORMATS, written
    from localllm.ui.render import visible
    from localllm.whole import replacing, require_target

    form = form or (output.suffix.lower().removeprefix(".") if output else "")
    form = {"md": "markdown", "": "markdown", "txt": "markdown"}.get(form, form)
    if form not in FORMATS:
        raise UsageError(f"{form}: the formats are {', '.join(FORMATS)}", "--format names one")
    if output is not None:
        require_target(output, force=force)
    kept = _open()
    records = [kept.find(id) for id in ids] if ids else kept.records()
    found = _readable(kept, records)
    text = written(found, form)
    if output is None:
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    else:
        with replacing(output) as beside:
            beside.touch(0o600)
            beside.write_text(text, encoding="utf-8")
    if len(found) < len(records):
        raise typer.Exit(1)


@history.command()
def rm(
    ids: _IdsArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every conversation.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Erase conversations; asks first."""
    from localllm.commands._model import ask
    from localllm.commands._session import prefix_folder
    from localllm.engines.prefix_cache import forget
    from localllm.ui.progress import say

    if bool(ids) == everything:
        raise UsageError("which conversations?", "localllm history rm ID..., or --all")
    kept = _open()
    records = kept.records() if everything else [kept.find(id) for id in ids or ()]
    for record in records:
        say(f"{record.id[:6]}  {record.title}")
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise LocalLLMError("nobody is here to ask, so nothing was removed", "--yes removes without asking")
        if not ask(f"Erase {len(records)}? [y/N] ", default=False):
            raise LocalLLMError("nothing was removed", "--yes removes without asking")
    kept.remove([record.id for record in records])
    forget(prefix_folder(), [record.id for record in records])
    say(f"{len(records)} erased")


def _readable(kept: History, records: list[Record]) -> list[tuple[Record, Tree]]:
    """The conversations that can be read; the others are named. Raises HistoryError where none can."""
    from localllm.ui.progress import say

    found: list[tuple[Record, Tree]] = []
    for record in records:
        try:
            found.append((record, kept.tree(record)))
        except HistoryError as error:
            if len(records) == 1:
                raise
            say(f"localllm: {error}", error=True)
    return found


def _open() -> History:
    from localllm.commands._history import history_path
    from localllm.history import open_history

    return open_history(history_path())


def _object(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "title": record.title,
        "model": record.model,
        "messages": record.messages,
        "created": record.created,
        "updated": record.updated,
    }
