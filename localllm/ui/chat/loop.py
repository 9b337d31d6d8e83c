"""The chat's loop: read a line, answer it or run it as a command. An error ends a turn, not the chat."""

from __future__ import annotations

from pathlib import Path

from prompt_toolkit.input import create_input

from localllm.errors import LocalLLMError
from localllm.ui.chat import keeping, table
from localllm.ui.chat.answer import show_answer
from localllm.ui.chat.prompt import Prompt
from localllm.ui.chat.resume import tell
from localllm.ui.chat.state import Chat, Leave
from localllm.ui.chat.terminal import Terminal
from localllm.ui.render import visible


def run_chat(chat: Chat, history: Path | None, resumed: str | None = None) -> None:
    """Talk until the user leaves.

    `history` keeps what is typed, None does not; `resumed` is the title of what is gone on with.
    """
    console = chat.console
    title = visible(chat.conversation.model)
    console.print(f"{title}", style="bold", end="  ", markup=False)
    console.print("/help lists the commands, Ctrl-D leaves", style="dim")
    if resumed is not None:
        tell(chat, resumed)
    terminal = Terminal(create_input())
    chat.aside = terminal.ordinary
    with terminal.quiet():
        _talk(chat, Prompt(chat, history, terminal.keys), terminal)


def _talk(chat: Chat, prompt: Prompt, terminal: Terminal) -> None:
    while True:
        try:
            chat.count_again()
            with terminal.prompting():
                text, files = prompt.read()
            if text.strip():
                _turn(chat, text, files, terminal)
        except (EOFError, Leave):
            return
        except KeyboardInterrupt:
            continue  # as in a shell: the line is dropped


def _turn(chat: Chat, text: str, files: list[str], terminal: Terminal) -> None:
    console = chat.console
    try:
        result = table.run(chat, text) if _is_command(text) else keeping.ask(chat, text, files)
        if not isinstance(result, str):
            show_answer(chat, result, terminal)
        elif result:
            console.print(visible(result), markup=False, highlight=False)
    except KeyboardInterrupt:
        console.print("(stopped)", style="dim")
    except LocalLLMError as error:
        console.print(visible(str(error)) + (f" ({error.hint})" if error.hint else ""), style="red", markup=False)
    except OSError as error:
        console.print(visible(f"{error.strerror or error}: {error.filename}"), style="red", markup=False)


def _is_command(text: str) -> bool:
    """A path at the begin of a message is none: a command's name is letters alone, on a single line."""
    word = text.split(None, 1)[0]
    return word.startswith("/") and "/" not in word[1:] and "\n" not in text.strip()
