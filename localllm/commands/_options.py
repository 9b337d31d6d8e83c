"""Flags made from option classes, so that an option is declared once (`localllm.fields`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any

import typer

from localllm.errors import UsageError
from localllm.fields import Option, is_text, options


def _not_empty(value: str | None) -> str | None:
    """What `-m "$MODEL"` says in a script where MODEL is not set must not mean the default model."""
    if value == "":
        raise UsageError("--model: no model is named", "without --model it is the default model")
    return value


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="The model; with run, every word is then prompt.", callback=_not_empty
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Fetch a model that is not here without asking.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the engine's log, times and memory on stderr.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
EventsOption = Annotated[bool, typer.Option("--json", help="Print progress and results as JSON, an object a line.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
ReferencesArgument = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names, owner/repo[:QUANT], files.")]
ReferenceArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A name, owner/repo[:QUANT] or a file.")]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine", help="auto (by the model's format), llama.cpp, onnx, or fake (answers with the file it is given)."
    ),
]
LinesOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="A text a line; - is standard input, which is read without texts anyway."),
]
SystemOption = Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")]


def show_log(verbose: bool) -> None:
    """Have the engine's log on stderr, where --verbose asks for it."""
    if verbose:
        from localllm.engines.native import log

        log.verbose = True


def require_text(values: Iterable[Any]) -> None:
    """Raise UsageError where a word of the command line is not UTF-8, which standard input has to be as well."""
    for value in values:
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str) and not is_text(text):
                raise UsageError(f"the argument {text[:40]!r} is not UTF-8 text", "convert it, for example with iconv")


def with_options(*classes: type, without: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a flag for every option of `classes` but those named in `without`.

    The function gets those that were given as `given`, by name.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        known = [(cls.__name__, name, o) for cls in classes for name, o in options(cls).items()]
        flags = {name: (panel, option) for panel, name, option in known if name not in without}

        @functools.wraps(function)
        def wrapper(**arguments: Any) -> Any:
            require_text(value for name, value in arguments.items() if name not in _PLACES)
            given = {name: arguments.pop(name) for name in flags}
            given = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if v not in (None, [])}
            for name, value in given.items():
                flags[name][1].check(value)
            return function(**arguments, given=given)

        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "given"]
        added = [_parameter(panel, option) for panel, option in flags.values()]
        wrapper.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        del wrapper.__wrapped__  # typing would read the annotations of the function inside
        return wrapper

    return decorate


def _parameter(panel: str, option: Option) -> inspect.Parameter:
    kind: Any = GenericAlias(list, option.type) if option.many else option.type
    default = "" if option.default in (None, (), "") or option.switch else f" (default {_shown(option.default)})"
    both_ways = option.type is bool and not option.switch
    declarations = [f"{option.flag}/--no-{option.flag[2:]}" if both_ways else option.flag]
    information = typer.Option(
        *declarations,
        *([option.short] if option.short else []),
        help=option.help + default,
        rich_help_panel=_PANELS.get(panel, panel),
        show_default=False,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, information]
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(repr(v) for v in value)
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


# Files' names, which are bytes.
_PLACES = ("model", "name", "source", "file", "grammar", "template", "lora", "draft", "imatrix", "against")

_PANELS = {
    "Limits": "Length of the answer",
    "EngineOptions": "Engine",
    "Reasoning": "Thinking",
    "Asking": "Prompts and files",
    "Keeping": "History",
    "Guessing": "Speculation",
    "CacheOptions": "Cache on disk",
    "ChatOptions": "Chat",
    "Form": "Form of the answer",
    "Output": "For scripts",
}
