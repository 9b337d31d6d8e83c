"""Encoders on ONNX Runtime: embedding models, and masked language models.

What a graph takes and gives is read from it. Optimum's, transformers.js' and our own exports are known: input_ids,
attention_mask and token_type_ids or position_ids where the graph has them (batch x sequence), and last_hidden_state,
token_embeddings, sentence_embedding or logits. A decoder that makes embeddings may be exported with the caches that
generating wants; they are empty here, for a text is evaluated at once. The tokenizer and what sentence-transformers
noted lie beside the model, or in the folder above `onnx/`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from localllm import hardware
from localllm.engines import providers
from localllm.engines.interrupt import abort_on_interrupt
from localllm.engines.onnx_folder import Folder, read_folder
from localllm.engines.onnx_graph import find_caches, is_past
from localllm.engines.onnx_runner import RunFlag
from localllm.engines.onnx_session import ignored, open_session, run_error, runtime
from localllm.engines.onnx_tokenizer import content_of, load_tokenizer, read_json
from localllm.errors import BadModelFile
from localllm.formats.onnx import Model, Value, read_model
from localllm.formats.sentence import Pooling, SentenceNotes, read_notes
from localllm.types import EngineOptions

if TYPE_CHECKING:
    import numpy as np

_BATCH = 2048  # tokens evaluated at once
_NO_LIMIT = 1 << 30  # what tokenizers write who know of no limit is larger
_FLOATS = {"f32": "float32", "f16": "float16"}
_INPUTS = {"i64": "int64", "i32": "int32"}  # types of the inputs, and numpy's names of them


def open_embedder(path: Path, options: EngineOptions, pooling: Pooling | None = None) -> OnnxEmbedder:
    """Open an ONNX file or a folder with one. `pooling` overrides the model's own.

    Raises ModelNotFound, BadModelFile, EngineError.
    """
    return OnnxEmbedder(read_folder(path), options, pooling)


def open_masked(path: Path, options: EngineOptions) -> OnnxMasked:
    """The same for a masked language model."""
    return OnnxMasked(read_folder(path), options)


class OnnxEncoder:
    """A session, its tokenizer, and arrays for a batch of ids; `choose` finds the output that is wanted of a graph."""

    def __init__(self, folder: Folder, options: EngineOptions, choose: Callable[[Model], Value]) -> None:
        self._folder, self.home = folder, folder.tokenizer.parent
        self._tokenizer = load_tokenizer(folder.tokenizer)
        model = read_model(folder.model)
        self._caches = find_caches(model, folder.config, folder.genai) if _wants_caches(model) else ()
        self._inputs = _inputs_of(model, {cache.past for cache in self._caches})
        self._output = choose(model)
        wanted = "cpu" if options.gpu_layers == "0" else options.provider
        names = providers.to_try(wanted, runtime().get_available_providers())
        opened = open_session(model, None, names, options.threads or hardware.physical_cores())
        self._session, self.notices = opened.session, (*opened.notices, *ignored(options))
        self.abort = RunFlag()
        self.limit = min(options.context or _NO_LIMIT, *self._limits())

    def _limits(self) -> Iterator[int]:
        """The most tokens of a text, by whoever says something of it."""
        for told in (self._folder.settings.get("model_max_length"), self._folder.trained):
            yield int(told) if isinstance(told, (int, float)) and 0 < told < _NO_LIMIT else _NO_LIMIT

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [text.encode("utf-8", errors="replace").decode() for text in texts]  # a lone surrogate is no text
        return [encoding.ids for encoding in self._tokenizer.encode_batch(clean)]

    def run(self, batch: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """The output for some texts' ids in float32, and the mask: 1 for a token, 0 for padding."""
        import numpy as np

        width = max(map(len, batch))
        ids, mask = np.zeros((2, len(batch), width), np.int64)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.broadcast_to(np.arange(width), ids.shape),
        }
        feed = {name: arrays[name].astype(kind, copy=False) for name, kind in self._inputs.items()}
        for cache in self._caches:
            feed[cache.past] = np.zeros((len(batch), *cache.shape[1:]), _FLOATS[cache.type])
        try:
            (found,) = self._session.run([self._output.name], feed, self.abort.options)
        except Exception as error:  # pybind's exceptions have no common ancestor but this
            if self.abort.is_up:
                raise KeyboardInterrupt from None
            raise run_error(str(error)) from None
        return found.astype(np.float32, copy=False), mask

    def interruptible(self) -> AbstractContextManager[None]:
        return abort_on_interrupt(self.abort)

    def close(self) -> None:
        self._session = None


class OnnxEmbedder(OnnxEncoder):
    """An `Embedder`."""

    batch = _BATCH

    def __init__(self, folder: Folder, options: EngineOptions, pooling: Pooling | None = None) -> None:
        self._notes: SentenceNotes = read_notes(folder.tokenizer.parent)
        super().__init__(folder, options, _vectors_of)
        self._pooled = len(self._output.shape) == 2
        width = self._output.shape[-1] if len(self._output.shape) in (2, 3) else None
        if not isinstance(width, int):
            raise BadModelFile(f"{folder.model} does not say how long its vectors are")
        self.dimensions = width
        if self._notes.unknown and not self._pooled:
            raise BadModelFile(
                f"{self.home} makes its vectors with {', '.join(self._notes.unknown)[:80]} besides, which is not known",
                "an export with the output sentence_embedding has that inside",
            )
        self.pooling: Pooling = pooling or self._notes.pooling or "mean"
        if not (pooling or self._notes.pooling or self._pooled):
            self.notices = (*self.notices, f"{self.home.name} notes no pooling: the mean is taken (--pooling)")
        self.names = (str(folder.config.get("_name_or_path", "")),)
        self.prompts: Mapping[str, str] = {**self._notes.prompts, "": self._notes.default_prompt}

    def _limits(self) -> Iterator[int]:
        yield self._notes.limit or _NO_LIMIT
        yield from super()._limits()

    def encode(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        found, mask = self.run(batch)
        return found if self._pooled else pool(found, mask, self.pooling)


class OnnxMasked(OnnxEncoder):
    """A `MaskedModel`."""

    def __init__(self, folder: Folder, options: EngineOptions) -> None:
        super().__init__(folder, options, _logits_of)
        self.mask_token, self.mask = self._find_mask()

    def _find_mask(self) -> tuple[str, int]:
        """The token that stands for what is to be found, and its id. Raises BadModelFile."""
        tables = self._folder.settings, read_json(self.home / "special_tokens_map.json")
        for token in (*(content_of(table.get("mask_token")) for table in tables), "[MASK]", "<mask>"):
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return token, found
        raise BadModelFile(f"the tokenizer in {self.home} has no mask token", "is it a masked language model?")

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        found, _ = self.run([tokens])
        first: np.ndarray = found[0]
        return first

    def piece(self, token: int) -> str:
        return str(self._tokenizer.id_to_token(token))

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))


def pool(hidden: np.ndarray, mask: np.ndarray, pooling: Pooling) -> np.ndarray:
    """One vector of each text's tokens: hidden float32 (texts, tokens, dimensions), mask (texts, tokens) 1 or 0.

    The padding stands behind the tokens.
    """
    import numpy as np

    counts = mask.sum(axis=1)
    weights = (mask / counts[:, None]).astype(np.float32)
    found: np.ndarray
    if pooling == "cls":
        found = hidden[:, 0]
    elif pooling == "last":
        found = hidden[np.arange(len(hidden)), counts - 1]
    elif pooling == "max":
        found = np.where(mask[:, :, None] == 1, hidden, np.finfo(np.float32).min).max(axis=1)
    else:
        found = np.matmul(weights[:, None], hidden)[:, 0]
    return found


def _wants_caches(model: Model) -> bool:
    """Whether the graph is a decoder's without the last step, which makes tokens of its vectors."""
    has_logits = any(value.name == "logits" for value in model.outputs)
    return not has_logits and any(is_past(value.name) for value in model.inputs)


def _inputs_of(model: Model, caches: Collection[str]) -> dict[str, str]:
    """What the graph takes of a text, with numpy's name of its type. Raises BadModelFile where no text gives it."""
    known = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    taken = [value for value in model.inputs if value.name not in caches]
    unknown = [value.name for value in taken if value.name not in known]
    if unknown or "input_ids" not in {value.name for value in model.inputs}:
        raise BadModelFile(
            f"{model.path} is no encoder: it wants {', '.join(unknown[:3]) or 'no input_ids'}",
            "localllm run is for models that generate text",
        )
    for value in taken:
        if value.type not in _INPUTS or len(value.shape) != 2:
            raise BadModelFile(f"{model.path}: its input {value.name} is not two-dimensional, of whole numbers")
    if any(value.type not in _FLOATS for value in model.inputs if value.name in caches):
        raise BadModelFile(f"{model.path}: its caches are of bf16, which numpy has not", "take another quantization")
    return {value.name: _INPUTS[value.type] for value in taken}


def _vectors_of(model: Model) -> Value:
    """The output that holds vectors, of texts or of tokens. Raises BadModelFile."""
    outputs = {value.name: value for value in model.outputs}
    for name in ("sentence_embedding", "last_hidden_state", "token_embeddings"):
        if name in outputs:
            return outputs[name]
    if "logits" in outputs:
        hint = "localllm fill-mask is for masked language models"
        raise BadModelFile(f"{model.path} gives logits and no vectors", hint)
    floats = [v for v in model.outputs if v.type in ("f32", "f16") and len(v.shape) in (2, 3)]
    if not floats:
        raise BadModelFile(f"{model.path} gives no vectors: its outputs are {', '.join(list(outputs)[:5])}")
    return floats[0]


def _logits_of(model: Model) -> Value:
    """The output that holds the logits of tokens. Raises BadModelFile."""
    found = next((v for v in model.outputs if v.name == "logits" and len(v.shape) == 3), None)
    if found is None:
        raise BadModelFile(
            f"{model.path} is no masked language model: it gives {', '.join(v.name for v in model.outputs[:3])}",
            "localllm embed is for what gives vectors; a checkpoint whose class ends in ForMaskedLM has the head",
        )
    return found
