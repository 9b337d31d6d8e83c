"""Engines: what turns a request into chunks. Each kind is imported when it is first opened."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, UsageError
from localllm.formats.sentence import POOLINGS
from localllm.protocols import Answers, Embedder, Engine, MaskedModel, Place
from localllm.types import EngineOptions

# kind -> the module whose `open_model(path, options, single=...)` makes an Engine.
ENGINES = {
    "llama.cpp": "localllm.engines.llama_cpp",
    "onnx": "localllm.engines.onnx",
    "fake": "localllm.engines.fake",
}
_ENCODERS = "localllm.engines.onnx_encoder"


def open_engine(kind: str, path: Path, options: EngineOptions, *, single: bool = False) -> Any:
    """Open a model file; `single` promises one request only. Raises BadModelFile, EngineError, UsageError."""
    return _module(kind, path).open_model(path, options, single=single)


def open_together(kind: str, path: Path, options: EngineOptions, most: int | None) -> tuple[Engine, Answers]:
    """The same with a function for many requests: together where the engine can, else one after the other.

    `most` are the sequences, without it as many as there is memory for.
    """
    module = _module(kind, path)
    if hasattr(module, "open_together"):
        opened: tuple[Engine, Answers] = module.open_together(path, options, most)
        return opened
    from functools import partial

    from localllm.engines.together import one_by_one

    engine = module.open_model(path, options)
    return engine, partial(one_by_one, engine)


def kind_of(path: Path) -> str:
    """The engine that a model file is for."""
    return "onnx" if path.suffix.lower() == ".onnx" or path.is_dir() else "llama.cpp"


def _module(kind: str, path: Path) -> Any:
    kind = kind_of(path) if kind == "auto" else kind
    if kind not in ENGINES:
        raise UsageError(f"--engine {kind}: the engines are auto, {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[kind])


def open_embedder(path: Path, options: EngineOptions, pooling: str = "") -> Embedder:
    """Open a GGUF, an ONNX file or a folder with one for vectors of texts; `pooling` overrides the model's own.

    `jobs.embed.embed` takes it from there. Raises ModelNotFound, BadModelFile, EngineError, UsageError.
    """
    if pooling and pooling not in POOLINGS:
        raise UsageError(f"--pooling {pooling}: choose {', '.join(POOLINGS)}")
    module = ENGINES["llama.cpp"] if path.suffix.lower() == ".gguf" else _ENCODERS
    embedder: Embedder = importlib.import_module(module).open_embedder(path, options, pooling or None)
    return embedder


def open_masked(path: Path, options: EngineOptions) -> MaskedModel:
    """Open an ONNX file, or a folder with one, that holds a masked language model. Raises the same."""
    if path.suffix.lower() == ".gguf":
        raise BadModelFile(
            f"{path} is a GGUF, which has no head of a masked language model",
            "localllm convert CHECKPOINT --to onnx makes what fill-mask takes",
        )
    model: MaskedModel = importlib.import_module(_ENCODERS).open_masked(path, options)
    return model


def open_tokenizer(path: Path, template: str = "none") -> Any:
    """The tokenizer of a model file, with its chat template where one is asked for: a `local.Prompter`."""
    return _module("auto", path).open_tokenizer(path, template)


def open_text_model(path: Path, options: EngineOptions) -> Any:
    """A `TextModel`: the logits of every position of a text."""
    return _module("auto", path).open_text_model(path, options)


def open_bare(path: Path, options: EngineOptions) -> tuple[Any, Place]:
    """A `TokenModel` that can `describe` itself, without a template, and what computes it."""
    opened: tuple[Any, Place] = _module("auto", path).open_bare(path, options)
    return opened


def open_scorer(path: Path, options: EngineOptions) -> Any:
    """A `Scorer`: the logits of many positions of many sequences."""
    return _module("auto", path).open_scorer(path, options)
