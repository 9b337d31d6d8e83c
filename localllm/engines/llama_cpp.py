"""Opens a GGUF file on llama.cpp: header checked, fit decided, template chosen, then the native load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from localllm import fit, hardware
from localllm.engines import native
from localllm.engines.llama_embed import LlamaEmbedder, is_encoder
from localllm.engines.llama_model import BATCH, LlamaModel
from localllm.engines.local import LocalEngine, Prompter
from localllm.engines.scorer import Scorer
from localllm.engines.vocabulary import VocabularyOnly
from localllm.errors import EngineError, UsageError
from localllm.formats.gguf import Header, read_header, read_model
from localllm.formats.sentence import Pooling
from localllm.protocols import Answers, Place
from localllm.text.template import BUILT_IN, ChatTemplate, template_source
from localllm.types import EngineOptions

if TYPE_CHECKING:
    from localllm.engines.speculation import Draft

_Kind = TypeVar("_Kind", bound=LlamaModel)
_TOKENS_COMPARED = 2000  # of two vocabularies
_CACHES_SHARE = 4  # the caches of many sequences take this part of the memory that is free


def open_model(path: Path, options: EngineOptions, *, single: bool = False) -> LocalEngine:
    """Raises ModelNotFound, BadModelFile, OutOfMemory, EngineError, UsageError."""
    return _open(read_model(path), options, LlamaModel, single=single)[0]


def open_together(path: Path, options: EngineOptions, most: int | None) -> tuple[LocalEngine, Answers]:
    """The same with a function that answers many requests at once, `most` of them or as many as there is memory for."""
    from localllm.engines.llama_batch import Sequences
    from localllm.engines.together import MOST, Together

    header = read_model(path)
    engine, model = _open(header, options, Sequences, single=False)

    def sequences_for(tokens: int) -> int:
        need = fit.estimate(header, tokens, options.cache_type_k, options.cache_type_v)
        return hardware.memory().available // _CACHES_SHARE // max(1, need.kv_cache)

    return engine, Together(engine, model, most or MOST, sequences_for if most is None else lambda _: most).answers


def open_draft(path: Path, options: EngineOptions, model: LlamaModel) -> Draft:
    """A small model that guesses for `model`. Raises UsageError where it has other tokens, and as `open_model` does."""
    from localllm.engines.speculation import Draft

    header = read_model(path)
    small = load(header, replace(options, context=model.context, lora=()))
    ids = range(0, model.vocabulary_size, max(1, model.vocabulary_size // _TOKENS_COMPARED))
    if small.vocabulary_size != model.vocabulary_size or any(small.piece(i) != model.piece(i) for i in ids):
        small.close()
        raise UsageError(f"--draft: {path.name} has another vocabulary than the model", "name one of the same family")
    return Draft(small)


def _open(header: Header, options: EngineOptions, kind: type[_Kind], *, single: bool) -> tuple[LocalEngine, _Kind]:
    own = header.metadata.get("tokenizer.chat_template")
    # A template that is known already starts its worker now, so that both load side by side.
    chosen = _known_template(options.template, own)
    template = ChatTemplate(chosen) if chosen else None
    model: _Kind | None = None
    try:
        model = _load(header, options, kind)
        notice = ""
        if template is None:
            chosen, notice = template_source(options.template, own, is_chat_model(header), model)
            template = ChatTemplate(chosen) if chosen else None
        return LocalEngine(model, template, notices=(notice,) if notice else (), single=single), model
    except BaseException:
        if model is not None:
            model.close()
        if template is not None:
            template.close()
        raise


def open_tokenizer(path: Path, template: str) -> Prompter:
    """The vocabulary and the chat template alone. Raises ModelNotFound, BadModelFile, UsageError."""
    header = read_header(path)
    vocabulary = VocabularyOnly(path)
    try:
        own = header.metadata.get("tokenizer.chat_template")
        chosen, notice = template_source(template, own, is_chat_model(header), vocabulary)
        notices = (notice,) if notice else ()
        return Prompter(vocabulary, ChatTemplate(chosen) if chosen else None, notices=notices)
    except BaseException:
        vocabulary.close()
        raise


def open_scorer(path: Path, options: EngineOptions) -> Scorer:
    """The same for whatever measures a model: no template, the logits of many positions."""
    return _load(read_model(path), replace(options, context=BATCH), Scorer)


def open_text_model(path: Path, options: EngineOptions) -> Scorer:
    """One text's logits, within the context that the options or the model allow."""
    return _load(read_model(path), options, Scorer)


def open_embedder(path: Path, options: EngineOptions, pooling: Pooling | None = None) -> LlamaEmbedder:
    """A model for vectors of texts; `pooling` overrides the file's own."""
    header = read_model(path)
    model = _load(header, replace(options, context=options.context and min(options.context, BATCH)), LlamaEmbedder)
    model.names = tuple(str(header.metadata.get(f"general.{key}", "")) for key in ("name", "basename"))
    try:
        model.pool_by(pooling, header.get("pooling_type", None))
    except BaseException:
        model.close()
        raise
    return model


def open_bare(path: Path, options: EngineOptions) -> tuple[LlamaModel, Place]:
    """A model without its template, and the backends that compute it."""
    model = load(read_model(path), options)
    backends = ",".join(dict.fromkeys(d.name.rstrip("0123456789") for d in native.devices()))
    gpus = ", ".join(d.description for d in native.devices() if d.kind in ("gpu", "igpu"))
    return model, Place(backends, gpus, model.gpu_layers)


def load(header: Header, options: EngineOptions) -> LlamaModel:
    """Decide where the layers go, refuse what cannot fit, and load."""
    return _load(header, options, LlamaModel)


def _load(header: Header, options: EngineOptions, kind: type[_Kind]) -> _Kind:
    if not issubclass(kind, LlamaEmbedder) and is_encoder(header.metadata, header.architecture):
        # llama.cpp would end the process where it is asked for logits that such a model has not.
        raise EngineError(
            f"{header.path} is an encoder: it makes embeddings and generates no text",
            "localllm embed is for these; run, chat and evaluate need a chat model",
        )
    context = options.context or min(header.get("context_length", fit.DEFAULT_CONTEXT), fit.DEFAULT_CONTEXT)
    repacked = hardware.repacked_types()

    def need_at(tokens: int, type_k: str, type_v: str) -> fit.Need:
        flash = options.flash_attention != "off"
        return fit.estimate(
            header, tokens, type_k, type_v, flash_attention=flash, mmap=options.mmap, repacked_types=repacked
        )

    types = options.cache_type_k, options.cache_type_v
    need = need_at(context, *types)
    gpus = [d for d in native.devices() if d.kind in ("gpu", "igpu")]
    layers = gpu_layers(options.gpu_layers, need, sum(d.memory_free for d in gpus))
    fit.require_memory(header.path.name, need_at, context, types, layers, hardware.memory())
    return kind(header.path, options, gpu_layers=layers, threads=options.threads or hardware.physical_cores())


def gpu_layers(option: str, need: fit.Need, free: int) -> int:
    """How many layers (the output counts as one) go to the GPUs, whose free memory together is `free` bytes."""
    if option == "auto":
        return fit.layers_on_gpu(need, free)
    if option == "all":
        return need.layers + 1
    if option.isdecimal():
        return min(int(option), need.layers + 1)
    raise UsageError(f"--gpu-layers {option!r} is not auto, all or a number")


def is_chat_model(header: Header) -> bool:
    """Whether the metadata calls the model one that was tuned for dialogue."""
    words = " ".join(
        str(header.metadata.get(f"general.{key}", "")) for key in ("finetune", "name", "basename", "tags")
    ).lower()
    return any(word in words.replace("_", "-").split() or f"-{word}" in words for word in ("instruct", "chat", "it"))


def _known_template(option: str, own: object) -> str | None:
    if option in BUILT_IN:
        return BUILT_IN[option][0]
    return own if option == "auto" and isinstance(own, str) else None
