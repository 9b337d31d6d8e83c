"""Prompts that are used again: small Markdown files, built in or the user's own.

A file begins with TOML between two lines of `+++` and goes on with the question that is put to the model. `{{input}}`
is where what the user wrote goes (at the end without it), `{{NAME}}` where a parameter goes:

    +++
    description = "Translate a text"
    system = "You are a translator."
    [parameters.to]
    help = "the language"
    default = "English"
    [options]
    temperature = 0.3
    +++
    Translate this into {{to}}: {{input}}

A parameter without a default has to be given. `options` are of sampling, length and thinking; they weigh a
little more than what a model's publisher recommends. Nothing in such a file is executed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localllm.errors import UsageError
from localllm.fields import options
from localllm.settings import build, settings_file
from localllm.types import Limits, Reasoning, Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 256 << 10
INPUT = "input"
_BUILT_IN = Path(__file__).parent
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_PLACE = re.compile(r"\{\{\s*([a-z0-9][a-z0-9_-]*)\s*\}\}")
_FENCE = "+++"
_OPTIONS = (Sampling, Limits, Reasoning)
_HEAD = re.compile(r"\A\+\+\+\n(.*?)^\+\+\+[ \t]*(?:\n|\Z)(.*)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parameter:
    """`default` is None where a value has to be given."""

    help: str = ""
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    name: str
    path: Path
    description: str = ""
    system: str = ""
    text: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether it is the user's."""
        return self.path.parent != _BUILT_IN

    def settle(self, given: Mapping[str, str]) -> dict[str, str]:
        """Every parameter's value. Raises UsageError for one that is not there, or has none."""
        for name in given:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise UsageError(f"the prompt {self.name} has no parameter {name!r}", f"its parameters: {known}")
        values = {name: given.get(name, parameter.default) for name, parameter in self.parameters.items()}
        for name, value in values.items():
            if value is None:
                flag = "--to" if name == "to" else f"--set {name}="
                what = self.parameters[name].help or name
                raise UsageError(f"the prompt {self.name} needs {what}", f"{flag}{' ' * (name == 'to')}...")
        return {name: value for name, value in values.items() if value is not None}

    def question(self, values: Mapping[str, str], text: str) -> str:
        """What the model is asked about `text`."""
        filled = _filled(self.text, {**values, INPUT: text})
        given_place = any(match[1] == INPUT for match in _PLACE.finditer(self.text))
        return filled if given_place or not text else f"{filled}\n\n{text}".strip()

    def instructions(self, values: Mapping[str, str]) -> str:
        """The system prompt, or ""."""
        return _filled(self.system, values)

    def for_chat(self, values: Mapping[str, str]) -> str:
        """The system prompt of a chat: what to do with a question belongs to it."""
        return "\n\n".join(part for part in (self.instructions(values), self.question(values, "").strip()) if part)


def _filled(text: str, values: Mapping[str, str]) -> str:
    """All places at once: a value that holds `{{...}}` itself stays as it is."""
    return _PLACE.sub(lambda match: values.get(match[1], match[0]), text)


def own_directory() -> Path:
    """`LOCALLLM_PROMPTS`, or `prompts` beside the settings file."""
    chosen = os.environ.get("LOCALLLM_PROMPTS")
    return Path(chosen).expanduser() if chosen else settings_file().parent / "prompts"


def own_path(name: str) -> Path:
    """Where the user's prompt of that name lies or would lie. Raises UsageError where that is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a prompt", "small letters, digits, - and _")
    return own_directory() / f"{name}.md"


def names() -> list[str]:
    """The user's own and the built-in ones; a file with an impossible name is none."""
    found = {path.stem for place in (_BUILT_IN, own_directory()) for path in place.glob("*.md")}
    return sorted(name for name in found if _NAME.fullmatch(name))


def find(name: str) -> Path:
    """The file of a prompt, the user's before the built-in one. Raises UsageError where there is none."""
    import difflib

    own = own_path(name)
    for path in (own, _BUILT_IN / own.name):
        if path.exists():
            return path
    near = difflib.get_close_matches(name, names(), 1)
    raise UsageError(
        f"there is no prompt {name!r}", f"did you mean {near[0]}?" if near else "localllm prompts lists them"
    )


def load(name: str) -> Prompt:
    """Raises UsageError, naming the file, where it cannot be understood."""
    path = find(name)
    return parse(name, path, read(path))


def read(path: Path) -> str:
    """The text of a prompt's file. Raises UsageError."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a regular file", "a prompt is a small text file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 10} kB", "attach long texts with --file")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "a prompt is a small text file") from None


def parse(name: str, path: Path, source: str) -> Prompt:
    """A prompt out of its file's text. Raises UsageError."""
    head, text = _parts(path, source)
    try:
        found = tomllib.loads(head)
        parameters = found.pop("parameters", {})
        advice = {k: tuple(v) if isinstance(v, list) else v for k, v in found.pop("options", {}).items()}
        prompt = Prompt(
            name,
            path,
            text=text,
            options=advice,
            parameters={k: Parameter(**v) for k, v in parameters.items()},
            **found,
        )
        _check(prompt)
    except (tomllib.TOMLDecodeError, TypeError, AttributeError, UsageError, RecursionError) as error:
        raise UsageError(f"{path}: {_reason(error)}", "localllm prompts edit " + name) from None
    return prompt


def _parts(path: Path, source: str) -> tuple[str, str]:
    """The TOML and the text; a file need not have TOML."""
    if not source.startswith(_FENCE + "\n"):
        return "", source.strip()
    found = _HEAD.match(source)
    if found is None:
        raise UsageError(f"{path}: the TOML that begins with {_FENCE} does not end with {_FENCE}")
    return found[1], found[2].strip()


def _check(prompt: Prompt) -> None:
    for value in (prompt.description, prompt.system):
        if not isinstance(value, str):
            raise UsageError(f"{value!r} is no text")
    for name, parameter in prompt.parameters.items():
        if name == INPUT or not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a parameter")
        if not isinstance(parameter.help, str) or not isinstance(parameter.default, str | None):
            raise UsageError(f"the parameter {name}: help and default are texts")
    for match in _PLACE.finditer(prompt.system + prompt.text):
        if match[1] != INPUT and match[1] not in prompt.parameters:
            raise UsageError(f"{match[0]} is no parameter", "declare it in [parameters]")
    if any(match[1] == INPUT for match in _PLACE.finditer(prompt.system)):
        raise UsageError(f"{{{{{INPUT}}}}} stands in system; it belongs below the second {_FENCE}")
    for cls in _OPTIONS:
        build(cls, prompt.options)
    known = {name for cls in _OPTIONS for name in options(cls)}
    if unknown := sorted(set(prompt.options) - known):
        raise UsageError(f"there is no option {unknown[0]!r}")


def _reason(error: Exception) -> str:
    """Python's words about a wrong keyword, as a user would say it."""
    text = str(error)
    if "unexpected keyword argument" in text:
        return f"there is no key {text.rpartition(' ')[2]}"
    return (
        text
        if not isinstance(error, (TypeError, AttributeError))
        else "a table is where a value should be, or the reverse"
    )
