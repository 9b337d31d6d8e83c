"""A thousand lines of mixed text, the same on every machine: prose, code, emoji, CJK, Arabic, white space, what breaks."""

from __future__ import annotations

import random

_PARTS = (
    "The quick brown fox jumps over the lazy dog.", " it's we'll I'M don't THEY'RE y'all'd've", "naïve café Ångström", "3.14159",
    "1234567890", " 42", "0x1F", "def f(x: int) -> str:", "    return x[0:1] + '\\n'", "\tif (a && b) { c++; }", "#include <vector>",
    "SELECT * FROM t WHERE a >= 10;", "{\"key\": [1, 2.5, null]}", "https://example.org/a?b=c&d=%20", "user@example.org",
    "😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "✅✅", "→ ∑ √2 ≈ 1.41", "你好，世界！", "我想在apple工作1314151天", "こんにちは世界", "カタカナとひらがな",
    "안녕하세요 세계", "مرحبا بالعالم", "שלום עולם", "Привет, мир!", "Γειά σου Κόσμε", "नमस्ते दुनिया", "สวัสดีชาวโลก", "กขค ๑๒๓",
    "  ", "   ", "\t", "\t\t", " \t ", "\u00a0", "\u3000", "\u200b", "\r", "...", "!!!???", "----====", "``````", "\"quoted\"", "(parens)",
    "<html><body class='x'>", "CamelCaseAndSnake_case_words", "ALLCAPS", "a", "Z", "ß", "é", "e\u0301", "ﬁ", "½", "²", "①", "Ⅷ",
    "\U0001d54f", "\U00020000", "e\u0301e\u0301", "don’t “smart” quotes—dash…", "50%", "$100", "€5", "C++", "F#", ".NET", "@user #tag",
)  # fmt: skip


def lines(count: int = 1000) -> list[str]:
    draw = random.Random(20240229)
    found = []
    for _ in range(count):
        glue = draw.choice((" ", " ", "", "  "))
        found.append(glue.join(draw.choice(_PARTS) for _ in range(draw.randrange(1, 9))))
    return found
