"""`localllm prompts`: the prompts that `-p` takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption
from localllm.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from localllm.prompts import Prompt

prompts = typer.Typer(help="List, show, make and edit the prompts that -p takes.", invoke_without_command=True)
_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of a prompt.")]
_NEW = """+++
description = ""
system = "You are ..."

[parameters.tone]
help = "the tone of the answer"
default = "friendly"

[options]
temperature = 0.7
+++
Answer in a {{tone}} tone: {{input}}
"""


@prompts.callback()
def root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


@prompts.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the prompts, built in and your own; * marks your own."""
    import json

    from localllm import prompts as house

    found: list[tuple[str, Prompt | None, str]] = []
    for name in house.names():
        try:
            prompt = house.load(name)
            found.append((name, prompt, prompt.description))
        except UsageError as error:
            found.append((name, None, f"(broken) {error}"))
    if as_json:
        print(json.dumps([_object(*each) for each in found], ensure_ascii=sys.stdout.isatty(), indent=1))
        return
    from localllm.ui.table import print_table

    rows = [(name, "*" if prompt is None or prompt.own else "", text) for name, prompt, text in found]
    print_table(("name", "", "what it does"), rows)


@prompts.command()
def show(name: _NameArgument) -> None:
    """Show the file of a prompt."""
    from localllm import prompts as house
    from localllm.ui.render import visible

    text = house.read(house.find(name))
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


@prompts.command()
def path(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The folder of your own without it.")] = None,
) -> None:
    """Print where a prompt lies, or where your own lie."""
    from localllm import prompts as house

    print(house.find(name) if name else house.own_directory())


@prompts.command()
def new(
    name: _NameArgument,
    source: Annotated[str | None, typer.Option("--from", metavar="NAME", help="Begin with a copy of another.")] = None,
) -> None:
    """Make a prompt of your own, and print its path; one with a built-in's name takes its place."""
    from localllm import prompts as house

    target = house.own_path(name)
    if target.exists():
        raise UsageError(f"{target} exists", f"localllm prompts edit {name}")
    print(_write(target, house.read(house.find(source)) if source else _NEW))


@prompts.command()
def edit(name: _NameArgument) -> None:
    """Open a prompt in $VISUAL or $EDITOR and check it afterwards; of a built-in one your own copy."""
    from localllm import prompts as house
    from localllm.ui.chat.editor import edit_file

    target = house.own_path(name)
    if not target.exists():
        _write(target, house.read(house.find(name)))
    edit_file(target)
    house.load(name)


def _write(target: Path, text: str) -> Path:
    from localllm.whole import replacing

    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as beside:
        beside.write_text(text, encoding="utf-8")
    return target


def _object(name: str, prompt: Prompt | None, text: str) -> dict[str, Any]:
    if prompt is None:
        return {"name": name, "error": text}
    needed = {key: {"help": p.help, "default": p.default} for key, p in prompt.parameters.items()}
    return {"name": name, "description": text, "own": prompt.own, "path": str(prompt.path), "parameters": needed}
