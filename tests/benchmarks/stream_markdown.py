"""What a token of streamed Markdown costs, at the beginning of a long answer and at its end.

usage: python tests/benchmarks/stream_markdown.py [TOKENS]

Every token is drawn at once (the chat itself draws at most thirty times a second), so this is the cost of a frame. Each
row is one kind of answer that never ends; the columns are its four quarters, and the bytes that a token sends to the
terminal. A cost that grew with the answer would grow from left to right.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator

from rich.console import Console

from localllm.ui import markdown

CHARACTERS = 4  # of a token
ENDLESS = {
    "paragraphs": ("", "A sentence of **some** words.\n\n"),
    "one paragraph": ("", "A sentence of **some** words with `code` in it and 日本. "),
    "one word": ("", "abcdefghij日本語"),
    "never closed bold": ("**", "word and word "),
    "one code block": ("```python\n", "    x = foo(bar, 'baz')  # comment\n"),
    "one string in code": ('```python\n"""\n', "some words in a docstring\n"),
    "one line of code": ("```python\n", "x = foo(bar); "),
    "one list": ("", "- an **item** of a list with words\n"),
    "one nested list": ("- a\n", "    - an item\n"),
    "one table": ("| a | b | c |\n|---|---|---|\n", "| a cell | another **cell** | 12 |\n"),
    "one row of a table": ("| a | b |\n|---|---|\n| ", "word and word "),
    "one quotation": ("", "> words of a quotation\n"),
}


def quarters(kind: str, tokens: int) -> Iterator[tuple[float, float]]:
    """For every quarter of an answer: CPU milliseconds and written characters a token."""
    markdown.FRAME_SECONDS = 0.0
    first, unit = ENDLESS[kind]
    text = first + unit * (tokens * CHARACTERS // len(unit) + 1)
    file = io.StringIO()
    stream = markdown.MarkdownStream(
        Console(file=file, force_terminal=True, width=80, height=24, color_system="standard")
    )
    for quarter in range(4):
        begin, written = time.process_time(), file.tell()
        for token in range(quarter * tokens // 4, (quarter + 1) * tokens // 4):
            stream.push(text[token * CHARACTERS : (token + 1) * CHARACTERS])
        count = tokens // 4
        yield (time.process_time() - begin) / count * 1e3, (file.tell() - written) / count
    stream.finish()


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(f"{'ms a token, by quarters of ' + str(tokens):36}{'written':>28}")
    for kind in ENDLESS:
        found = list(quarters(kind, tokens))
        print(f"{kind:20}" + "".join(f"{ms:8.2f}" for ms, _ in found) + f"{found[-1][1]:16.1f}", flush=True)


if __name__ == "__main__":
    main()
