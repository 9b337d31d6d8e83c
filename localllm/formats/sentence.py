"""What sentence-transformers notes beside a model: pooling, lengths, prompts.

The files are modules.json (the steps from tokens to a vector), N_Pooling/config.json, sentence_bert_config.json and
config_sentence_transformers.json; all of them may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from localllm.errors import BadModelFile

Pooling = Literal["mean", "cls", "last", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last", "max")

# The flags of a pooling's configuration, and what they mean; newer files have one word, `pooling_mode`.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
_WORDS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}
_KNOWN_STEPS = {"Transformer", "Pooling", "Normalize"}
_MAX_BYTES = 1 << 20  # of any of these files


@dataclass(frozen=True, slots=True)
class SentenceNotes:
    """`limit` is the most tokens of a text; `unknown` names steps other than a transformer, pooling and a norm."""

    pooling: Pooling | None = None
    limit: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    unknown: tuple[str, ...] = ()


def read_notes(folder: Path) -> SentenceNotes:
    """Read what stands in a model's folder. Raises BadModelFile where it cannot be understood."""
    modules = _read(folder / "modules.json", list)
    steps = [
        (str(m.get("type", "")).rpartition(".")[2], str(m.get("path", ""))) for m in modules if isinstance(m, dict)
    ]
    place = next((path for step, path in steps if step == "Pooling"), "1_Pooling")
    settings = _read(folder / "sentence_bert_config.json", dict)
    prompts = _read(folder / "config_sentence_transformers.json", dict)
    table = prompts.get("prompts")
    known = {str(k): v for k, v in table.items() if isinstance(v, str)} if isinstance(table, dict) else {}
    limit = settings.get("max_seq_length")
    return SentenceNotes(
        read_pooling(folder / place) if "/" not in place and ".." not in place else None,
        limit if isinstance(limit, int) and limit > 0 else None,
        known,
        known.get(str(prompts.get("default_prompt_name")), ""),
        tuple(step for step, _ in steps if step not in _KNOWN_STEPS),
    )


def read_pooling(folder: Path) -> Pooling | None:
    """The pooling that a folder such as 1_Pooling describes; None where there is none. Raises BadModelFile."""
    settings = _read(folder / "config.json", dict)
    if not settings:
        return None
    modes = [word for flag, word in _FLAGS.items() if settings.get(flag)]
    others = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value and key not in _FLAGS]
    word = str(settings.get("pooling_mode", ""))
    if not modes and not others and word in _WORDS:
        return _WORDS[word]
    if len(modes) != 1 or others:
        what = ", ".join([*modes, *others]) or word or "nothing"
        raise BadModelFile(f"{folder} pools in a way that is not known: {what[:80]}", "--pooling mean chooses another")
    return modes[0]


def _read(path: Path, kind: type) -> Any:
    """The JSON of a file; an empty one of that kind where there is no file."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadModelFile(f"{path} has {path.stat().st_size} bytes, which no such file has")
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}", "fetch it again") from None
    if not isinstance(found, kind):
        raise BadModelFile(f"{path} is not what its name says", "fetch it again")
    return cast("Any", found)
