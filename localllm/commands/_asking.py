"""What `run` and `chat` are asked with: a prompt by name, its parameters, and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localllm.errors import UsageError
from localllm.fields import option
from localllm.types import Message

if TYPE_CHECKING:
    from localllm.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Asking:
    prompt: str | None = option(None, "A prompt by its name; `localllm prompts` lists them.", short="-p")
    to: str | None = option(None, "The language that a prompt such as translate writes.")
    set: tuple[str, ...] = option((), "NAME=VALUE of a prompt's parameter (repeatable).")
    file: tuple[str, ...] = option((), "Attach a text or PDF file, or a glob of them (repeatable).", short="-f")

    def load(self) -> Prompt | None:
        """The prompt, if one is named. Raises UsageError."""
        if self.prompt is None:
            if self.set or self.to is not None:
                raise UsageError("--set and --to are for a prompt", "name it with -p")
            return None
        from localllm import prompts

        return prompts.load(self.prompt)

    def values(self) -> dict[str, str]:
        """What was given of the prompt's parameters. Raises UsageError."""
        found = {}
        for text in self.set:
            name, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"--set {text!r} is not NAME=VALUE", "for example --set length=short")
            found[name.strip()] = value
        return found if self.to is None else {**found, "to": self.to}

    def for_chat(self, prompt: Prompt | None) -> str | None:
        """The system prompt of a chat with that prompt. Raises UsageError."""
        return prompt.for_chat(prompt.settle(self.values())) if prompt else None

    def messages(self, prompt: Prompt | None, system: str | None, text: str) -> tuple[Message, ...]:
        """What the model is asked about `text`, with the files before it. Raises UsageError."""
        from localllm.text.attachments import attach, with_attachments

        attachments = attach(self.file) if self.file else ()
        values = prompt.settle(self.values()) if prompt else {}
        question = prompt.question(values, text) if prompt else text
        system = system or (prompt.instructions(values) if prompt else None)
        told = (Message("system", system),) if system else ()
        return (*told, Message("user", with_attachments(question, attachments)))


def advice(prompt: Prompt | None) -> Mapping[str, Any]:
    """The options that a prompt recommends."""
    return prompt.options if prompt else {}
