"""Streaming Markdown: however the text is cut, the screen ends the same, and little is written again."""

from __future__ import annotations

import io
import pickle
import random
import textwrap

import pyte
import pytest
from rich.console import Console

from localllm.ui import markdown
from localllm.ui.markdown import MarkdownStream
from localllm.ui.render import visible
from tests.benchmarks.stream_markdown import ENDLESS, quarters

TEXT = """# A heading

A paragraph that is long enough to be wrapped over several lines of an ordinary terminal, with **bold**, *italic*,
`code` and wide characters: 日本語のテキスト 🙂 and combining e\u0301.

1. one
2. two

   still two
- a
  - nested

```python
def f(x):
    return "```" if x else '''
    text'''
```

| name | value |
|------|-------|
| a    | 1     |
| bb   | 22    |

> a quotation

The end."""


class Screen:
    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self.stream = pyte.Stream(self.screen)
        self.file = io.StringIO()
        self.written = 0
        self.console = Console(
            file=self.file,
            force_terminal=True,
            width=columns,
            height=rows,
            color_system="standard",
            legacy_windows=False,
        )

    def show(self, pieces: list[str]) -> list[str]:
        out = MarkdownStream(self.console)
        for piece in pieces:
            out.push(piece)
            self.take()
        out.finish()
        self.take()
        scrolled = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        lines = [line.rstrip() for line in [*scrolled, *self.screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def take(self) -> None:
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        self.written += len(text)
        self.stream.feed(text.replace("\n", "\r\n"))


@pytest.fixture(autouse=True)
def every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "FRAME_SECONDS", 0.0)


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50), (30, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_the_cuts_do_not_matter(columns: int, rows: int, seed: int) -> None:
    whole = Screen(columns, rows).show([TEXT])
    draw = random.Random(seed)
    pieces, rest = [], TEXT
    while rest:
        size = draw.choice((1, 2, 3, 7))
        pieces.append(rest[:size])
        rest = rest[size:]
    assert Screen(columns, rows).show(pieces) == whole


def test_what_it_looks_like() -> None:
    lines = Screen().show([TEXT])
    assert lines[0] == "# A heading"
    assert 'return "```" if x else' in "\n".join(lines)
    for line in (" 1. one", "    still two", " • a", "    • nested", "▌ a quotation", "name  value"):
        assert line in lines
    assert "The end." in lines
    assert "**" not in "\n".join(lines)


@pytest.mark.slow
def test_blocks_taller_than_the_screen() -> None:
    """What has scrolled away cannot be redrawn; nothing is lost or doubled."""
    text = "- " + "\n- ".join(f"item {n}" for n in range(60)) + "\n\nend"
    lines = Screen(40, 10).show(list(text))
    assert [line for line in lines if "item" in line] == [f" • item {n}" for n in range(60)]
    code = "```\n" + "\n".join(f"line {n}" for n in range(200)) + "\n```\n"
    lines = Screen(40, 10).show(list(code))
    assert [line for line in lines if line] == [f"line {n}" for n in range(200)]


@pytest.mark.slow
def test_a_long_paragraph_is_shown_once_whatever_its_source_looks_like() -> None:
    """What is shown of an entity stands nowhere in the source, so no row's place in it is known."""
    for piece, shown in (("&lt;br&gt; and so on ", "<br>andsoon"), ("**x** &lt;", "x<"), ("&amp;&lt;", "&<")):
        count = 6930 // len(piece)
        assert "".join(Screen().show([piece] * count)).replace(" ", "") == shown * count


@pytest.mark.parametrize(("mark", "shown"), [("", ""), ("> ", "▌ ")])
def test_a_long_paragraph_has_no_short_row_inside(mark: str, shown: str) -> None:
    """It is given away piece by piece, at places where nobody sees it."""
    lines = [f"sentence {n:04d} of a text" for n in range(400)]
    expected = textwrap.wrap(" ".join(lines), 80 - len(shown))
    assert Screen().show([f"{mark}{line}\n" for line in lines]) == [shown + row for row in expected]


def test_a_growing_line_is_appended_to() -> None:
    screen = Screen()
    text = "word " * 12
    screen.show(list(text))
    assert screen.written < 20 * len(text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(ENDLESS))
def test_what_a_token_writes_does_not_grow(kind: str) -> None:
    """The work of a frame is bounded by what it may draw again: in the last quarter no more than in the first."""
    written = [count for _, count in quarters(kind, 800)]
    assert written[3] < 1.5 * written[0] + 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(ENDLESS))
def test_what_may_change_stays_small(kind: str) -> None:
    """However long an answer is, only a bounded rest of it is kept."""
    stream = MarkdownStream(Screen().console)
    first, unit = ENDLESS[kind]
    stream.push(first)
    sizes = []
    for _ in range(100):
        stream.push(unit * (300 // len(unit)))
        sizes.append(len(pickle.dumps((stream._blocks, stream._tail))))
    assert max(sizes) < 40_000 and max(sizes[len(sizes) // 2 :]) < 1.5 * max(sizes[: len(sizes) // 2])


@pytest.mark.slow
def test_one_push_of_a_megabyte() -> None:
    for text in ("word " * 200_000, "x" * 1_000_000, "```\n" + "y" * 1_000_000, "|" * 300_000, "[" * 20_000):
        screen = Screen()
        lines = MarkdownStream(screen.console)
        lines.push(text)
        lines.finish()
        shown = screen.file.getvalue().translate(str.maketrans("", "", " \n"))
        assert len(shown) > 0.9 * len(text.replace(" ", "")) or "|" in text


def test_resize_while_it_grows() -> None:
    screen = Screen(60, 24)
    out = MarkdownStream(screen.console)
    text = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu"
    for n, character in enumerate(text):
        if n == 40:
            screen.console.width = 30
        out.push(character)
        screen.take()
    out.finish()
    screen.take()
    shown = " ".join(" ".join(screen.screen.display).split())
    assert shown.endswith("iota kappa lambda mu")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31m", "␛[31m"),
        ("\x00\x07\r\x7f", "␀␇␍␡"),
        ("\x80\x9b", "\ufffd\ufffd"),
        ("a\u202eb\u2066", "a\ufffdb\ufffd"),
        ("Grüße 日本 🙂 e\u0301 \u200d", "Grüße 日本 🙂 e\u0301 \u200d"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
