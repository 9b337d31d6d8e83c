"""`localllm completion SHELL`: a script for the shell, which asks this command again what may come next.

The answer is read from the commands themselves (their subcommands, options and choices) and from the models that are
known by name; where there is none, the shell completes the names of files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from localllm.errors import UsageError
from localllm.fields import Option

BASH = r"""_localllm_complete() {
    COMPREPLY=()
    local word
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("$1" completion bash --line "${COMP_LINE:0:COMP_POINT}" --breaks "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -o default -F _localllm_complete localllm
"""
ZSH = r"""#compdef localllm
_localllm() {
    local -a found
    found=("${(@f)$(${words[1]} completion zsh --line "${(j. .)words[1,CURRENT]}" 2>/dev/null)}")
    if [[ -n ${found[1]} ]]; then
        _describe localllm found
    else
        _files
    fi
}
if [[ ${funcstack[1]} == _localllm ]]; then
    _localllm "$@"
else
    compdef _localllm localllm
fi
"""
FISH = r"""function __localllm_complete
    set -l found (localllm completion fish --line (commandline -cp | string collect) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c localllm -f -a '(__localllm_complete)'
"""
POWERSHELL = r"""Register-ArgumentCompleter -Native -CommandName localllm -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $line = $commandAst.ToString()
    if (-not $wordToComplete) { $line += ' ' }
    localllm completion powershell --line $line | ForEach-Object {
        $value, $help = $_ -split "`t", 2
        if (-not $help) { $help = $value }
        [System.Management.Automation.CompletionResult]::new($value, $value, 'ParameterValue', $help)
    }
}
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH, "powershell": POWERSHELL, "pwsh": POWERSHELL}

# Options that `Group.main` takes wherever they stand.
_EVERYWHERE = {
    "--debug": "Show the traceback of an error.",
    "--offline": "Open no connection.",
    "--quiet": "Nothing on stderr but errors.",
}

_OF_THOSE_HERE = {"rm", "verify", "export", "update"}
_OF_PROMPTS = {"show", "path", "edit"}


def completion(
    shell: Annotated[str | None, typer.Argument(metavar="SHELL", help=", ".join(SCRIPTS))] = None,
    line: Annotated[str | None, typer.Option("--line", hidden=True)] = None,
    breaks: Annotated[str, typer.Option("--breaks", hidden=True)] = "",
) -> None:
    """Print a script that completes commands, options and models: source <(localllm completion bash)."""
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SCRIPTS:
        raise UsageError(f"there is no completion for {shell or 'this shell'}", f"the shells are {', '.join(SCRIPTS)}")
    if line is None:
        print(SCRIPTS[shell], end="")
        return
    words = split(line)
    for value, help_ in candidates(words[1:]):
        if shell == "bash":
            print(value[_broken(words[-1], breaks) :])
        elif shell == "zsh":
            print(value.replace("\\", "\\\\").replace(":", "\\:") + (f":{help_}" if help_ else ""))
        else:
            print(value + (f"\t{help_}" if help_ else ""))


def split(line: str) -> list[str]:
    """The words of a command line as far as it is written; the last is the one to complete, and may be empty."""
    for closing in ("", '"', "'"):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        return words if words and (closing or not line[-1:].isspace()) else [*words, ""]
    return [*line.split(" ")]


def candidates(words: list[str]) -> Iterator[tuple[str, str]]:
    """What may stand in the place of the last of the words, with a line of help each."""
    command, waiting, operands = _walk(words[:-1])
    word = words[-1] if words else ""
    if waiting is not None:
        found = _values(waiting)
    elif word.startswith("-"):
        found = iter({**dict(_options(command)), **_EVERYWHERE, "--help": ""}.items())
    elif hasattr(command, "commands"):
        found = ((name, _brief(sub)) for name, sub in command.commands.items() if not sub.hidden)
    else:
        found = _arguments(command, operands)
    yield from ((value, help_) for value, help_ in found if value.startswith(word))


def _walk(words: list[str]) -> tuple[Any, Any, int]:
    """The command that the words name, the option that waits for its value, and how many operands there are."""
    from typer.main import get_command

    from localllm.cli import app

    command: Any = get_command(app)
    operands = 0
    waiting = None
    for word in words:
        if waiting is not None:
            waiting = None
        elif word.startswith("-") and len(word) > 1:
            named = [p for p in command.params if word in p.opts]
            waiting = named[0] if named and not getattr(named[0], "is_flag", False) else None
        elif word in getattr(command, "commands", {}):
            command = command.commands[word]
        else:
            operands += 1
    return command, waiting, operands


def _values(parameter: Any) -> Iterator[tuple[str, str]]:
    """The values of an option: its choices, or models where it names one."""
    from localllm.settings import all_options

    option: Option | None = all_options().get(parameter.name)
    if option is not None and option.choices:
        return ((choice, "") for choice in option.choices)
    if parameter.name == "engine":
        from localllm.engines import ENGINES

        return ((name, "") for name in ENGINES)
    if parameter.name == "prompt" and "-p" in parameter.opts:
        return _prompts()
    return _models() if "MODEL" in (parameter.metavar or "") else iter(())


def _arguments(command: Any, operands: int) -> Iterator[tuple[str, str]]:
    """Models where an argument names one: only the first word of `run` does, every word of `rm MODEL...`."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if command.name == "completion":
        return ((shell, "") for shell in SCRIPTS)
    if command.name in ("get", "set", "unset") and not operands:
        from localllm.settings import all_options

        return ((name, option.help) for name, option in all_options().items())
    if command.name in _OF_PROMPTS and [a.name for a in arguments] == ["name"] and not operands:
        return _prompts()
    place = arguments[min(operands, len(arguments) - 1)] if arguments else None
    metavar = (place.metavar or "") if place is not None else ""
    again = place is not None and (operands < len(arguments) or metavar.endswith("..."))
    if not (again and "MODEL" in metavar and (operands == 0 or "PROMPT" not in metavar)):
        return iter(())
    return _models(only_here=command.name in _OF_THOSE_HERE)


def _options(command: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            for name in (*parameter.opts, *parameter.secondary_opts):
                yield name, _line(parameter.help or "")


def _models(*, only_here: bool = False) -> Iterator[tuple[str, str]]:
    """Models that are here, then what the catalogue knows."""
    from localllm.hub import catalogue, local, store

    told = set()
    for model in store.everything():
        told.add(model.name)
        yield model.name, "is here"
    for alias, target in local.read_aliases(store.data_directory()).items():
        told.add(alias)
        yield alias, f"stands for {target}"
    for entry in () if only_here else catalogue.everything():
        if entry.name not in told:
            yield entry.name, _line(entry.title)


def _prompts() -> Iterator[tuple[str, str]]:
    from localllm import prompts

    return ((name, "a prompt") for name in prompts.names())


def _broken(word: str, breaks: str) -> int:
    """How much of a word stands before what readline takes for its last word: up to a colon, for one."""
    return max((word.rfind(character) + 1 for character in breaks if character in ":="), default=0)


def _brief(command: Any) -> str:
    return _line(command.short_help or command.help or "")


def _line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")
