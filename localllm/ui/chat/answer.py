"""An answer on the terminal while it comes: thinking, summaries and notices apart from it, and the keys meanwhile."""

from __future__ import annotations

from contextlib import closing

from prompt_toolkit.keys import Keys
from rich.console import Console

from localllm.types import Chunk
from localllm.ui.chat.command import Answer
from localllm.ui.chat.state import Chat
from localllm.ui.chat.terminal import Terminal
from localllm.ui.chat.thinking import ThinkingView
from localllm.ui.markdown import MarkdownStream
from localllm.ui.render import stream_plain, visible

CUT = "(cut: the limit of tokens was reached)"


def show_answer(chat: Chat, chunks: Answer, terminal: Terminal) -> None:
    """Stream an answer; Ctrl-C stops it, and what was said stays."""
    console = chat.console
    with closing(chunks):
        if console.is_dumb_terminal or not console.is_terminal:
            chat.answered(stream_plain(chunks))
            return
        view = _View(chat)
        try:
            for chunk in chunks:
                view.show(chunk)
                if terminal.pressed(Keys.ControlO):
                    view.toggle()
        except KeyboardInterrupt:
            view.finish()
            console.print("(stopped)", style="dim")
        except BaseException:
            view.finish()
            raise
        else:
            view.finish()
        terminal.settle()
        console.print()


class _Raw:
    """The answer as it comes, for `--raw`."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, "\n"

    def push(self, text: str) -> None:
        self._last = visible(text) or self._last
        self._console.file.write(visible(text))
        self._console.file.flush()

    def finish(self) -> None:
        if not self._last.endswith("\n"):
            self.push("\n")


class _View:
    """Parts of an answer one after the other, each shown as what it is."""

    def __init__(self, chat: Chat) -> None:
        self._chat, self._console = chat, chat.console
        self._kind = ""
        self._part: MarkdownStream | ThinkingView | _Raw | None = None
        self._thought: list[str] = []
        self._owed = False  # whether thinking is to be shown that came before Ctrl-O

    def show(self, chunk: Chunk) -> None:
        if chunk.text and chunk.kind == "notice":
            self._begin("notice")
            self._console.print(visible(chunk.text), style="yellow", markup=False)
        elif chunk.text:
            if chunk.kind != self._kind:
                self._begin(chunk.kind)
            if chunk.kind == "thinking":
                self._thought.append(chunk.text)
            if self._part is not None:
                self._part.push(chunk.text)
        if chunk.usage is not None:
            self._chat.answered(chunk.usage)
        if chunk.finish == "length" and chunk.kind != "summary":
            self._begin("cut")
            self._console.print(CUT, style="dim", markup=False)

    def toggle(self) -> None:
        """Show or hide thinking, from here on."""
        self._chat.toggle_thinking()
        if isinstance(self._part, ThinkingView):
            self._part.toggle()
        else:
            self._owed = self._chat.display.show_thinking and bool(self._thought)

    def finish(self) -> None:
        self._begin("")
        if self._owed:
            print_thinking(self._console, "".join(self._thought))

    def _begin(self, kind: str) -> None:
        """End the part that is shown, and begin another."""
        if self._part is not None:
            self._part.finish()
            self._part = None
            if kind in ("answer", "thinking", "summary"):
                self._console.print()
        if kind == "thinking":
            self._part = ThinkingView(self._console, self._chat.display.show_thinking)
        elif kind == "answer":
            self._part = _Raw(self._console) if self._chat.display.raw else MarkdownStream(self._console)
        elif kind == "summary":
            self._console.print("Summary of what came before, which the model is told in its place:", style="dim")
            self._part = ThinkingView(self._console, shown=True)
        self._kind = kind


def print_thinking(console: Console, text: str) -> None:
    """All of what a model thought."""
    view = ThinkingView(console, shown=True)
    view.push(text.strip())
    view.finish()
