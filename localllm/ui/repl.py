"""The chat at a terminal: prompt-toolkit reads, the conversation answers, Markdown streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from localllm.conversation import Conversation
from localllm.errors import LocalLLMError
from localllm.ui import slash
from localllm.ui.markdown import MarkdownStream
from localllm.ui.render import Aside, stream_plain, visible


def run_chat(conversation: Conversation, *, title: str, history: Path) -> None:
    """Talk until the user leaves. An error ends a turn, not the chat."""
    console = Console(highlight=False)
    console.print(f"[bold]{title}[/bold]  [dim]/help lists the commands, Ctrl-D leaves[/dim]")
    prompt = _prompt(history)
    while True:
        try:
            text = prompt.prompt()
        except KeyboardInterrupt:
            continue  # as in a shell: the line is dropped
        except EOFError:
            return
        if not text.strip():
            continue
        try:
            if text.startswith("/"):
                console.print(slash.run(conversation, text), markup=False)
            else:
                _answer(conversation, text, console)
        except slash.Leave:
            return
        except LocalLLMError as error:
            console.print(visible(str(error)) + (f" ({error.hint})" if error.hint else ""), style="red", markup=False)


def _answer(conversation: Conversation, text: str, console: Console) -> None:
    """Stream an answer; Ctrl-C stops it, and what was said stays."""
    with closing(conversation.ask(text)) as chunks, _no_echo():
        if console.is_dumb_terminal or not console.is_terminal:
            stream_plain(chunks)
            return
        markdown, aside = MarkdownStream(console), Aside()
        try:
            for chunk in chunks:
                if chunk.kind != "answer":
                    aside.write(chunk)
                elif chunk.text:
                    aside.finish()
                    markdown.push(chunk.text)
                if chunk.finish == "length":
                    markdown.push("\n\n*(cut: the limit of tokens was reached)*")
        except KeyboardInterrupt:
            markdown.finish()
            console.print("(stopped)", style="dim")
        else:
            markdown.finish()
        console.print()


@contextmanager
def _no_echo() -> Iterator[None]:
    """What is typed while an answer streams waits for the next prompt instead of landing in the text."""
    try:
        import termios
    except ImportError:  # Windows echoes nothing while nobody reads
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = [*before]
    quiet[3] = before[3] & ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


class _SlashCompleter(Completer):
    """Commands at the begin of a line, and the names of options behind /set and /show."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        word, space, rest = text.partition(" ")
        if not space:
            for name, command in slash.COMMANDS.items():
                if name.startswith(word):
                    yield Completion(name, -len(word), display_meta=command.help)
        elif word in ("/set", "/show") and " " not in rest:
            for name, option in slash.settable().items():
                if name.startswith(rest):
                    yield Completion(name, -len(rest), display_meta=option.help)


def _prompt(history: Path) -> PromptSession[str]:
    return PromptSession(
        HTML("<b>&gt; </b>"),
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=_history(history),
        completer=_SlashCompleter(),
        complete_while_typing=False,
        enable_suspend=True,
        enable_open_in_editor=True,
        tempfile_suffix=".md",
    )


def _keys() -> KeyBindings:
    """Enter sends, Alt-Enter begins a new line; pasted text keeps its lines."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history(path: Path) -> History:
    """What was typed, across runs, readable by its owner alone; in memory where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError as error:
        sys.stderr.write(f"localllm: {path} cannot be written ({error.strerror}); this chat's input is not kept\n")
        return InMemoryHistory()
    return FileHistory(str(path))
