"""A GGUF's tokenizer as the tokenizers library reads it: tokenizer.json, and the settings beside it.

What llama.cpp does by the name of a tokenizer (llama-vocab.cpp) is written out in steps; the ids are the same.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from localllm.convert import pretokenizer
from localllm.convert.vocabulary import CONTROL, UNKNOWN, USER_DEFINED
from localllm.errors import BadModelFile
from localllm.formats.gguf import Header, read_array
from localllm.formats.gguf_metadata import NO_TOKEN, Array

_SPACE = "\u2581"  # how SentencePiece writes a space
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@dataclass(frozen=True, slots=True)
class Tokens:
    """`model` is "gpt2" (byte-level BPE) or "llama" (SentencePiece); special ids are None where there are none."""

    model: str
    pre: str
    texts: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    add_bos: bool
    add_eos: bool
    space_prefix: bool


def of_header(header: Header) -> Tokens:
    """Read a GGUF's vocabulary. Raises BadModelFile where it has none, or one of another kind."""
    found = header.metadata
    model, pre = str(found.get("tokenizer.ggml.model", "")), str(found.get("tokenizer.ggml.pre", "default"))
    if model not in ("gpt2", "llama"):
        raise BadModelFile(
            f"{header.path} has a tokenizer of the kind {model!r:.40}, which is not exported",
            "export the original checkpoint, which brings its own",
        )
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def items(key: str) -> list[Any]:
            value = found.get(f"tokenizer.ggml.{key}", ())
            return list(read_array(data, value)) if isinstance(value, Array) else list(value)

        texts, types, scores, merges = (items(key) for key in ("tokens", "token_type", "scores", "merges"))
    if not texts or not all(isinstance(text, str) for text in (*texts, *merges)):
        raise BadModelFile(f"{header.path} has no vocabulary", "export the original checkpoint, which brings its own")

    def special(name: str, default: int | None = None) -> int | None:
        value = found.get(f"tokenizer.ggml.{name}_token_id", default)
        return value if isinstance(value, int) and value != NO_TOKEN and 0 <= value < len(texts) else None

    def flag(name: str, default: bool) -> bool:
        return bool(found.get(f"tokenizer.ggml.{name}", default))

    llama = model == "llama"
    bos, eos, unknown = (1, 2, 0) if llama else (None, None, None)
    return Tokens(
        model, pre, texts, types or [1] * len(texts), scores, merges, special("bos", bos), special("eos", eos),
        special("unknown", unknown), special("padding"), flag("add_bos_token", llama or _adds_bos(pre)),
        flag("add_eos_token", False), flag("add_space_prefix", llama),
    )  # fmt: skip


def _adds_bos(pre: str) -> bool:
    return pretokenizer.by_name(pre) == pretokenizer.by_name("llama-bpe")


def describe(tokens: Tokens) -> dict[str, Any]:
    """The content of tokenizer.json. Raises BadModelFile for a way of splitting that is not known."""
    special = [
        {"id": i, "content": tokens.texts[i], "special": kind == CONTROL, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False}
        for i, kind in enumerate(tokens.types)
        if kind in (CONTROL, USER_DEFINED) or (kind == UNKNOWN and tokens.model == "llama")
    ]  # fmt: skip
    parts = _byte_level(tokens) if tokens.model == "gpt2" else _sentencepiece(tokens)
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, **parts,
        "post_processor": _around(tokens),
    }  # fmt: skip


def settings(tokens: Tokens, context: int) -> dict[str, Any]:
    """The content of tokenizer_config.json but for the chat template."""
    named = {"bos": tokens.bos, "eos": tokens.eos, "unk": tokens.unknown, "pad": tokens.padding}
    found: dict[str, Any] = {f"{name}_token": tokens.texts[i] for name, i in named.items() if i is not None}
    return found | {
        "add_bos_token": tokens.add_bos, "add_eos_token": tokens.add_eos, "clean_up_tokenization_spaces": False,
        "model_max_length": context, "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip


def _around(tokens: Tokens) -> dict[str, Any] | None:
    """What comes before and behind a text."""
    before = [tokens.bos] if tokens.add_bos and tokens.bos is not None else []
    behind = [tokens.eos] if tokens.add_eos and tokens.eos is not None else []
    if not before and not behind:
        return None

    def piece(token: int, which: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": tokens.texts[token], "type_id": which}}

    def text(name: str, which: int) -> list[dict[str, Any]]:
        middle = {"Sequence": {"id": name, "type_id": which}}
        return [*(piece(t, which) for t in before), middle, *(piece(t, which) for t in behind)]

    used = {tokens.texts[t]: {"id": tokens.texts[t], "ids": [t], "tokens": [tokens.texts[t]]} for t in before + behind}
    single = text("A", 0)
    return {"type": "TemplateProcessing", "single": single, "pair": single + text("B", 1), "special_tokens": used}


def _byte_level(tokens: Tokens) -> dict[str, Any]:
    known = pretokenizer.by_name(tokens.pre)
    if known is None:
        raise BadModelFile(
            f"the model splits text in the way {tokens.pre!r:.40}, which is not exported",
            "export the original checkpoint, which brings its own tokenizer",
        )
    steps, whole_words = known
    described = [_step(step) for step in steps]
    if ("gpt2",) not in steps:
        described.append(_BYTES)
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": described},
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": whole_words,
            "vocab": {text: i for i, text in enumerate(tokens.texts)}, "merges": tokens.merges,
        },
    }  # fmt: skip


def _step(step: pretokenizer.Step) -> dict[str, Any]:
    kind = step[0]
    if kind == "split":
        return {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": "Isolated", "invert": False}
    if kind == "gpt2":
        return {**_BYTES, "use_regex": True}
    if kind == "punctuation":
        return {"type": "Punctuation", "behavior": "Contiguous"}
    return {"type": "Digits", "individual_digits": kind == "digits"}


def _sentencepiece(tokens: Tokens) -> dict[str, Any]:
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if tokens.space_prefix else []
    steps = [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokens.space_prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "unk_token": None if tokens.unknown is None else tokens.texts[tokens.unknown], "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens.texts)},
            "merges": list(_merges(tokens.texts, tokens.types, tokens.scores)),
        },
    }  # fmt: skip


def _merges(texts: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> Iterator[list[str]]:
    """The merges that a vocabulary with scores comes to: each way to put a token together, the best scores first."""
    if len(scores) != len(texts):
        raise BadModelFile("the model's SentencePiece vocabulary has no scores", "export the original checkpoint")
    ids = {text: i for i, text in enumerate(texts) if types[i] not in (CONTROL, UNKNOWN)}
    made: list[tuple[float, int, int, str, str]] = []
    for text, i in ids.items():
        if types[i] != USER_DEFINED or len(text) > 1:
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in ids and right in ids:
                    made.append((-scores[i], ids[left], ids[right], left, right))
    made.sort()
    return ([left, right] for _, _, _, left, right in made)
