"""A checkpoint or a GGUF -> a folder with model.onnx, its weights, tokenizer, chat template and configurations.

A GGUF's blocks are carried over as they are, without quantizing anew. Whatever is quantized here is quantized as for a
GGUF of that type and then carried over, so that both engines compute with the same weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.convert.architectures import family_of
from localllm.convert.checkpoint import open_checkpoint
from localllm.convert.onnx import beside, decoder, rope, weights
from localllm.convert.onnx.weights import FLOATS, WIDENED, DataFile, Report, Tensor
from localllm.errors import BadModelFile, LocalLLMError, UsageError
from localllm.formats.gguf import read_shards
from localllm.whole import replacing_folder

if TYPE_CHECKING:
    import onnx_ir as ir

    from localllm.convert.family import Family

QUANTS = ("auto", "q4", "q8", "f16", "f32")
INT8, EXACT = 4, 0  # accuracy levels of MatMulNBits: activations in 8 bits, as llama.cpp has them, or as they are
_QUANTIZED = {"q4": "Q4_0", "q8": "Q8_0"}
_WIDER = ("token_embd.weight", "output.weight")  # kept in 8 bits, as llama.cpp keeps them in better types
ENCODERS = ("bert",)  # encoder.py knows their graph; it is imported on use
_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class Plan:
    """What an export will write: the graph, the data file of `size` bytes, the texts beside them."""

    decoder: decoder.Decoder | None
    graph: ir.Model
    data: DataFile
    texts: dict[str, bytes]
    notices: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.data.size


def plan(source: Path, quant: str = "auto", accuracy: int = INT8) -> Plan:
    """Read everything but the weights. `quant` is one of QUANTS; "auto" keeps what the source has.

    Raises UsageError, UnknownArchitecture, BadModelFile, ModelNotFound.
    """
    return _of_checkpoint(source, quant, accuracy) if source.is_dir() else _of_gguf(source, quant, accuracy)


def _of_checkpoint(folder: Path, quant: str, accuracy: int) -> Plan:
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint)
    if family.architecture in ENCODERS:
        return _of_encoder(family, quant, accuracy)
    metadata = family.metadata()
    decoder.require_known(family.architecture, metadata)
    config = checkpoint.config
    window = config.integer("sliding_window") if _slides_everywhere(checkpoint.architecture, config) else 0
    model = decoder.read(family.architecture, metadata, family.vocabulary_size, window)
    tensors = {output.name: weights.of_output(output) for output in family.outputs()}
    graph, data = _build(model, metadata, tensors, quant, accuracy)
    texts = beside.of_checkpoint(checkpoint, model)
    return Plan(model, graph, data, texts, tuple(n for n in family.notices if "llama.cpp" not in n))


def _of_encoder(family: Family, quant: str, accuracy: int) -> Plan:
    """Embeddings stay floats; `q4` and `q8` are for the matrices that a text goes through."""
    from localllm.convert.onnx import encoder
    from localllm.convert.onnx.builder import Builder

    model, tensors = encoder.read(family), encoder.tensors_of(family)
    recoded = {name: _recoded(t, quant) if _is_product(name) else t for name, t in tensors.items()}
    builder = Builder(DataFile(), accuracy)
    graph = encoder.EncoderGraph(model, recoded, builder, half=quant == "f16").build()
    return Plan(None, graph, builder.data, beside.of_encoder(family.checkpoint), ())


def _is_product(name: str) -> bool:
    return name.startswith("blk.") or name == "head.weight"


def _slides_everywhere(architecture: str, config: Any) -> bool:
    return architecture.startswith("Mistral") and config.has("sliding_window")


def _of_gguf(path: Path, quant: str, accuracy: int) -> Plan:
    headers = read_shards(path)
    first = headers[0]
    prefix = f"{first.architecture}."
    metadata = {k.removeprefix(prefix): v for k, v in first.metadata.items() if k.startswith(prefix)}
    decoder.require_known(first.architecture, metadata)
    tensors = {name: tensor for header in headers for name, tensor in weights.of_header(header).items()}
    embeddings = tensors.get("token_embd.weight")
    model = decoder.read(first.architecture, metadata, embeddings.rows if embeddings else 0)
    graph, data = _build(model, metadata, tensors, quant, accuracy)
    return Plan(model, graph, data, beside.of_header(first, model), ())


def _build(
    model: decoder.Decoder, metadata: Mapping[str, Any], tensors: dict[str, Tensor], quant: str, accuracy: int
) -> tuple[ir.Model, DataFile]:
    from localllm.convert.onnx.builder import Builder
    from localllm.convert.onnx.graph import Graph

    factors = {name.removesuffix(".weight"): tensors.pop(name).whole() for name in _FACTORS if name in tensors}
    tables = rope.tables(model, metadata, factors)
    data = DataFile("float16" if quant == "f16" else "float32")
    recoded = {name: _recoded(tensor, quant) for name, tensor in tensors.items()}
    return Graph(model, recoded, tables, Builder(data, accuracy)).build(), data


def _recoded(tensor: Tensor, quant: str) -> Tensor:
    """A tensor in the type that was asked for. Raises UsageError where it would be quantized twice, BadModelFile."""
    if tensor.type in WIDENED and quant not in ("f16", "f32"):
        raise BadModelFile(
            f"the tensor {tensor.name!r} is of the type {tensor.type}, which ONNX Runtime's blocks cannot hold",
            "--quant f32 or f16 keeps what it stands for; a file of another type stays small",
        )
    if quant == "auto" or len(tensor.shape) < 2:
        return tensor
    if quant not in _QUANTIZED:
        return tensor.as_type("F32")
    kind = "Q8_0" if tensor.name in _WIDER else _QUANTIZED[quant]
    if tensor.type not in FLOATS and tensor.type != kind:
        raise UsageError(
            f"{tensor.name} is quantized already ({tensor.type}), and --quant {quant} would quantize it again",
            "without --quant its blocks are carried over as they are",
        )
    return tensor if tensor.columns % 32 else tensor.as_type(kind)


def write(planned: Plan, target: Path, report: Report = lambda done, total: None, *, force: bool = False) -> None:
    """Write the folder, whole or not at all. Raises LocalLLMError where it does not fit, BadModelFile, OSError."""
    from localllm.convert.onnx.builder import DATA, save

    free = shutil.disk_usage(target.parent).free
    if planned.size > free:
        raise LocalLLMError(
            f"{target.name} needs {planned.size >> 20} MiB, and {target.parent} has {free >> 20} MiB left",
            "free some, choose a smaller --quant, or name a FOLDER elsewhere with -o",
        )
    with replacing_folder(target, beside.NAMES if force else frozenset()) as folder:
        planned.data.write(folder / DATA, report)
        save(planned.graph, folder / "model.onnx")
        for name, text in planned.texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(text)
