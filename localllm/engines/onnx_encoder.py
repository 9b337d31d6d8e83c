"""Encoders on ONNX Runtime: embedding models, and masked language models.

What a graph takes and gives is read from it. Optimum's, transformers.js' and our own exports are known: input_ids,
attention_mask and token_type_ids or position_ids where the graph has them (batch x sequence), and last_hidden_state,
token_embeddings, sentence_embedding or logits. The tokenizer and what sentence-transformers noted lie beside the model,
or in the folder above `onnx/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm import hardware
from localllm.engines.interrupt import AbortFlag, abort_on_interrupt
from localllm.errors import BadModelFile, EngineError, ModelNotFound
from localllm.formats.sentence import Pooling, SentenceNotes, read_notes
from localllm.types import EngineOptions

if TYPE_CHECKING:
    import numpy as np

_BATCH = 2048  # tokens evaluated at once
_NO_LIMIT = 1 << 30  # what tokenizers write who know of no limit is larger
_MAX_TOKENIZER = 64 << 20  # bytes
_TYPES = {"tensor(int64)": "int64", "tensor(int32)": "int32"}


def open_embedder(path: Path, options: EngineOptions, pooling: Pooling | None = None) -> OnnxEmbedder:
    """Open an ONNX file or a folder with one. `pooling` overrides the model's own.

    Raises ModelNotFound, BadModelFile, EngineError.
    """
    return OnnxEmbedder(path, options, pooling)


def open_masked(path: Path, options: EngineOptions) -> OnnxMasked:
    """The same for a masked language model."""
    return OnnxMasked(path, options)


class _TerminateFlag(AbortFlag):
    """Ctrl-C ends the run that is under way."""

    def __init__(self, run_options: Any) -> None:
        super().__init__()
        self._options = run_options

    def put_up(self) -> None:
        super().put_up()
        self._options.terminate = True

    def take_down(self) -> None:
        super().take_down()
        self._options.terminate = False


class OnnxEncoder:
    """A session, its tokenizer, and arrays for a batch of ids."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        import onnxruntime

        self.model = find_model(path)
        self.home = _home(self.model)
        self._tokenizer = open_tokenizer(self.home)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # what fails comes as an exception
        settings.intra_op_num_threads = options.threads or hardware.physical_cores()
        try:
            self._session = onnxruntime.InferenceSession(str(self.model), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, which share no parent
            raise BadModelFile(f"{self.model} cannot be opened: {_reason(error)}") from None
        self._run_options = onnxruntime.RunOptions()
        self.abort = _TerminateFlag(self._run_options)
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._check_inputs()
        self.limit = min(options.context or _NO_LIMIT, *self._limits())

    def _check_inputs(self) -> None:
        unknown = [
            n for n in self._inputs if n not in ("input_ids", "attention_mask", "token_type_ids", "position_ids")
        ]
        if unknown or "input_ids" not in self._inputs:
            raise BadModelFile(
                f"{self.model} is no encoder: it wants {', '.join(unknown[:3]) or 'no input_ids'}",
                "localllm run is for models that generate text",
            )

    def _limits(self) -> Iterator[int]:
        """The most tokens of a text, by whoever says something of it."""
        yield int(self._json("tokenizer_config.json").get("model_max_length") or _NO_LIMIT)
        positions = self._json("config.json").get("max_position_embeddings")
        yield positions if isinstance(positions, int) and positions > 0 else _NO_LIMIT

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.home / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def run(self, batch: Sequence[Sequence[int]], output: str) -> tuple[np.ndarray, np.ndarray]:
        """An output of the graph for some texts' ids, and the mask: 1 for a token, 0 for padding."""
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
        feed = {n: arrays[n].astype(_TYPES.get(each.type, "int64"), copy=False) for n, each in self._inputs.items()}
        if self.abort.is_up:
            raise KeyboardInterrupt
        try:
            (found,) = self._session.run([output], feed, self._run_options)
        except Exception as error:
            if self.abort.is_up:
                raise KeyboardInterrupt from None
            raise EngineError(f"{self.model} failed: {_reason(error)}", "is it a model of another kind?") from None
        return found, mask

    def interruptible(self) -> AbstractContextManager[None]:
        return abort_on_interrupt(self.abort)

    def close(self) -> None:
        self._session = None


class OnnxEmbedder(OnnxEncoder):
    """An `Embedder`."""

    batch = _BATCH

    def __init__(self, path: Path, options: EngineOptions, pooling: Pooling | None = None) -> None:
        self._notes: SentenceNotes = read_notes(_home(find_model(path)))
        super().__init__(path, options)
        outputs = {each.name: each for each in self._session.get_outputs()}
        self._output = _vectors_of(outputs, self.model)
        self._pooled = len(outputs[self._output].shape or ()) == 2
        self.dimensions = _width(outputs[self._output], self.model)
        if self._notes.unknown and not self._pooled:
            raise BadModelFile(
                f"{self.home} makes its vectors with {', '.join(self._notes.unknown)[:80]} besides, which is not known",
                "an export with the output sentence_embedding has that inside",
            )
        self.pooling: Pooling = pooling or self._notes.pooling or "mean"
        said = pooling or self._notes.pooling or self._pooled
        self.notices = () if said else (f"{self.home.name} notes no pooling: the mean is taken (--pooling)",)
        self.names = (str(self._json("config.json").get("_name_or_path", "")),)
        self.prompts: Mapping[str, str] = {**self._notes.prompts, "": self._notes.default_prompt}

    def _limits(self) -> Iterator[int]:
        yield self._notes.limit or _NO_LIMIT
        yield from super()._limits()

    def encode(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        import numpy as np

        found, mask = self.run(batch, self._output)
        found = found.astype(np.float32, copy=False)
        return found if self._pooled else pool(found, mask, self.pooling)


class OnnxMasked(OnnxEncoder):
    """A `MaskedModel`."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        super().__init__(path, options)
        outputs = self._session.get_outputs()
        self._output = next((o.name for o in outputs if o.name == "logits" and len(o.shape or ()) == 3), "")
        if not self._output:
            names = ", ".join(o.name for o in outputs[:3])
            raise BadModelFile(
                f"{self.model} is no masked language model: it gives {names}",
                "localllm embed is for what gives vectors; a checkpoint whose class ends in ForMaskedLM has the head",
            )
        self.mask_token, self.mask = self._find_mask()

    def _find_mask(self) -> tuple[str, int]:
        """The token that stands for what is to be found, and its id. Raises BadModelFile."""
        files = ("tokenizer_config.json", "special_tokens_map.json")
        for token in (*(_content(self._json(name).get("mask_token")) for name in files), "[MASK]", "<mask>"):
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return token, found
        raise BadModelFile(f"the tokenizer in {self.home} has no mask token", "is it a masked language model?")

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        import numpy as np

        found, _ = self.run([tokens], self._output)
        logits: np.ndarray = found[0].astype(np.float32, copy=False)
        return logits

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


def find_model(path: Path) -> Path:
    """The ONNX file that a path means. Raises ModelNotFound, BadModelFile."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelNotFound(f"no such file: {path}", "name an ONNX file, or the folder it is in")
    for name in ("model.onnx", "onnx/model.onnx"):
        if (path / name).is_file():
            return path / name
    found = sorted([*path.glob("*.onnx"), *path.glob("onnx/*.onnx")])
    if len(found) == 1:
        return found[0]
    names = ", ".join(f.name for f in found[:5])
    raise BadModelFile(f"{path} holds {names or 'no ONNX model'}", "name one file" if found else "")


def _home(model: Path) -> Path:
    """The folder with the tokenizer: that of the model, or the one above."""
    folder = model.parent
    return folder if (folder / "tokenizer.json").exists() else folder.parent


def open_tokenizer(folder: Path) -> Any:
    """The tokenizers library's Tokenizer of a folder; it cuts and pads nothing. Raises ModelNotFound, BadModelFile."""
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelNotFound(f"there is no tokenizer.json beside the model, nor above it ({path})", "fetch it too")
    if path.stat().st_size > _MAX_TOKENIZER:
        raise BadModelFile(f"{path} has {path.stat().st_size} bytes, which no tokenizer has")
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # Rust's errors come as this class itself
        raise BadModelFile(f"{path} is no tokenizer: {error!s:.200}", "fetch it again") from None
    found.no_truncation()
    found.no_padding()
    return found


def _vectors_of(outputs: Mapping[str, Any], model: Path) -> str:
    """The output that holds vectors."""
    for name in ("sentence_embedding", "last_hidden_state", "token_embeddings"):
        if name in outputs:
            return name
    floats = [n for n, o in outputs.items() if "float" in o.type and len(o.shape or ()) in (2, 3) and n != "logits"]
    if floats:
        return floats[0]
    if "logits" in outputs:
        raise BadModelFile(f"{model} gives logits and no vectors", "localllm fill-mask is for masked language models")
    raise BadModelFile(f"{model} gives no vectors: its outputs are {', '.join(list(outputs)[:5])}")


def _width(output: Any, model: Path) -> int:
    width = output.shape[-1]
    if not isinstance(width, int):
        raise BadModelFile(f"{model} does not say how long its vectors are")
    return width


def _content(token: Any) -> str:
    """A special token as a configuration writes it: a text, or a table with its content."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _reason(error: Exception) -> str:
    """The line of ONNX Runtime's message that tells something."""
    text = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return text[0].rpartition(" : ")[2][:300]
