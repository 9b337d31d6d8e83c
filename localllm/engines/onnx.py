"""Opens an ONNX model on ONNX Runtime: graph checked, folder read, provider chosen, then the native load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from localllm import fit, hardware
from localllm.engines import providers
from localllm.engines.huge_pages import use_huge_pages
from localllm.engines.local import LocalEngine, Prompter
from localllm.engines.onnx_folder import Folder, read_folder
from localllm.engines.onnx_graph import Interface, interface
from localllm.engines.onnx_model import Limits, OnnxModel
from localllm.engines.onnx_runner import RunFlag
from localllm.engines.onnx_scorer import OnnxScorer
from localllm.engines.onnx_session import NOT_HERE, ignored, open_session, runtime
from localllm.engines.onnx_tokenizer import JsonTokenizer
from localllm.errors import OutOfMemory, UsageError
from localllm.formats.onnx import Model, read_model
from localllm.formats.onnx_edit import edited
from localllm.protocols import ModelDescription, Place
from localllm.text.template import ChatTemplate, template_source
from localllm.types import EngineOptions

_Kind = TypeVar("_Kind", bound=OnnxModel)
_NOT_HERE = ("cache_type_k", "cache_type_v", *NOT_HERE)
_SIZES = {"f32": 4, "f16": 2, "bf16": 2}


def open_model(path: Path, options: EngineOptions, *, single: bool = False) -> LocalEngine:
    """Raises ModelNotFound, BadModelFile, OutOfMemory, EngineError, UsageError."""
    folder = read_folder(path)
    model, notices = load(folder, options)
    if not single:  # it takes a quarter of a second for 200 MB, which one answer may not win back
        use_huge_pages()
    template: ChatTemplate | None = None
    try:
        chosen, notice = template_source(options.template, folder.template, _is_chat_model(folder), model)
        template = ChatTemplate(chosen) if chosen else None
        return LocalEngine(model, template, notices=(*notices, *([notice] if notice else [])), single=single)
    except BaseException:
        model.close()
        raise


def open_tokenizer(path: Path, template: str) -> Prompter:
    """The tokenizer and the chat template alone. Raises ModelNotFound, BadModelFile, UsageError."""
    folder = read_folder(path)
    vocabulary = JsonTokenizer(folder.tokenizer, folder.settings, folder.ends)
    chosen, notice = template_source(template, folder.template, _is_chat_model(folder), vocabulary)
    return Prompter(vocabulary, ChatTemplate(chosen) if chosen else None, notices=(notice,) if notice else ())


def open_bare(path: Path, options: EngineOptions) -> tuple[OnnxModel, Place]:
    """A model without its template, and the provider that computes it."""
    model, _ = load(read_folder(path), options)
    use_huge_pages()
    return model, Place(providers.full_name(model.provider).removesuffix("ExecutionProvider"))


def open_scorer(path: Path, options: EngineOptions) -> OnnxScorer:
    """The same for whatever measures a model: no template, the logits of every position."""
    return _load(read_folder(path), options, OnnxScorer, last_only=False)[0]


open_text_model = open_scorer


def load(folder: Folder, options: EngineOptions) -> tuple[OnnxModel, tuple[str, ...]]:
    """The model without its template, and what the user should know."""
    return _load(folder, options, OnnxModel, last_only=True)


def _load(
    folder: Folder, options: EngineOptions, kind: type[_Kind], *, last_only: bool
) -> tuple[_Kind, tuple[str, ...]]:
    if options.lora:
        raise UsageError("--lora is for GGUF models", "merge the adapter before the export")
    names = providers.to_try(
        "cpu" if options.gpu_layers == "0" else options.provider, runtime().get_available_providers()
    )
    model = read_model(folder.model)
    face = interface(model, folder.config, folder.genai)
    limits = _limits(folder, face, options)
    _require_memory(model, face, limits.context)
    made = edited(model, face.logits.name if last_only and face.keep is None else None)
    opened = open_session(model, made, names, options.threads or hardware.physical_cores())
    loaded = kind(
        opened.session, face, opened.provider, limits, (folder.tokenizer, folder.settings, folder.ends),
        flag=RunFlag(), single=made is not None and made.last_only, description=describe(model, folder),
    )  # fmt: skip
    return loaded, (*opened.notices, *ignored(options, _NOT_HERE))


def describe(model: Model, folder: Folder) -> ModelDescription:
    """What a model is called; a matrix that the configuration calls tied counts once, though it be there twice."""
    name = str(folder.config.get("model_type") or _genai_type(folder) or "unknown")
    parameters = model.parameters - (model.twice() if folder.config.get("tie_word_embeddings") is True else 0)
    return ModelDescription(f"{name} {model.kind} ONNX", model.total_size, parameters)


def _genai_type(folder: Folder) -> object:
    model = folder.genai.get("model")
    return model.get("type") if isinstance(model, dict) else None


def _limits(folder: Folder, face: Interface, options: EngineOptions) -> Limits:
    trained = folder.trained or face.longest or fit.DEFAULT_CONTEXT
    most = min(trained, face.longest) if face.longest else trained
    if options.context and face.longest and options.context > face.longest:
        raise UsageError(
            f"--context {options.context}: the model's tables of positions end at {face.longest}",
            f"--context {face.longest} is the most",
        )
    return Limits(options.context or min(most, fit.DEFAULT_CONTEXT), trained)


def _require_memory(model: Model, face: Interface, context: int) -> None:
    """Raise OutOfMemory where weights and caches are more than there is: the system would kill the process."""
    per_token = sum(_SIZES[c.type] * _elements(c.shape) for c in face.caches if c.axis is not None)
    need, memory = per_token * context, hardware.memory()
    weights = model.total_size
    if weights + need <= memory.total and need <= memory.available:
        return
    room = min(memory.total - weights, memory.available)
    less = max(0, room) // max(1, per_token) // 256 * 256
    raise OutOfMemory(
        f"{model.path.name} needs {weights >> 20} MiB for weights and {need >> 20} MiB for a context of {context}; "
        f"{memory.available >> 20} of {memory.total >> 20} MiB are free",
        f"--context {less} would fit" if less else "take a smaller quantization, or a smaller model",
    )


def _elements(shape: tuple[int, ...]) -> int:
    """Numbers that one token takes in a cache of this shape."""
    product = 1
    for size in shape:
        product *= size or 1
    return product


def _is_chat_model(folder: Folder) -> bool:
    """Whether a name by which the model goes calls it one that was tuned for dialogue."""
    words = re.split(r"[^a-z0-9]+", f"{folder.config.get('_name_or_path', '')} {folder.tokenizer.parent.name}".lower())
    return any(word in words for word in ("instruct", "chat", "it"))
