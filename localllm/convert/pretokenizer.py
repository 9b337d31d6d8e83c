"""Which of llama.cpp's ways of splitting a text before byte-level BPE a tokenizer.json means.

They are told apart by what the file says it does (regular expressions and steps), not by what came out for some text: a
fine-tune that added tokens is still recognized, and one that changed the steps is not taken for the original. The names
and what stands behind them are those of llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from localllm.errors import BadModelFile

Step = tuple[str, ...]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+{0}|" + r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*{0}|"
)
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED.replace("{0}", "") + r"\p{N}|" + _SLASHED
_GPT4O = _CASED.replace("{0}", _CONTRACTIONS + "?") + r"\p{N}{1,3}|" + _SLASHED
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

# The steps, and whether a whole word that is a token is taken as such (ignore_merges) -> llama.cpp's name.
_KNOWN: dict[tuple[tuple[Step, ...], bool], str] = {
    ((("gpt2",),), False): "gpt-2",
    ((("split", _GPT2),), False): "gpt-2",
    ((("digits",), ("gpt2",)), False): "smollm",
    ((("split", _LLAMA3),), True): "llama-bpe",
    ((("split", _LLAMA3),), False): "dbrx",
    ((("split", _QWEN2),), False): "qwen2",
    ((("split", _QWEN35),), False): "qwen35",
    ((("split", _TEKKEN),), True): "tekken",
    ((("split", _GPT4O),), False): "gpt-4o",
    ((("punctuation",), ("gpt2",), ("numbers",), ("split", "[0-9][0-9][0-9]")), False): "falcon",
    ((("split", r"\p{N}{1,3}"), ("split", _CJK), ("split", _DEEPSEEK3)), False): "deepseek-v3",
    ((("split", "[\r\n]"), ("split", r"\s?\p{L}+"), ("split", r"\s?\p{P}+"), ("split", _DEEPSEEK_CJK), ("digits",)),
     False): "deepseek-coder",
}  # fmt: skip

# Further names that llama.cpp has for the same steps.
_ALIASES = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "falcon-h1": "llama-bpe",
    "pixtral": "llama-bpe", "lfm2": "llama-bpe", "phi-2": "gpt-2", "mellum": "gpt-2", "deepseek-r1-qwen": "qwen2",
}  # fmt: skip


def by_name(name: str) -> tuple[tuple[Step, ...], bool] | None:
    """The steps that stand behind a name of llama.cpp's, and whether whole words are taken as such; None if unknown."""
    name = _ALIASES.get(name, name)
    return next((steps for steps, known in _KNOWN.items() if known == name), None)


def identify(tokenizer: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name. Raises BadModelFile where it has none for these steps."""
    steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
    model = tokenizer.get("model")
    whole = bool(model.get("ignore_merges")) if isinstance(model, Mapping) else False
    name = _KNOWN.get((steps, whole))
    if name is None:
        shown = "; ".join(" ".join(step) for step in steps)[:300] or "nothing"
        raise BadModelFile(
            f"{where} splits text in a way that llama.cpp is not known to have: {shown}{', whole words first' * whole}",
            "converted with another way it would answer nonsense",
        )
    return name


def _steps(found: Any) -> Iterator[Step]:
    """The steps in their order, each told in one way however the file spells it."""
    if not isinstance(found, Mapping):
        return
    kind = found.get("type")
    if kind == "Sequence":
        inner = found.get("pretokenizers")
        for step in inner if isinstance(inner, list) else ():
            yield from _steps(step)
    elif kind == "ByteLevel":
        if found.get("add_prefix_space"):
            yield ("a space in front",)
        if found.get("use_regex", True):
            yield ("gpt2",)
    elif kind == "Digits":
        yield ("digits",) if found.get("individual_digits") else ("numbers",)
    elif kind == "Split":
        yield from _split(found)
    elif kind == "Punctuation":
        yield ("punctuation",) if found.get("behavior") == "Contiguous" else ("punctuation", str(found.get("behavior")))
    else:
        yield (str(kind),)


def _split(found: Mapping[str, Any]) -> Iterator[Step]:
    pattern = found.get("pattern")
    text = next(iter(pattern.values()), "") if isinstance(pattern, Mapping) else ""
    # Matches kept, and what is between them thrown away: there is nothing, because these expressions match every text.
    kept = (found.get("behavior"), bool(found.get("invert"))) in (("Isolated", False), ("Removed", True))
    yield ("split", str(text)) if kept else ("split", str(text), str(found.get("behavior")))
