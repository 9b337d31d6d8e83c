"""A checkpoint's tokenizer as a GGUF has it: byte-level BPE, SentencePiece or WordPiece.

The types and the flags follow the GGUF description; what llama.cpp makes of them was read in its llama-vocab.cpp. Texts
and numbers come from strangers and are checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localllm.convert import pretokenizer, sentencepiece
from localllm.convert.checkpoint import read_json, read_optional_json
from localllm.errors import BadModelFile, ModelNotFound

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"  # how SentencePiece writes a space
_ADDED_SCORE = -1000.0
MAX_TOKENS = 1 << 21
# The slow tokenizers whose files tell no way of splitting, because it is theirs.
_BY_CLASS = {"GPT2Tokenizer": "gpt-2", "GPT2TokenizerFast": "gpt-2", "Qwen2Tokenizer": "qwen2"}


@dataclass
class Vocabulary:
    """`model` is "gpt2", "llama" (SentencePiece) or "bert"; `pre` the way of splitting; `flags` further metadata."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    flags: dict[str, bool] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a model with `size` rows of embeddings, padded to them. Raises BadModelFile, ModelNotFound."""
    tokenizer = read_optional_json(folder / "tokenizer.json")
    model = tokenizer.get("model")
    if tokenizer and not isinstance(model, dict):
        raise BadModelFile(f"{folder / 'tokenizer.json'} holds no tokenizer", "fetch it again")
    kind = model.get("type", "BPE" if "merges" in model else "?") if isinstance(model, dict) else ""
    if (folder / "tokenizer.model").exists() and kind in ("", "BPE") and not _is_byte_level(tokenizer):
        found = _from_sentencepiece(folder / "tokenizer.model")
    elif kind == "BPE" and isinstance(model, dict):
        found = (
            _byte_level(folder, tokenizer, model) if _is_byte_level(tokenizer) else _merged(folder, tokenizer, model)
        )
    elif kind == "WordPiece" and isinstance(model, dict):
        found = _word_pieces(folder, _ids(folder, model.get("vocab")), tokenizer.get("normalizer"))
    elif kind:
        raise BadModelFile(f"{folder / 'tokenizer.json'} is a {str(kind)[:40]} tokenizer, which is not converted")
    else:
        found = _from_old_files(folder)
    _add(found, folder, tokenizer)
    if found.model == "bert":
        found.tokens = [_phantom(token, kind) for token, kind in zip(found.tokens, found.types, strict=True)]
    _fit(found, size)
    return found


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokens are written in GPT-2's alphabet of bytes."""
    return '"ByteLevel"' in json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])


def _byte_level(folder: Path, tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Vocabulary:
    where = folder / "tokenizer.json"
    tokens, types = _by_id(_ids(folder, model.get("vocab")))
    return Vocabulary("gpt2", pretokenizer.identify(tokenizer, str(where)), tokens, types)


def _merged(folder: Path, tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Vocabulary:
    """SentencePiece's BPE out of a tokenizer.json: its scores are the order of the merges."""
    if not model.get("byte_fallback"):
        where = folder / "tokenizer.json"
        raise BadModelFile(f"{where} is a BPE tokenizer of neither bytes nor SentencePiece, which is not converted")
    tokens, types = _by_id(_ids(folder, model.get("vocab")))
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(_list(model.get("merges"))):
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if isinstance(merge, list) and len(merge) == 2:
            left, right = map(str, merge)
        ranks.setdefault(left + right, -float(rank))
    # What no merge makes is one character, or never made: it comes last.
    scores = [ranks.get(token, -float(len(ranks))) for token in tokens]
    for index, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[index] = BYTE
        elif token == model.get("unk_token"):
            types[index] = UNKNOWN
    return Vocabulary("llama", "default", tokens, types, scores, {"add_space_prefix": _prepends(tokenizer)})


def _prepends(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front of it."""
    for step in _flat(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend":
            return True
    for step in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            prepends = "always" if step.get("add_prefix_space", True) else "never"
            return bool(step.get("prepend_scheme", prepends) != "never")
    return False


def _flat(step: Any, inner: str) -> list[Mapping[str, Any]]:
    if not isinstance(step, Mapping):
        return []
    return [each for part in _list(step.get(inner)) for each in _flat(part, inner)] or [step]


def _from_sentencepiece(path: Path) -> Vocabulary:
    found = sentencepiece.read(path)
    # llama.cpp looks for what the user defined in the plain text.
    tokens = [text.replace(_SPACE, " ") if kind == USER_DEFINED else text for text, _, kind in found.pieces]
    types = [kind if NORMAL <= kind <= BYTE else NORMAL for _, _, kind in found.pieces]
    scores = [score for _, score, _ in found.pieces]
    return Vocabulary("llama", "default", tokens, types, scores, {"add_space_prefix": found.space_prefix})


def _word_pieces(folder: Path, ids: dict[str, int], normalizer: Any) -> Vocabulary:
    tokens, types = _by_id(ids)
    flags = {}
    for step in _flat(normalizer, "normalizers"):
        if step.get("type") == "BertNormalizer":
            lower = bool(step.get("lowercase", True))
            strips = step.get("strip_accents")
            flags = {
                "normalizer.lowercase": lower,
                "normalizer.strip_accents": lower if strips is None else bool(strips),
            }
    return Vocabulary("bert", "default", tokens, types, None, flags)


def _phantom(token: str, kind: int) -> str:
    """llama.cpp marks the beginning of a word, as SentencePiece does, where WordPiece marks that it goes on."""
    if kind == CONTROL:
        return token
    return token[2:] if token.startswith("##") else _SPACE + token


def _from_old_files(folder: Path) -> Vocabulary:
    """Checkpoints from before tokenizer.json: vocab.txt, or vocab.json with merges.txt."""
    settings = read_optional_json(folder / "tokenizer_config.json")
    name = str(settings.get("tokenizer_class", ""))
    if (folder / "vocab.txt").exists():
        try:
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadModelFile(f"{folder / 'vocab.txt'} cannot be read: {error}", "fetch it again") from None
        lower = bool(settings.get("do_lower_case", True))
        found = _word_pieces(
            folder, {line: i for i, line in enumerate(lines)}, {"type": "BertNormalizer", "lowercase": lower}
        )
        for special in ("unk", "sep", "pad", "cls", "mask"):
            token = settings.get(f"{special}_token") or f"[{special.upper()}]"
            if token in lines:
                found.types[lines.index(str(token))] = CONTROL
        return found
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists() and name in _BY_CLASS:
        tokens, types = _by_id(_ids(folder, read_json(folder / "vocab.json")))
        return Vocabulary("gpt2", _BY_CLASS[name], tokens, types)
    raise ModelNotFound(
        f"{folder} has no tokenizer that can be converted (tokenizer.json, tokenizer.model, vocab.txt)",
        "fetch it from the model it was trained from, into this folder",
    )


def _ids(folder: Path, table: Any) -> dict[str, int]:
    sound = isinstance(table, dict) and all(map(_is_id, table.values()))
    if not sound or not table or len(set(table.values())) < len(table):
        raise BadModelFile(f"the tokenizer in {folder} has no vocabulary, or one with impossible ids", "fetch it again")
    found: dict[str, int] = table
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS


def _by_id(ids: dict[str, int]) -> tuple[list[str], list[int]]:
    """Texts and types in the order of the ids; a hole is a token that is never used."""
    count = max(ids.values()) + 1
    tokens, types = [f"[PAD{i}]" for i in range(count)], [UNUSED] * count
    for token, index in ids.items():
        tokens[index], types[index] = token, NORMAL
    return tokens, types


def _add(found: Vocabulary, folder: Path, tokenizer: Mapping[str, Any]) -> None:
    """Put in the tokens that were added to the vocabulary, control tokens among them, wherever they are told."""
    added = [(token.get("id"), token) for token in _list(tokenizer.get("added_tokens")) if isinstance(token, dict)]
    if not tokenizer:
        older = read_optional_json(folder / "added_tokens.json")
        added += [(index, {"content": text}) for text, index in older.items()]
    decoder = read_optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for key, token in decoder.items() if isinstance(decoder, dict) else ():
        added.append((int(key) if str(key).isdecimal() else None, token if isinstance(token, dict) else {}))
    for index, token in added:
        text = token.get("content")
        if index is None or not _is_id(index) or not isinstance(text, str):
            raise BadModelFile(f"the tokenizer in {folder} adds a token that is none: {token!r:.80}", "fetch it again")
        missing = index + 1 - len(found.tokens)
        found.tokens += [f"[PAD{len(found.tokens) + i}]" for i in range(missing)]
        found.types += [UNUSED] * missing
        control = bool(token.get("special")) or _looks_special(text)
        unknown = found.types[index] == UNKNOWN
        found.types[index] = UNKNOWN if unknown else CONTROL if control else USER_DEFINED
        found.tokens[index] = text if control else text.replace(_SPACE, " ")  # llama.cpp looks for it in the plain text
        if found.scores is not None:
            found.scores += [_ADDED_SCORE] * missing
            found.scores[index] = _ADDED_SCORE


def _looks_special(text: str) -> bool:
    """Some models' control tokens are not marked as such: those between <| and |>, Gemma's and DeepSeek's own."""
    ends = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(start) and text.endswith(end) for start, end in ends
    )


def _fit(found: Vocabulary, size: int) -> None:
    """As many tokens as the embeddings have rows."""
    extra = len(found.tokens) - size
    if extra > 0:
        found.notices.append(f"the last {extra} tokens of its vocabulary have no embeddings and are left out")
        del found.tokens[size:], found.types[size:]
        if found.scores is not None:
            del found.scores[size:]
    missing = range(len(found.tokens), size)
    found.tokens += [f"[PAD{i}]" for i in missing]
    found.types += [UNUSED] * len(missing)
    if found.scores is not None:
        found.scores += [-10000.0] * len(missing)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
