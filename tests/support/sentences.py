"""Texts whose vectors, and whose masks, were computed by others (tests/data/make_embeddings.py)."""

from __future__ import annotations

TEXTS = (
    "The cat sat on the mat.",
    "A dog was lying on the carpet.",
    "Quantum chromodynamics describes the strong interaction between quarks and gluons.",
    "def f(x: int) -> str:\n    return str(x) + '\\n'",
    "SELECT name, count(*) FROM users GROUP BY name HAVING count(*) > 1;",
    "naïve café Ångström, Γειά σου Κόσμε, Привет мир",
    "你好，世界！ こんにちは世界 안녕하세요 세계",
    "नमस्ते दुनिया, สวัสดีชาวโลก, مرحبا بالعالم, שלום עולם",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 → ∑ √2 ≈ 1.41",
    "",
    "a",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was "
    "the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of darkness. "
    * 3,
)

MASKED = (
    "The quick brown [MASK] jumps over the lazy dog.",
    "[MASK] and [MASK]",
    "def f(x: int) -> [MASK]: return x",
)
