"""A list to choose from, below the line, without taking the whole screen."""

from __future__ import annotations

from collections.abc import Sequence

from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl

from localllm.history import Record
from localllm.ui.render import visible
from localllm.ui.units import date


class _Picker:
    def __init__(self, records: Sequence[Record]) -> None:
        self._records = list(records)
        self._words = ""
        self._at = 0

    @property
    def found(self) -> list[Record]:
        """Those that hold every word that was typed."""
        words = self._words.lower().split()
        return [r for r in self._records if all(word in _line(r, 200).lower() for word in words)]

    @property
    def chosen(self) -> Record | None:
        found = self.found
        return found[self._at] if found else None

    def move(self, by: int) -> None:
        self._at = max(0, min(len(self.found) - 1, self._at + by))

    def type(self, words: str) -> None:
        self._words, self._at = words, 0

    @property
    def words(self) -> str:
        return self._words

    def draw(self, columns: int, rows: int) -> StyleAndTextTuples:
        """A line to search in, and as many of the conversations as there is room for."""
        found, room = self.found, max(1, rows - 3)
        begin = max(0, min(self._at - room // 2, len(found) - room))
        lines: StyleAndTextTuples = [("bold", "Which conversation? "), ("", visible(self._words)), ("", "\n")]
        for index, record in list(enumerate(found))[begin : begin + room]:
            here = index == self._at
            lines.append(("reverse" if here else "", ("> " if here else "  ") + _line(record, columns - 3) + "\n"))
        lines.append(
            ("class:dim", f"{len(found)} of {len(self._records)}; Enter takes one, letters search, Esc leaves")
        )
        return lines


def pick(records: Sequence[Record]) -> Record | None:
    """The conversation that the user chooses on the terminal, or None."""
    picker = _Picker(records)

    def draw() -> StyleAndTextTuples:
        size = application.output.get_size()
        return picker.draw(size.columns, min(size.rows, 18))

    application: Application[Record | None] = Application(
        Layout(Window(FormattedTextControl(draw, focusable=True), wrap_lines=False, dont_extend_height=True)),
        key_bindings=_keys(picker),
        erase_when_done=True,
    )
    return application.run()


def _keys(picker: _Picker) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result=picker.chosen)

    @keys.add("escape", eager=True)
    @keys.add("c-c")
    @keys.add("c-d")
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result=None)

    for key, by in (("up", -1), ("c-p", -1), ("down", 1), ("c-n", 1), ("pageup", -10), ("pagedown", 10)):
        keys.add(key)(lambda _, by=by: picker.move(by))

    @keys.add("backspace")
    def _(event: KeyPressEvent) -> None:
        picker.type(picker.words[:-1])

    @keys.add(Keys.Any)
    def _(event: KeyPressEvent) -> None:
        if event.data.isprintable():
            picker.type(picker.words + event.data)

    return keys


def _line(record: Record, width: int) -> str:
    line = f"{record.id[:6]}  {date(record.updated)}  {record.messages:>4}  {visible(record.title)}".replace("\n", " ")
    return line if len(line) <= width else line[: width - 1] + "…"
