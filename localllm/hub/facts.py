"""What the headers of installed models say, kept so that a listing of hundreds need not read them again."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localllm.errors import LocalLLMError
from localllm.hub import store
from localllm.hub.local import write_whole
from localllm.hub.store import Installed

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Facts:
    """`parameters` and `context` (tokens) are 0 where the file does not tell; `guessed` where only its name did."""

    architecture: str = ""
    parameters: int = 0
    context: int = 0
    guessed: bool = False


def facts_of(models: Iterable[Installed], seconds: float = math.inf) -> list[Facts]:
    """The facts of each model, in order; what is not known yet is read from the files, and remembered.

    A header costs some 10 ms, once. After `seconds` of that, the rest is guessed from names, and read another time.
    """
    path = store.data_directory() / "facts.json"
    kept = _load(path)
    now: dict[str, dict[str, Any]] = {}
    found = []
    changed = False
    end = time.monotonic() + seconds
    for model in models:
        try:
            key = "\n".join(f"{f.path} {f.size} {f.path.stat().st_mtime_ns}" for f in model.files)
        except OSError:  # it has gone
            found.append(_guess(model))
            continue
        row = kept.get(key)
        if row is None and time.monotonic() > end:
            found.append(_guess(model))
            continue
        if row is None:
            row, changed = asdict(_read(model)), True
        now[key] = row
        found.append(Facts(**row))
    if changed:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"version": _VERSION, "facts": now}))
        except OSError:
            pass  # a disk that is full or read-only makes the next listing slower, and no more
    return found


def _guess(model: Installed) -> Facts:
    """Parameters as names tell them: 7B, 0.5b, 135M; the last such word counts, the file's before the repository's."""
    for text in (model.path.name, model.repository):
        if found := re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])", text):
            number, unit = found[-1]
            return Facts(parameters=int(float(number) * (1e9 if unit in "Bb" else 1e6)), guessed=True)
    return Facts(guessed=True)


def _read(model: Installed) -> Facts:
    try:
        if model.format == "gguf":
            from localllm.formats.gguf import read_model

            header = read_model(model.path)
            return Facts(header.architecture, header.parameters, int(header.get("context_length", 0)))
        if model.format == "safetensors":
            return _read_checkpoint(model)
        from localllm.formats import onnx

        architecture, context = _config(model)
        return Facts(architecture, onnx.read_model(model.path).parameters, context)
    except (LocalLLMError, TypeError, ValueError, OverflowError):
        pass  # a broken file is listed all the same; `show` and `verify` say what is wrong with it
    return Facts()


def _read_checkpoint(model: Installed) -> Facts:
    from localllm.formats.safetensors import read_header

    architecture, context = _config(model)
    return Facts(architecture, sum(read_header(f.path).parameters for f in model.files), context)


def _config(model: Installed) -> tuple[str, int]:
    """Architecture and context by the configuration that came with a model; "" and 0 where there is none."""
    known = [f.path for f in model.companions if f.path.name == "config.json"]
    config = (*known, model.path.parent / "config.json")[0]
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        return str(values.get("model_type", "")), int(values.get("max_position_embeddings", 0))
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return "", 0


def _load(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data["facts"] if data["version"] == _VERSION else {}
        return {key: asdict(Facts(**row)) for key, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
