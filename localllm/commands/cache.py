"""`localllm cache`: the evaluated prompts that are kept on disk."""

from __future__ import annotations

import typer

from localllm.commands._options import JsonOption

cache = typer.Typer(help="Show or remove the evaluated prompts that are kept on disk.", no_args_is_help=True)


@cache.command()
def show(as_json: JsonOption = False) -> None:
    """List what is kept, the one used last first."""
    import json
    from dataclasses import asdict

    from localllm.commands._session import prefix_folder
    from localllm.engines.prefix_cache import entries
    from localllm.settings import build, load_settings
    from localllm.types import CacheOptions
    from localllm.ui.progress import say
    from localllm.ui.table import print_table
    from localllm.ui.units import date, size

    found = sorted(entries(prefix_folder()), key=lambda entry: -entry.used)
    if as_json:
        objects = [asdict(entry) | {"path": str(entry.path)} for entry in found]
        print(json.dumps(objects, indent=1, ensure_ascii=False))
        return
    limit = build(CacheOptions, load_settings().given).cache_size
    total = sum(entry.size for entry in found)
    if found:
        rows = [(date(e.used), str(e.tokens), size(e.size), e.model) for e in found]
        print_table(("used", "tokens", "size", "model"), rows, right=(1, 2))
    say(f"{len(found)} prompts, {size(total)} of at most {size(limit * 1e9)}, in {prefix_folder()}")


@cache.command()
def clear() -> None:
    """Remove all of it. It comes again with the next long prompts, unless --no-cache is set."""
    from localllm.commands._session import prefix_folder
    from localllm.engines.prefix_cache import clear
    from localllm.ui.progress import say
    from localllm.ui.units import size

    say(f"{size(clear(prefix_folder()))} are free again")
