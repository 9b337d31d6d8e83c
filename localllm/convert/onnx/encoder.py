"""An encoder's graph of ONNX Runtime's fused operators: BERT's, with the head of a masked language model if it has one.

    ids -> embeddings and their norm -> [attention (+) norm -> feed-forward (+) norm] a layer -> vectors or logits

Inputs have the names that Optimum gives them, so that others run the model too: `input_ids`, `attention_mask` and
`token_type_ids` (batch, sequence) int64. Output: `last_hidden_state` (batch, sequence, hidden), or `logits` (batch,
sequence, vocabulary) of a masked language model; float32 whatever type the weights are kept in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from localllm.convert.checkpoint import Checkpoint
from localllm.convert.family import Family
from localllm.convert.onnx.builder import MICROSOFT, Builder
from localllm.convert.onnx.decoder import number
from localllm.convert.onnx.weights import Tensor, of_output
from localllm.convert.outputs import Output, Piece
from localllm.errors import BadModelFile

_HEAD = "cls.predictions."
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Encoder:
    """Numbers of a model."""

    architecture: str
    layers: int
    heads: int
    hidden: int
    inner: int
    vocabulary: int
    epsilon: float


def read(family: Family) -> Encoder:
    """The numbers of a checkpoint's family. Raises BadModelFile."""
    c = family.config
    return Encoder(
        family.architecture, c.layers, c.heads, c.hidden, family.feed_forward, family.vocabulary_size,
        number(family.metadata(), "attention.layer_norm_epsilon", _EPSILON),
    )  # fmt: skip


def tensors_of(family: Family) -> dict[str, Tensor]:
    """All tensors by their names in a GGUF; those of the head, which no GGUF has, by names of their own."""
    found = {output.name: of_output(output) for output in family.outputs()}
    if family.checkpoint.architecture.endswith("ForMaskedLM"):
        found |= _head(
            family.checkpoint,
            tied=family.config.with_defaults({"tie_word_embeddings": True}).flag("tie_word_embeddings"),
        )
    return found


def _head(checkpoint: Checkpoint, *, tied: bool) -> dict[str, Tensor]:
    """Names as older and newer files have them."""
    names = {
        "head.weight": ("transform.dense.weight",),
        "head.bias": ("transform.dense.bias",),
        "head_norm.weight": ("transform.LayerNorm.weight", "transform.LayerNorm.gamma"),
        "head_norm.bias": ("transform.LayerNorm.bias", "transform.LayerNorm.beta"),
        "output.bias": ("bias", "decoder.bias"),
        "output.weight": ("decoder.weight",),
    }
    found = {}
    for name, candidates in names.items():
        stored = next((checkpoint.tensors[_HEAD + c] for c in candidates if _HEAD + c in checkpoint.tensors), None)
        if stored is not None and not (tied and name == "output.weight"):
            found[name] = of_output(Output(name, stored.shape, (Piece(stored),)))
    return found


class EncoderGraph:
    """Builds the graph out of `tensors`, each of which it takes: one that is left over is an error.

    `half` keeps the matrices in float16, half of the space; they are widened when the model is opened.
    """

    def __init__(self, model: Encoder, tensors: Mapping[str, Tensor], b: Builder, *, half: bool) -> None:
        self.m, self.b, self._half = model, b, half
        self._left = dict(tensors)

    def build(self) -> ir.Model:
        """Raises BadModelFile for a tensor that is missing, misshapen or unknown."""
        m, b = self.m, self.b
        masked = "head.weight" in self._left
        names = ("input_ids", "attention_mask", "token_type_ids")
        shape = ir.Shape(["batch", "sequence"])
        inputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=shape) for name in names]
        ids, mask, types = (b.op("Cast", [value], to=ir.DataType.INT32) for value in inputs)
        words = self._table("token_embd.weight")
        x = self._embeddings(ids, types, words)
        for layer in range(m.layers):
            x = self._layer(f"blk.{layer}.", x, mask)
        result = self._logits(x, words) if masked else x
        if self._left:
            raise _bad(f"the tensor {next(iter(self._left))!r:.80} has no place in a graph of {m.architecture!r}")
        name, width = ("logits", m.vocabulary) if masked else ("last_hidden_state", m.hidden)
        return b.model(inputs, {name: result}, m.architecture, {name: ["batch", "sequence", width]})

    def _embeddings(self, ids: ir.Value, types: ir.Value, words: ir.Value) -> ir.Value:
        tables = [words, self._table("position_embd.weight"), self._table("token_types.weight")]
        inputs = [ids, types, *tables, *self._norm("token_embd_norm")]
        return self.b.ops("EmbedLayerNormalization", inputs, 2, MICROSOFT, epsilon=self.m.epsilon)[0]

    def _layer(self, prefix: str, x: ir.Value, mask: ir.Value) -> ir.Value:
        m, b = self.m, self.b
        parts = [f"{prefix}attn_{part}" for part in ("q", "k", "v")]
        projected = [self._product(x, part, m.hidden, m.hidden) for part in parts]
        biases = b.stored(b.data.vector(*(self._take(f"{part}.bias", m.hidden) for part in parts)))
        y = b.op("MultiHeadAttention", [*projected, biases, mask], MICROSOFT, num_heads=m.heads)
        x = self._join(x, self._product(y, f"{prefix}attn_output", m.hidden, m.hidden), prefix, "attn_output")
        y = self._product(x, f"{prefix}ffn_up", m.inner, m.hidden)
        y = b.op("BiasGelu", [y, self._vector(f"{prefix}ffn_up.bias", m.inner)], MICROSOFT)
        y = self._product(y, f"{prefix}ffn_down", m.hidden, m.inner)
        return self._join(x, y, prefix, "ffn_down", "layer_output_norm")

    def _join(self, x: ir.Value, y: ir.Value, prefix: str, part: str, norm: str = "attn_output_norm") -> ir.Value:
        """The norm of x + y + the bias of what made y."""
        inputs = [y, x, *self._norm(prefix + norm), self._vector(f"{prefix}{part}.bias", self.m.hidden)]
        return self.b.op("SkipLayerNormalization", inputs, MICROSOFT, epsilon=self.m.epsilon)

    def _logits(self, x: ir.Value, words: ir.Value) -> ir.Value:
        """Of each token, by the matrix of the embeddings unless the head has its own."""
        m, b = self.m, self.b
        x = self._product(x, "head", m.hidden, m.hidden)
        x = b.op("BiasGelu", [x, self._vector("head.bias", m.hidden)], MICROSOFT)
        x = b.op("LayerNormalization", [x, *self._norm("head_norm")], axis=-1, epsilon=m.epsilon)
        table = self._table("output.weight") if "output.weight" in self._left else words
        y = b.op("FusedMatMul", [x, table], MICROSOFT, transB=1)
        return b.op("Add", [y, self._vector("output.bias", m.vocabulary)])

    # --- tensors ----------------------------------------------------------------------------------------------------

    def _take(self, name: str, *shape: int) -> Tensor:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise _bad(f"it lacks the tensor {name!r}")
        if shape and tensor.shape != shape:
            raise _bad(f"the tensor {name!r} has the shape {tensor.shape} instead of {shape}")
        return tensor

    def _vector(self, name: str, size: int) -> ir.Value:
        return self.b.stored(self.b.data.vector(self._take(name, size)))

    def _norm(self, name: str) -> list[ir.Value]:
        return [self._vector(f"{name}.{part}", self.m.hidden) for part in ("weight", "bias")]

    def _product(self, x: ir.Value, name: str, rows: int, columns: int) -> ir.Value:
        tensor = self._take(f"{name}.weight", rows, columns)
        if self._half:
            return self.b.op("FusedMatMul", [x, self._widened(tensor)], MICROSOFT, transB=1)
        return self.b.product(x, self.b.data.matrix(tensor))

    def _table(self, name: str) -> ir.Value:
        """A table of embeddings, a row each."""
        tensor = self._take(name)
        if len(tensor.shape) != 2 or tensor.columns != self.m.hidden:
            raise _bad(f"the tensor {name!r} has the shape {tensor.shape}")
        if self._half:
            return self._widened(tensor)
        return self.b.stored(self.b.data.matrix(tensor).values)

    def _widened(self, tensor: Tensor) -> ir.Value:
        """A matrix that is kept in float16."""
        region = self.b.data.array(tensor.name, tensor.shape, tensor.whole, "float16")
        return self.b.op("Cast", [self.b.stored(region)], to=ir.DataType.FLOAT)


def _bad(reason: str) -> BadModelFile:
    return BadModelFile(f"the encoder cannot be exported to ONNX: {reason}")
