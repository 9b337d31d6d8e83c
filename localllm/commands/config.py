"""`localllm config`: the settings file, read and written from the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from localllm.commands._options import JsonOption
from localllm.errors import LocalLLMError, UsageError
from localllm.fields import Option
from localllm.settings import absolute, all_options, load_settings, model_sections, settings_file

config = typer.Typer(help="Show and change the settings.", no_args_is_help=True)
_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="An option by its name, such as top_k, or model.")]
_ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", help="For this model only."),
]


@config.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Defaults too.")] = False,
    model: _ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what is set, and where."""
    from localllm.ui.table import print_table

    rows = _rows(model, everything)
    if as_json:
        import json

        print(json.dumps({name: value for name, value, _ in rows}, ensure_ascii=False, indent=1))
    elif rows:
        print_table(("setting", "value", "from"), [(name, _shown(value), place) for name, value, place in rows])
    else:
        from localllm.ui.progress import say

        say("nothing is set; localllm config list --all shows what can be")


@config.command()
def get(name: _NameArgument, model: _ModelOption = None) -> None:
    """Print a setting's value, or its default; exit with 1 where it has none."""
    name = name.replace("-", "_")
    if name == "model":
        value: Any = load_settings().model
    else:
        value = load_settings().of(*_names(model)).get(name, _option(name).default)
    if value in (None, ()):
        raise LocalLLMError(f"{name} is not set, and has no default")
    print("\n".join(map(str, value)) if isinstance(value, tuple) else _shown(value))


@config.command(context_settings={"ignore_unknown_options": True})
def set(
    name: _NameArgument,
    value: Annotated[list[str], typer.Argument(metavar="VALUE...", help="Several where the option is repeatable.")],
    model: _ModelOption = None,
) -> None:
    """Set an option in the settings file; its comments stay."""
    from localllm.toml_lines import set_value

    name = name.replace("-", "_")
    many = name != "model" and _option(name).many
    if len(value) > 1 and not many:
        raise UsageError(f"{name} has one value, and here are {len(value)}")
    text, path = _read()
    _write(path, set_value(text, _section(name, model, text), name, _parsed(name, value)))


@config.command()
def unset(name: _NameArgument, model: _ModelOption = None) -> None:
    """Remove an option from the settings file."""
    from localllm.toml_lines import unset_value

    name = name.replace("-", "_")
    if name != "model":
        _option(name)
    text, path = _read()
    try:
        changed = unset_value(text, _section(name, model, text), name)
    except KeyError:
        raise LocalLLMError(f"{name} is not set in {path}" + (f" for {model}" if model else "")) from None
    _write(path, changed)


@config.command()
def path() -> None:
    """Print where the settings file lies, whether or not it is there."""
    print(settings_file())


@config.command()
def edit() -> None:
    """Open the settings file in $VISUAL or $EDITOR, and check it afterwards."""
    from localllm.ui.chat.editor import edit_file

    file = settings_file()
    if not file.exists():
        _write(file, "# localllm's settings: localllm config list --all shows what can be set.\n# temperature = 0.7\n")
    edit_file(file)
    load_settings()


def _rows(model: str | None, everything: bool) -> list[tuple[str, Any, str]]:
    """Name, value and place of every setting that holds, for one model where one is named."""
    settings, file = load_settings(), settings_file()
    rows: list[tuple[str, Any, str]] = []
    if settings.model:
        rows.append(("model", settings.model, "LOCALLLM_MODEL" if os.environ.get("LOCALLLM_MODEL") else str(file)))
    names = [name.lower() for name in _names(model)]
    sections = {name: section for name, section in settings.models.items() if not model or name in names}
    for name, option in all_options().items():
        if name in settings.environment:
            rows.append((name, settings.environment[name], option.environment))
        elif model and any(name in section for section in sections.values()):
            rows.append((name, settings.of(*_names(model))[name], f'{file}, models."{model}"'))
        elif name in settings.file:
            rows.append((name, settings.file[name], str(file)))
        elif everything:
            rows.append((name, option.default, "default"))
    if not model:
        rows += [
            (f'models."{own}".{name}', value, str(file))
            for own, section in sections.items()
            for name, value in section.items()
        ]
    return rows


def _option(name: str) -> Option:
    known = all_options()
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, [*known, "model"], 2)
        hint = f"did you mean {' or '.join(near)}?" if near else "localllm config list --all lists them"
        raise UsageError(f"there is no setting {name!r}", hint)
    return known[name]


def _parsed(name: str, values: list[str]) -> Any:
    """The value that the words of a command line mean. Raises UsageError."""
    if name == "model":
        from localllm.hub.reference import parse

        return str(parse(values[0]))
    option = _option(name)
    value = tuple(item for text in values for item in option.parse(text)) if option.many else option.parse(values[0])
    option.check(value)
    return value


def _section(name: str, model: str | None, text: str) -> tuple[str, ...]:
    """The table that a setting stands in: a model has its own, under its full name, or as `text` writes that."""
    if model is None:
        return ()
    if name == "model":
        raise UsageError("the section of a model has no model of its own", "leave out --model")
    named = _names(model)[0]
    written = model_sections(text)
    return ("models", next((own for own in written if own.lower() == named.lower()), named))


def _names(model: str | None) -> tuple[str, ...]:
    """What a model's section can be called: its full name or whole path, and as it was written here."""
    if model is None:
        return ()
    from localllm.hub import catalogue
    from localllm.hub.reference import LocalPath, ModelName, parse

    reference = parse(model)
    if isinstance(reference, LocalPath):
        return (absolute(str(reference)), model)
    entry = catalogue.find(reference) if isinstance(reference, ModelName) else None
    return (entry.name if entry else str(reference), model)


def _read() -> tuple[str, Path]:
    """The settings file, which is as it should be, or an empty text; links are followed."""
    load_settings()
    file = settings_file()
    file = file.resolve() if file.is_symlink() else file
    if file.exists() and not file.is_file():
        raise UsageError(f"{file} is no regular file", "LOCALLLM_CONFIG names another")
    return file.read_text(encoding="utf-8") if file.exists() else "", file


def _write(file: Path, text: str) -> None:
    from localllm.whole import replacing

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as beside:
        beside.write_text(text, encoding="utf-8")
        if file.exists():
            beside.chmod(file.stat().st_mode)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(repr, value))
    return "" if value is None else ("true" if value else "false") if isinstance(value, bool) else str(value)
