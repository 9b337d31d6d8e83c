"""An `Embedder` on llama.cpp: texts packed side by side into one evaluation, pooled by llama.cpp as the GGUF says."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.engines.llama_model import LlamaModel
from localllm.engines.native import log
from localllm.errors import BadModelFile, EngineError
from localllm.formats.sentence import Pooling
from localllm.types import EngineOptions

if TYPE_CHECKING:
    import numpy as np

_POOLING: dict[Pooling, int] = {"mean": 1, "cls": 2, "last": 3}  # by llama.cpp's llama_pooling_type
_UNSPECIFIED, _NONE, _RANK = -1, 0, 4
_SEQUENCES = 64  # texts evaluated at once


class LlamaEmbedder(LlamaModel):
    """Raises EngineError and its children.

    `pooling` overrides what the file says; where it says nothing the mean is taken, and told in `notices`.
    """

    # Every token of a batch is compared with every other, other texts' too: small batches cost least.
    batch = 256

    def __init__(self, path: Path, options: EngineOptions, *, gpu_layers: int, threads: int) -> None:
        super().__init__(path, options, gpu_layers=gpu_layers, threads=threads)
        api = self._llama
        self.dimensions = int(api.llama_model_n_embd_out(self._model))
        self.limit = min(options.context or self.trained_context, self.trained_context)
        self.prompts: Mapping[str, str] = {}
        self.names: tuple[str, ...] = ()
        self.notices: tuple[str, ...] = ()
        self._room = 0

    def pool_by(self, chosen: Pooling | None, said: int | None) -> None:
        """Settle the pooling: what was `chosen`, or what the file `said`. Raises BadModelFile."""
        if chosen is not None and chosen not in _POOLING:
            raise BadModelFile(f"llama.cpp does not pool by {chosen}", f"choose {', '.join(_POOLING)}")
        if chosen is None and said == _RANK:
            raise BadModelFile(f"{self._path} ranks pairs of texts and makes no embeddings of single ones")
        self._pooling = _POOLING["mean"] if chosen is None else _POOLING[chosen]
        if chosen is None and said in _POOLING.values():
            self._pooling = int(said or _NONE)
        elif chosen is None:
            self.notices = (f"{self._path.name} notes no pooling: the mean is taken (--pooling)",)

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenize(text, begin=True) for text in texts]

    def encode(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        import numpy as np

        found = np.empty((len(batch), self.dimensions), np.float32)
        for start in range(0, len(batch), _SEQUENCES):
            part = batch[start : start + _SEQUENCES]
            self._evaluate(part)
            for number in range(len(part)):
                vector = self._llama.llama_get_embeddings_seq(self._context, number)
                if not vector:
                    raise EngineError(f"llama.cpp made no embedding of {self._path.name}")
                found[start + number] = np.ctypeslib.as_array(vector, (self.dimensions,))
        return found

    def _evaluate(self, texts: Sequence[Sequence[int]]) -> None:
        """Have the vectors of at most `_SEQUENCES` texts computed."""
        import numpy as np

        api = self._llama
        lengths = [len(ids) for ids in texts]
        self._make_room(sum(lengths))
        tokens = np.concatenate([np.asarray(ids, np.int32) for ids in texts])
        positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        numbers = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
        pointers = numbers.ctypes.data + np.arange(len(tokens), dtype=np.uintp) * numbers.itemsize
        ones, flags = np.ones(len(tokens), np.int32), np.ones(len(tokens), np.int8)
        batch = api.llama_batch(n_tokens=len(tokens))
        arrays = {"token": tokens, "pos": positions, "n_seq_id": ones, "seq_id": pointers, "logits": flags}
        kinds = dict(batch._fields_)
        for name, array in arrays.items():
            setattr(batch, name, ctypes.cast(array.ctypes.data, kinds[name]))
        if self._memory:
            api.llama_memory_clear(self._memory, True)
        self._raise_if_interrupted()
        evaluate = api.llama_decode if self._memory else api.llama_encode
        result = evaluate(self._context, batch)
        self._raise_if_interrupted()
        if result != 0:
            reason = "; ".join(log.take_errors()) or f"the result was {result}"
            raise EngineError(f"llama.cpp could not evaluate {len(tokens)} tokens: {reason}")

    def _make_room(self, tokens: int) -> None:
        """A context in which so many tokens are one evaluation: pooling sees no more than that."""
        if tokens <= self._room:
            return
        # llama.cpp tries its graph with as many tokens as sequences go into evenly, and fails where the two differ.
        self._room = -(-max(tokens, self.batch) // _SEQUENCES) * _SEQUENCES
        self._make_context(
            self._room,
            n_batch=self._room,
            n_ubatch=self._room,
            n_seq_max=_SEQUENCES,
            n_outputs_max=self._room,
            pooling_type=self._pooling,
            embeddings=True,
            kv_unified=True,  # texts of any lengths share the room
        )


def is_encoder(metadata: Mapping[str, Any], architecture: str) -> bool:
    """Whether a GGUF's model sees its whole text at once and so cannot generate any."""
    causal = metadata.get(f"{architecture}.attention.causal", True)
    return causal is False or "bert" in architecture or architecture in ("t5encoder", "gemma-embedding")
