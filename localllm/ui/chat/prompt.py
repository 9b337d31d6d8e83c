"""The line that is typed: its keys, its history, and long pastes folded into a mark."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, get_common_complete_suffix
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.styles import Style

from localllm.text.attachments import mentions
from localllm.ui.chat.answer import print_thinking
from localllm.ui.chat.bar import bottom_bar
from localllm.ui.chat.completion import ChatCompleter
from localllm.ui.chat.state import Chat

FOLDED_LINES, FOLDED_CHARACTERS = 20, 2000  # a longer paste is shown as a mark
_KEPT = 100_000  # characters of a line that are kept in the history
_BLOCK = '"""'


class Prompt:
    def __init__(self, chat: Chat, history: Path | None, keys: Input) -> None:
        self._chat = chat
        completer = ChatCompleter(chat)
        self._session: PromptSession[str] = PromptSession(
            HTML("<b>&gt; </b>"),
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_keys(chat, completer),
            history=_Expanding(chat, _history(history)),
            completer=completer,
            complete_while_typing=Condition(self._is_command),
            bottom_toolbar=lambda: bottom_bar(chat),
            style=Style.from_dict({"full": "bold", "bottom-toolbar": "noreverse dim"}),
            enable_suspend=True,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            input=keys,
            input_processors=[TabsProcessor(char1=" ", char2=" ")],
        )

    def read(self) -> tuple[str, list[str]]:
        """The next message, and the files that were named in what was typed (not in what was pasted folded).

        Raises KeyboardInterrupt and EOFError.
        """
        self._session.editing_mode = EditingMode.VI if self._chat.display.vi else EditingMode.EMACS
        typed = self._session.prompt()
        text, files = expanded(self._chat, typed), mentions(typed)
        self._chat.pastes.clear()
        stripped = text.strip()
        if stripped.startswith(_BLOCK) and stripped.endswith(_BLOCK) and len(stripped) >= 2 * len(_BLOCK):
            text = stripped[len(_BLOCK) : -len(_BLOCK)].strip("\n")
        return text, files

    def _is_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")


def expanded(chat: Chat, text: str) -> str:
    """A typed text with what its marks stand for."""
    for mark, pasted in chat.pastes.items():
        text = text.replace(mark, pasted)
    return text


def _keys(chat: Chat, completer: Completer) -> KeyBindings:
    """Enter sends and Alt-Enter begins a new line, or the other way round; Ctrl-J always begins one."""
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        text = event.current_buffer.text
        command = text.startswith("/") and "\n" not in text
        if (chat.display.multiline and not command) or _is_open(text):
            new_line(event)
        else:
            send(event)

    @keys.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        (send if chat.display.multiline else new_line)(event)

    keys.add("c-j", filter=typing)(new_line)

    @keys.add("tab", filter=typing)
    def _(event: KeyPressEvent) -> None:
        _complete(event.current_buffer, completer)

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        event.current_buffer.insert_text(_folded(chat, text))

    @keys.add("c-o")
    def _(event: KeyPressEvent) -> None:
        chat.toggle_thinking()
        thinking = chat.last_thinking()
        if chat.display.show_thinking and thinking:
            run_in_terminal(lambda: print_thinking(chat.console, thinking))

    return keys


def _complete(buffer: Buffer, completer: Completer) -> None:
    """The only candidate at once; of several what they have in common, then the menu, then one after the other."""
    if buffer.complete_state is not None and len(buffer.complete_state.completions) > 1:
        buffer.complete_next()
        return
    found = list(completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
    if len(found) == 1:
        buffer.apply_completion(found[0])
    elif found and (common := get_common_complete_suffix(buffer.document, found)):
        buffer.insert_text(common)
    elif found:
        buffer.start_completion(select_first=False)


def _is_open(text: str) -> bool:
    """Whether a block between two triple quotes has begun and not ended."""
    stripped = text.strip()
    return stripped.startswith(_BLOCK) and not (stripped.endswith(_BLOCK) and len(stripped) >= 2 * len(_BLOCK))


def _folded(chat: Chat, text: str) -> str:
    """A mark for a long paste: a line of a megabyte cannot be edited, and need not be seen."""
    lines = text.count("\n") + 1
    if lines <= FOLDED_LINES and len(text) <= FOLDED_CHARACTERS:
        return text
    size = f"{lines} lines" if lines > 1 else f"{len(text)} characters"
    mark = f"[pasted {size}, #{len(chat.pastes) + 1}]"
    chat.pastes[mark] = text
    return mark


class _Expanding(History):
    """A history that keeps what a mark stands for, and not what would be too long to come back to."""

    def __init__(self, chat: Chat, inner: History) -> None:
        super().__init__()
        self._chat, self._inner = chat, inner

    def load_history_strings(self) -> list[str]:
        return list(self._inner.load_history_strings())

    def append_string(self, string: str) -> None:
        text = expanded(self._chat, string)
        if len(text) <= _KEPT:
            super().append_string(text)

    def store_string(self, string: str) -> None:
        self._inner.store_string(string)


def _history(path: Path | None) -> History:
    """What was typed, across runs, readable by its owner alone; in memory where it is not or cannot be kept."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError as error:
        sys.stderr.write(f"localllm: {path} cannot be written ({error.strerror}); this chat's input is not kept\n")
        return InMemoryHistory()
    return FileHistory(str(path))
