"""Texts that are on every machine: one to calibrate with, another to measure with.

Python's own documentation of its language (prose, grammar and code) is part of the standard library; its chapters are
dealt out in turns, so that nothing is measured on what it was calibrated with. The calibration text has some sentences in
other languages and some lines of other kinds besides.
"""

from __future__ import annotations

NAME = "built-in"

# Article 1 of the Universal Declaration of Human Rights, and what else a model may be asked to read.
_OTHERS = """\
All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should act \
towards one another in a spirit of brotherhood.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und sollen \
einander im Geiste der Brüderlichkeit begegnen.
Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience et \
doivent agir les uns envers les autres dans un esprit de fraternité.
Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia, deben \
comportarse fraternalmente los unos con los otros.
Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza e devono \
agire gli uni verso gli altri in spirito di fratellanza.
Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом и совестью и должны поступать \
в отношении друг друга в духе братства.
人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。
すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.
{"name": "Ada", "born": 1815, "languages": ["English", "French"], "notes": null}
SELECT city, COUNT(*) AS orders FROM sales WHERE year >= 2024 GROUP BY city ORDER BY orders DESC LIMIT 10;
#include <stdio.h>
int main(void) { for (int i = 0; i < 3; ++i) printf("%d\\n", i * i); return 0; }
User: How do I boil an egg?
Assistant: Put it into boiling water for seven to ten minutes, then cool it under cold water.
3 + 4 * 5 = 23, and (3 + 4) * 5 = 35. The square root of 2 is about 1.41421356.
"""


def calibration_text() -> str:
    """Some 240 kB. Raises ImportError on a Python without pydoc_data."""
    return _OTHERS + _dealt(0)


def evaluation_text() -> str:
    """Some 220 kB, none of it in the other."""
    known = set(_dealt(0).split("\n\n"))  # some chapters quote each other
    return "\n\n".join(p for p in _dealt(1).split("\n\n") if p not in known)


def _dealt(which: int) -> str:
    from pydoc_data import topics

    chapters = topics.topics
    return "\n".join(chapters[name] for name in sorted(chapters)[which::2])
