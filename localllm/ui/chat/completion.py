"""What Tab and the menu offer: commands with their help, their arguments, and files behind an @."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from localllm.ui.chat import table
from localllm.ui.chat.state import Chat
from localllm.ui.render import visible

_FILE = re.compile(r"(?:^|(?<=\s))@(\S*)$")


class ChatCompleter(Completer):
    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if text.startswith("/") and "\n" not in text:
            yield from self._command(text, complete_event)
        elif match := _FILE.search(text[-1000:]):
            yield from self._path(match[1], complete_event)

    def _command(self, text: str, event: CompleteEvent) -> Iterator[Completion]:
        name, space, argument = text.partition(" ")
        if not space:
            for command in table.commands().values():
                if command.name.startswith(name.lower()):
                    yield Completion(command.name, -len(name), command.usage, display_meta=command.help)
            return
        found = table.commands().get(name.lower())
        if found is None:
            return
        word = argument.replace("=", " ").rpartition(" ")[2]
        for candidate, meaning in found.complete(self._chat, argument):
            if candidate.lower().startswith(word.lower()):
                yield Completion(candidate, -len(word), visible(candidate), display_meta=visible(meaning))
        if found.files:
            yield from self._path(word, event)

    def _path(self, word: str, event: CompleteEvent) -> Iterator[Completion]:
        for found in self._paths.get_completions(Document(word), event):
            yield Completion(found.text, found.start_position, visible(found.display_text))
