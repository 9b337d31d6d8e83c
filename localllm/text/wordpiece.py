"""What BERT's normalizer does to a text before it is split into word pieces, as far as llama.cpp does otherwise.

llama.cpp takes vowels of Indic scripts (marks that take space, category Mc) for accents and does not take Hangul apart;
the original removes the marks without width (Mn) of the text's canonical decomposition, no others, and reads a word of
more than 100 characters as unknown. Spaces, punctuation, CJK and lower case llama.cpp treats alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from unicodedata import category, normalize

_LONGEST = 100  # characters of a word; the default of WordPiece, which no known model changes
_UNKNOWN = "\U00010280"  # a letter of Lycian, which no known vocabulary has


@dataclass(frozen=True, slots=True)
class WordPieceNormalizer:
    """`strip_accents` as the tokenizer says."""

    strip_accents: bool

    def __call__(self, text: str) -> str:
        if self.strip_accents and not text.isascii():
            text = "".join(c for c in normalize("NFD", text) if category(c) != "Mn")
        if len(text) > _LONGEST and any(len(part) > _LONGEST for part in text.split()):
            text = " ".join(_shortened(part) for part in text.split())
        return text


def _shortened(part: str) -> str:
    """A part between two spaces with its overlong words replaced by one that is unknown."""
    return part if len(part) <= _LONGEST else "".join(_words(part))


def _words(part: str) -> Iterator[str]:
    for alone, characters in groupby(part, _stands_alone):
        word = "".join(characters)
        yield word if alone or len(word) <= _LONGEST else _UNKNOWN


def _stands_alone(character: str) -> bool:
    """Whether a character is a word of its own: punctuation, ASCII's symbols, CJK ideographs."""
    if character.isascii():
        return not character.isalnum()
    return category(character).startswith("P") or any(first <= character <= last for first, last in _IDEOGRAPHS)


_IDEOGRAPHS = (
    ("\u4e00", "\u9fff"), ("\u3400", "\u4dbf"), ("\U00020000", "\U0002a6df"), ("\U0002a700", "\U0002ceaf"),
    ("\uf900", "\ufaff"), ("\U0002f800", "\U0002fa1f"),
)  # fmt: skip
