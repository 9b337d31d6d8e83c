"""A `Tokenizer` on Hugging Face's tokenizer.json, with the configuration that lies beside it.

Ids and texts are the `tokenizers` package's; the bytes of a single id, which a stream needs, are found here by the
vocabulary's own alphabet: byte-level BPE's, SentencePiece's with its byte tokens, or WordPiece's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile

MAX_JSON = 64 << 20  # bytes; a tokenizer of 262,144 tokens has 33 MB
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<|end_of_role|>", "<|return|>", "<|call|>", "</s>", "<EOT>", "_<EOT>", "<|end▁of▁sentence|>",
)  # fmt: skip


class JsonTokenizer:
    """Raises BadModelFile. `ends` are the ids that end an answer by the model's configuration."""

    def __init__(self, path: Path, settings: dict[str, Any], ends: Iterable[int] = ()) -> None:
        self._tokenizer = load_tokenizer(path)
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._to_bytes = _alphabet(path)
        self._pieces: dict[int, bytes] = {}
        self.size = max([self._tokenizer.get_vocab_size(with_added_tokens=True), *(i + 1 for i in self._added)])
        self.begin_text, self.end_text = (content_of(settings.get(f"{key}_token")) for key in ("bos", "eos"))
        self._begin = self._begins(settings)
        if self._begin and not self.begin_text:
            self.begin_text = self._tokenizer.id_to_token(self._begin[0]) or ""
        named = [self._tokenizer.token_to_id(text) for text in (self.end_text, *_ENDS) if text]
        special = {i for i in named if i is not None and (self.is_special(i) or i == named[0])}
        self._ends = frozenset(special | {i for i in ends if 0 <= i < self.size})

    def _begins(self, settings: dict[str, Any]) -> list[int]:
        """The ids before a text that the tokenizer's own last step puts there, or that its configuration asks for."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        before = whole[: whole.index(bare[0])] if bare and bare[0] in whole else []
        if not before and settings.get("add_bos_token") is True and self.begin_text:
            found = self._tokenizer.token_to_id(self.begin_text)
            before = [] if found is None else [found]
        return [int(i) for i in before]

    @property
    def begin_token(self) -> int | None:
        return self._begin[0] if self._begin else None

    def tokenize(self, text: str, *, begin: bool, special: bool = True) -> list[int]:
        clean = text.encode("utf-8", errors="replace").decode()  # a lone surrogate is no text
        self._tokenizer.encode_special_tokens = not special
        ids = self._tokenizer.encode(clean, add_special_tokens=False).ids
        return [*(self._begin if begin else ()), *ids]

    def piece(self, token: int) -> bytes:
        if token not in self._pieces:
            self._pieces[token] = b"" if self.is_special(token) else self.spelled(token)
        return self._pieces[token]

    def spelled(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token].content).encode()
        text = self._tokenizer.id_to_token(token)
        return b"" if text is None else self._to_bytes(text)

    def is_special(self, token: int) -> bool:
        return token in self._added and bool(self._added[token].special)

    def is_end(self, token: int) -> bool:
        return token in self._ends

    @property
    def ends(self) -> frozenset[int]:
        return self._ends

    def has_token(self, text: str) -> bool:
        """Whether `text` is one token of the vocabulary."""
        return self._tokenizer.token_to_id(text) is not None

    __contains__ = has_token

    def close(self) -> None:
        self._pieces.clear()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; {} where there is no such file. Raises BadModelFile."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise BadModelFile(f"{path} has {path.stat().st_size:,} bytes, more than any such file")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BadModelFile(f"{path} holds no JSON object")
    return found


def load_tokenizer(path: Path) -> Any:
    """The tokenizers package's Tokenizer of a file, which takes every text whole. Raises BadModelFile.

    What the file notes of cutting and padding was meant for training, and would change a prompt without a word.
    """
    import tokenizers

    if not path.is_file():
        raise BadModelFile(
            f"{path.parent} has no tokenizer.json", "bring it from where the model comes from, beside the model"
        )
    if path.stat().st_size > MAX_JSON:
        raise BadModelFile(f"{path} has {path.stat().st_size:,} bytes, more than any tokenizer")
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # a panic of Rust's is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise BadModelFile(f"{path} is no tokenizer: {str(error).splitlines()[0] if str(error) else error!r}") from None
    found.no_truncation()
    found.no_padding()
    return found


def content_of(token: Any) -> str:
    """A special token's text, which configurations write as such or as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _alphabet(path: Path) -> Any:
    """How a token's text is turned into bytes, by the decoder that the file names."""
    decoder = json.dumps(read_json(path).get("decoder"))
    if '"ByteLevel"' in decoder:
        table = _byte_level()
        return lambda text: b"".join(table.get(c, c.encode()) for c in text)
    if '"WordPiece"' in decoder:
        return lambda text: text[2:].encode() if text.startswith("##") else b" " + text.encode()
    if "\\u2581" in decoder or '"Metaspace"' in decoder:
        return _from_sentencepiece
    return str.encode


def _from_sentencepiece(text: str) -> bytes:
    if match := _BYTE.fullmatch(text):
        return bytes([int(match[1], 16)])
    return text.replace("▁", " ").encode()


def _byte_level() -> dict[str, bytes]:
    """GPT-2's alphabet: the printable bytes of Latin-1 stand for themselves, the others for U+0100 and on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): bytes([byte]) for byte in plain}
    return table | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
