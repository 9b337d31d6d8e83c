"""The Typer app, and the one place that turns an error into a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from localllm import __version__, errors
from localllm.signals import end_on_termination

# Every command is a function, or an app of subcommands, called as its module of `localllm.commands`.
PANELS = {
    "Use": ("run", "chat", "batch", "embed", "fill_mask", "history", "prompts"),
    "Look inside": ("tokenize", "explain"),
    "Models": ("models", "search", "fit", "pull", "list_", "show", "alias", "register", "import_", "export", "update",
               "verify", "rm", "prune"),
    "Make": ("convert", "quantize", "imatrix", "evaluate", "tune"),
    "Machine": ("bench", "doctor", "completion", "cache", "config"),
}  # fmt: skip
MAX_LINE = 2000  # of an error, in characters: what the user wrote may be a whole book


class Commands(Mapping[str, Any]):
    """The commands by their names, each imported when it is first asked for: a run needs no other."""

    def __init__(self) -> None:
        named = {m.rstrip("_").replace("_", "-"): (m, panel) for panel, ms in PANELS.items() for m in ms}
        self._places, self._made = named, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make(name, *self._places[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _make(self, name: str, module: str, panel: str) -> Any:
        found = getattr(import_module(f"localllm.commands.{module}"), module)
        around = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        if isinstance(found, typer.Typer):
            around.add_typer(found, name=name, rich_help_panel=panel)
        else:
            around.command(name, rich_help_panel=panel)(found)
        made: Any = get_command(around)
        return made.commands[name] if isinstance(found, typer.Typer) else made


class Group(TyperGroup):
    """Errors end here, whether the shell or a test runs the command."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.commands: Any = Commands()

    def main(self, args: Sequence[str] | None = None, *rest: Any, **keywords: Any) -> Any:
        words, debug = _take(list(sys.argv[1:] if args is None else args), "--debug")
        for flag in ("--offline", "--quiet"):
            words, found = _take(words, flag)
            if found:
                os.environ["LOCALLLM_" + flag[2:].upper()] = "1"
        try:
            words = _take_color(words)
            code = super().main(words, *rest, **{**keywords, "standalone_mode": False})
            sys.stdout.flush()
        except errors.LocalLLMError as error:
            code = _report(error, error.hint, error.exit_code, debug)
        except typer.TyperException as error:
            text = getattr(error, "format_message", error.__str__)() or "one of its commands has to follow"
            code = _report(
                error, f"{_command_path(error)} --help", getattr(error, "exit_code", errors.USAGE), debug, text
            )
        except (KeyboardInterrupt, typer.Abort):
            code = errors.INTERRUPTED
        except BrokenPipeError:
            code = _reader_has_gone()
        except SystemExit as error:
            if not isinstance(error.__context__, BrokenPipeError):
                _write_or_discard()
                raise
            code = _reader_has_gone()  # Typer and rich make it an exit code of 1
        except OSError as error:
            place = error.filename or ("" if _write_or_discard() else "standard output")
            text = f"{error.strerror or error}" + (f": {place}" if place else "")
            code = _report(error, "", errors.FAILURE, debug, text)
        except Exception as error:
            hint = "--debug shows where; please report it"
            code = _report(error, hint, errors.FAILURE, debug, f"{type(error).__name__}: {error}")
        _write_or_discard()
        sys.exit(code if isinstance(code, int) else errors.SUCCESS)


def _reader_has_gone() -> int:
    """As with `| head`: end as any Unix tool does, and let nothing more be flushed to it."""
    _discard()
    return errors.BROKEN_PIPE


def _write_or_discard() -> bool:
    """Whether stdout has all that was written; else the interpreter would try again at its end, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard()
        return False
    return True


def _discard() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _take(words: list[str], flag: str) -> tuple[list[str], bool]:
    """`--debug`, `--offline` and `--quiet` stand wherever the user puts them, up to a `--`."""
    end = _end(words)
    rest = [word for index, word in enumerate(words) if word != flag or index > end]
    return rest, len(rest) < len(words)


def _take_color(words: list[str]) -> list[str]:
    """`--color auto|always|never`, anywhere too: what it says is told to whoever colours by the usual variables."""
    rest, end, index = [], _end(words), 0
    while index < len(words):
        name, equals, value = words[index].partition("=")
        if index < end and name == "--color":
            value = value if equals else words[index + 1] if index + 1 < end else ""
            index += 1 if equals else 2
            _set_color(value)
        else:
            rest.append(words[index])
            index += 1
    return rest


def _set_color(value: str) -> None:
    if value not in ("auto", "always", "never"):
        raise errors.UsageError(f"--color: {value!r} is none of auto, always, never")
    if value != "auto":
        for name in ("NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.environ["FORCE_COLOR" if value == "always" else "NO_COLOR"] = "1"
    if value == "never":
        from typer import rich_utils

        rich_utils.COLOR_SYSTEM = None  # NO_COLOR would leave bold and dim in the help


def _end(words: list[str]) -> int:
    return words.index("--") if "--" in words else len(words)


def _report(error: BaseException, hint: str, code: int, debug: bool, text: str = "") -> int:
    from localllm.ui.render import visible

    line = " ".join(visible((text or str(error))[:MAX_LINE]).split())
    with suppress(OSError):  # the exit code is told even where the line cannot be
        if debug:
            import traceback

            traceback.print_exception(error)
        sys.stderr.write(f"localllm: {line}" + (f" ({hint})" if hint else "") + "\n")
    return code


def _command_path(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context else "localllm"


app = typer.Typer(
    cls=Group,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection, with any command.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors, with any command.")] = False,
    color: Annotated[str, typer.Option("--color", help="auto, always or never; NO_COLOR is honoured.")] = "auto",
) -> None:
    """Run quantized language models on your own machine.

    Exit codes: 0 success, 1 failure, 2 usage, 3 model not found, 4 the prompt is longer than the context, 5 the answer
    does not have the form that was asked for, 124 --timeout, 130 interrupted, 143 terminated.
    """
    if version:
        print(f"localllm {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _open_what_is_closed() -> None:
    """Fill the descriptors that a shell has closed, before a file that is opened later gets their numbers.

    Else the engine's log would be written into it. After `<&-` there is nothing to read, after `>&-` writing fails as
    it does in any Unix tool, and what goes to stderr after `2>&-` is nobody's.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", buffering=1, encoding="utf-8")


def main() -> None:
    """Run the app on the command line's words; text is UTF-8 whatever the locale says."""
    end_on_termination()
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")
    app()
