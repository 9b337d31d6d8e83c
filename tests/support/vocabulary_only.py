"""llama.cpp's tokenizer of a GGUF, encoders too, without its weights."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localllm.engines.native import llama


class Vocabulary:
    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer

    def ids(self, text: str, *, add: bool = False, special: bool = False) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = llama().llama_tokenize(self._pointer, data, len(data), buffer, room, add, special)
        assert count >= 0
        return buffer[:count]


@contextmanager
def opened(path: Path) -> Iterator[Vocabulary]:
    api = llama()
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    assert model
    yield Vocabulary(api.llama_model_get_vocab(model))
    api.llama_model_free(model)
