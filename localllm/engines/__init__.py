"""Engines: what turns a request into chunks. Each kind is imported when it is first opened."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from localllm.errors import UsageError
from localllm.types import Answers, Engine, EngineOptions

# kind -> the module whose `open_model(path, options, single=...)` makes an Engine.
ENGINES = {
    "llama.cpp": "localllm.engines.llama_cpp",
    "onnx": "localllm.engines.onnx",
    "fake": "localllm.engines.fake",
}


def open_engine(kind: str, path: Path, options: EngineOptions, *, single: bool = False) -> Any:
    """Open a model file; `single` promises one request only. Raises BadModelFile, EngineError, UsageError."""
    return _module(kind).open_model(path, options, single=single)


def open_together(kind: str, path: Path, options: EngineOptions, most: int | None) -> tuple[Engine, Answers]:
    """The same with a function for many requests: together where the engine can, else one after the other.

    `most` are the sequences, without it as many as there is memory for.
    """
    module = _module(kind)
    if hasattr(module, "open_together"):
        opened: tuple[Engine, Answers] = module.open_together(path, options, most)
        return opened
    from functools import partial

    from localllm.engines.together import one_by_one

    engine = module.open_model(path, options)
    return engine, partial(one_by_one, engine)


def _module(kind: str) -> Any:
    if kind not in ENGINES:
        raise UsageError(f"--engine {kind}: the engines are {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[kind])


def open_tokenizer(path: Path, template: str = "none") -> Any:
    """The tokenizer of a model file, with its chat template where one is asked for: a `local.Prompter`."""
    return importlib.import_module(ENGINES["llama.cpp"]).open_tokenizer(path, template)


def open_text_model(path: Path, options: EngineOptions) -> Any:
    """A `TextModel`: the logits of every position of a text."""
    return importlib.import_module(ENGINES["llama.cpp"]).open_text_model(path, options)
