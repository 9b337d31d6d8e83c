"""The product's tokenizer of a GGUF, encoders too, without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllm.engines.vocabulary import VocabularyOnly


class Vocabulary:
    def __init__(self, model: VocabularyOnly) -> None:
        self._model = model

    def ids(self, text: str, *, add: bool = False, special: bool = False) -> list[int]:
        return self._model.tokenize(text, begin=add, special=special)


@contextmanager
def opened(path: Path) -> Iterator[Vocabulary]:
    model = VocabularyOnly(path)
    yield Vocabulary(model)
    model.close()
