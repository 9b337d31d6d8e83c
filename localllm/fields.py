"""One declaration for an option, wherever it is set: flag, environment, settings file or `/set` in the chat.

A frozen dataclass declares its options with `option()`; `options(cls)` returns them with their types. This module
knows how to read a value from text and how to check its range, and leaves to others where the text came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from localllm.errors import UsageError

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `type` is int, float, bool or str; `many` marks a tuple of them, given by repeating the flag."""

    name: str
    type: type
    many: bool
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    short: str
    switch: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        return "LOCALLLM_" + self.name.upper()

    def parse(self, text: str) -> Any:
        """Read a value from text; raises UsageError. A `many` option's text holds one item a line."""
        if self.many:
            return tuple(self._parse_one(line) for line in text.splitlines() if line)
        return self._parse_one(text.strip() if self.type is not str else text)

    def check(self, value: Any) -> None:
        """Raise UsageError where the value has the wrong type or is outside its range."""
        if value is None and self.default is None:
            return
        for one in value if self.many else (value,):
            self._check_one(one)

    def _parse_one(self, text: str) -> Any:
        try:
            if self.type is bool:
                return _BOOLEANS[text.lower()]
            return self.type(text)
        except (ValueError, KeyError):
            wanted = {int: "a whole number", float: "a number", bool: "yes or no"}[self.type]
            raise UsageError(f"{self.flag}: {text!r} is not {wanted}") from None

    def _check_one(self, value: Any) -> None:
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.type) or (self.type is int and isinstance(value, bool)):
            raise UsageError(f"{self.flag}: {value!r} is not of type {self.type.__name__}")
        if self.choices and value not in self.choices:
            raise UsageError(f"{self.flag}: {value!r} is none of {', '.join(self.choices)}")
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{self.flag}: not a number")
        number: float = value if isinstance(value, (int, float)) else 0
        if self.minimum is not None and number < self.minimum:
            raise UsageError(f"{self.flag}: {number:.15g} is below {self.minimum:.15g}")
        if self.maximum is not None and number > self.maximum:
            raise UsageError(f"{self.flag}: {number:.15g} is above {self.maximum:.15g}")


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    short: str = "",
    switch: bool = False,
) -> Any:
    """Declare a dataclass field that a user can set; `short` is a one-dash flag such as `-n`.

    A `switch` is a yes-or-no that can only be switched on: it has no flag that begins with `--no-`.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "minimum": minimum,
            "maximum": maximum,
            "choices": choices,
            "short": short,
            "switch": switch,
        },
    )


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: bytes that are none reach Python as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_cache: dict[type, dict[str, Option]] = {}


def options(cls: type) -> dict[str, Option]:
    """The options that a dataclass declares, by name, in their order."""
    if cls not in _cache:
        hints = get_type_hints(cls)
        _cache[cls] = {
            f.name: Option(f.name, *_base_type(hints[f.name]), f.default, **f.metadata)
            for f in fields(cls)
            if "help" in f.metadata
        }
    return _cache[cls]


def check_all(instance: Any) -> None:
    """Check every option of a dataclass instance; call it from `__post_init__`."""
    for name, declared in options(type(instance)).items():
        declared.check(getattr(instance, name))


def _base_type(hint: Any) -> tuple[type, bool]:
    arguments = [a for a in getattr(hint, "__args__", ()) if a not in (type(None), Ellipsis)]
    many = getattr(hint, "__origin__", None) is tuple
    return (arguments[0] if arguments else hint), many
