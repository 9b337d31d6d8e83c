"""The options that hold an answer to a form, for every command that has answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import UsageError
from localllm.fields import check_all, option
from localllm.types import Constraint, ConstraintKind

MAX_FILE = 4 << 20  # bytes of a schema or a grammar


@dataclass(frozen=True, slots=True)
class Form:
    """At most one of the four."""

    schema: str | None = option(None, "Answer in JSON, valid under this JSON Schema: a FILE, or the JSON itself.")
    grammar: str | None = option(None, "Answer in the language of this grammar: a FILE in GBNF.")
    regex: str | None = option(None, "Answer with a text that this regular expression matches as a whole.")
    choice: tuple[str, ...] = option((), "Answer with one of these texts: a,b,c (repeatable, for texts with commas).")

    def __post_init__(self) -> None:
        check_all(self)

    def constraint(self) -> Constraint | None:
        """What an engine is given. Raises UsageError where a file cannot be read, or two forms are asked for."""
        found = [name for name in ("schema", "grammar", "regex", "choice") if getattr(self, name) not in (None, ())]
        if len(found) > 1:
            raise UsageError(f"--{found[0]} and --{found[1]} exclude each other", "an answer has one form")
        if self.schema is not None:
            return Constraint("schema", _schema(self.schema))
        if self.grammar is not None:
            return Constraint("grammar", _read("grammar", self.grammar))
        if self.regex is not None:
            return Constraint("regex", self.regex)
        return Constraint("choice", json.dumps(self._choices())) if self.choice else None

    def checked(self) -> Constraint | None:
        """The same, and what is wrong with it is said before a model is opened."""
        constraint = self.constraint()
        if constraint is not None:
            from localllm.text.constrain import compile_constraint

            compile_constraint(constraint)
        return constraint

    def _choices(self) -> list[str]:
        """One `--choice` is a list with commas between; of several, each is a text as it stands."""
        texts = self.choice[0].split(",") if len(self.choice) == 1 else list(self.choice)
        if not all(texts):
            raise UsageError("--choice: an empty text is no choice", "for example --choice yes,no")
        return texts


def _schema(text: str) -> str:
    return text if text.lstrip().startswith(("{", "[", "true", "false")) else _read("schema", text)


def _read(kind: ConstraintKind, name: str) -> str:
    if not name:
        raise UsageError(f"--{kind}: no file is named")
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > MAX_FILE:
            raise UsageError(f"--{kind}: {path} is larger than {MAX_FILE >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--{kind}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--{kind}: {path} is not UTF-8 text") from None
