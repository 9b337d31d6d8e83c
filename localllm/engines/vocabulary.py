"""llama.cpp's tokenizer of a GGUF: text to ids and back.

`LlamaModel` has it with the rest of a model; `VocabularyOnly` reads nothing but the header of the file, so that a GGUF
without weights will do and one of 40 GB opens as fast as a small one.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from localllm.engines.native import llama, log
from localllm.errors import BadModelFile, EngineError
from localllm.text.wordpiece import WordPieceNormalizer

_NORMALIZER = "tokenizer.ggml.normalizer."


class Vocabulary:
    """What a loaded `_vocabulary` of llama.cpp's can do."""

    _llama: Any
    _vocabulary: Any
    _pieces: dict[int, bytes]
    begin_text: str
    end_text: str
    vocabulary_size: int
    _normalize: WordPieceNormalizer | None

    def _take_vocabulary(self, model: Any) -> None:
        """The vocabulary of a native model, which lives as long as that does."""
        api = self._llama
        self._pieces = {}
        self._vocabulary = api.llama_model_get_vocab(model)
        self.vocabulary_size = api.llama_vocab_n_tokens(self._vocabulary)
        self._normalize = None
        if api.llama_vocab_type(self._vocabulary) == api.LLAMA_VOCAB_TYPE_WPM:
            lowercase = _flag(api, model, "lowercase", True)
            self._normalize = WordPieceNormalizer(_flag(api, model, "strip_accents", lowercase))
        self.begin_text = self._special_text(api.llama_vocab_bos(self._vocabulary))
        self.end_text = self._special_text(api.llama_vocab_eos(self._vocabulary))

    def tokenize(self, text: str, *, begin: bool, special: bool = True) -> list[int]:
        if self._normalize is not None:
            text = self._normalize(text)
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self._vocabulary, data, len(data), buffer, room, begin, special)
        if count < 0:
            raise EngineError(f"a text of {len(data)} bytes cannot be tokenized")
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        if token not in self._pieces:
            self._pieces[token] = self._piece(token, special=False)
        return self._pieces[token]

    def spelled(self, token: int) -> bytes:
        return self.piece(token) or self._piece(token, special=True)

    def is_special(self, token: int) -> bool:
        api = self._llama
        attributes = int(api.llama_vocab_get_attr(self._vocabulary, token))
        return bool(attributes & (api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN))

    def is_end(self, token: int) -> bool:
        return bool(self._llama.llama_vocab_is_eog(self._vocabulary, token))

    def has_token(self, text: str) -> bool:
        """Whether `text` is one token of the vocabulary."""
        return len(self.tokenize(text, begin=False)) == 1

    __contains__ = has_token

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count: int = self._llama.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _special_text(self, token: int) -> str:
        return self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""


def keep_accents(api: Any) -> Any:
    """What a model is loaded with so that llama.cpp leaves accents alone: `WordPieceNormalizer` strips them.

    Only vocabularies of word pieces look at it. The array ends with an empty key.
    """
    overrides = (api.llama_model_kv_override * 2)()
    overrides[0].key, overrides[0].tag = f"{_NORMALIZER}strip_accents".encode(), api.LLAMA_KV_OVERRIDE_TYPE_BOOL
    overrides[0].value.val_bool = False
    return overrides


def _flag(api: Any, model: Any, name: str, default: bool) -> bool:
    """A flag of the file's own metadata."""
    buffer = ctypes.create_string_buffer(8)
    found = api.llama_model_meta_val_str(model, f"{_NORMALIZER}{name}".encode(), buffer, len(buffer))
    return buffer.value == b"true" if found > 0 else default


class VocabularyOnly(Vocabulary):
    """A GGUF's vocabulary, of a decoder or an encoder, without its weights. Raises BadModelFile."""

    def __init__(self, path: Path) -> None:
        self._llama = llama()
        parameters = self._llama.llama_model_default_params()
        parameters.vocab_only = True
        parameters.kv_overrides = keep_accents(self._llama)
        log.take_errors()
        self._model: Any = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            reason = next(iter(log.take_errors()), "no reason was logged").rpartition("error loading model: ")[2]
            raise BadModelFile(f"{path} has no vocabulary that can be read: {reason}")
        self._take_vocabulary(self._model)
        if not self.vocabulary_size:
            self.close()
            raise BadModelFile(f"{path} has no vocabulary")

    def close(self) -> None:
        model, self._model = self._model, None
        if model:
            self._llama.llama_model_free(model)
