"""A checkpoint -> a GGUF file, tensor by tensor, in numpy.

The gguf package knows the format and writes header and metadata; the data goes through in blocks of a few megabytes, so
that memory does not grow with the model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from localllm.convert import card
from localllm.convert.architectures import family_of
from localllm.convert.checkpoint import open_checkpoint
from localllm.convert.family import Value
from localllm.convert.outputs import Output
from localllm.convert.vocabulary import Vocabulary, read_vocabulary
from localllm.errors import BadModelFile, LocalLLMError, UsageError
from localllm.whole import replacing

if TYPE_CHECKING:
    import numpy as np

Type = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: tuple[Type, ...] = ("f32", "f16", "bf16", "q8_0")
Asked = Type | Literal["auto"]
ASKED: tuple[Asked, ...] = (*TYPES, "auto")
Report = Callable[[int, int], None]

# By llama.cpp's llama_ftype.
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
# Matrices that llama.cpp computes with in float32.
_EXACT = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight", "token_types.weight")
_MATRICES = (".weight", ".lora_a", ".lora_b")
_Q8_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will write, `size` in bytes without the header. `describe` adds the metadata to a writer."""

    architecture: str
    dtype: Type
    outputs: list[tuple[Output, str]]
    describe: Callable[[Any], None]
    size: int
    notices: tuple[str, ...] = ()


def plan(folder: Path, dtype: Asked, name: str = "") -> Plan:
    """Read everything but the weights. `dtype` "auto" is the checkpoint's own type in 16 bits.

    `name` is what the model is called, without one the folder. Raises LocalLLMError's children.
    """
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint)
    metadata = family.metadata()
    outputs = family.outputs()
    chosen = _choose(outputs) if dtype == "auto" else dtype
    vocabulary = read_vocabulary(folder, family.vocabulary_size)

    def describe(writer: Any) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.MODEL)
        card.describe(writer, folder, name or folder.resolve().name)
        for key, value in metadata.items():
            _add(writer, key if key.startswith("tokenizer.") else f"{family.architecture}.{key}", value)
        writer.add_file_type(_FILE_TYPES[chosen])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_vocabulary(writer, vocabulary, folder)

    return _planned(family.architecture, chosen, outputs, describe, (*family.notices, *vocabulary.notices))


def plan_lora(folder: Path, base: Path, dtype: Asked, name: str = "") -> Plan:
    """The same for a LoRA adapter and the model it belongs to, of which config.json is enough.

    "auto" is the adapter's own type.
    """
    from localllm.convert import lora

    adapter = lora.read_adapter(folder, base)
    own = adapter.outputs[0].dtype.lower()
    chosen: Type = dtype if dtype != "auto" else own if own in TYPES else "f32"
    if chosen == "q8_0":
        raise UsageError("--dtype q8_0: an adapter is f32, f16 or bf16")
    called = name or folder.resolve().name

    def describe(writer: Any) -> None:
        lora.describe(writer, adapter, called)

    return _planned(adapter.family.architecture, chosen, adapter.outputs, describe, ())


def _planned(
    architecture: str, dtype: Type, outputs: list[Output], describe: Callable[[Any], None], notices: tuple[str, ...]
) -> Plan:
    typed = [(output, _type_of(output, dtype)) for output in outputs]
    size = sum(_size(output, kind) for output, kind in typed)
    return Plan(architecture, dtype, typed, describe, size, notices)


def write(planned: Plan, target: Path, report: Report = lambda done, total: None, *, hollow: bool = False) -> None:
    """Write the file, whole or not at all. Raises BadModelFile, LocalLLMError where the disk is too small, OSError.

    A `hollow` one has the header of the model and a hole in the place of its data: what only asks for sizes reads it.
    """
    free = shutil.disk_usage(target.parent).free
    if planned.size > free and not hollow:
        raise LocalLLMError(
            f"{target.name} needs {planned.size >> 20} MiB, and {target.parent} has {free >> 20} MiB left",
            "free some, choose a smaller --dtype, or name a FILE elsewhere with -o",
        )
    _quiet()
    with replacing(target) as beside:
        writer = _writer(planned)
        try:
            writer.write_header_to_file(path=beside)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if hollow:
                _leave_out_data(writer, planned)
            else:
                _write_data(writer, planned, report)
        finally:
            writer.close()


def _quiet() -> None:
    """The gguf package logs what it decides; what the user should know is said here in its stead."""
    logging.getLogger("gguf").setLevel(logging.CRITICAL)


def _writer(planned: Plan) -> Any:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path=None, arch=planned.architecture)
    for output, kind in planned.outputs:
        quantized = gguf.GGMLQuantizationType[kind.upper()]
        shape, number = output.shape, "float16"
        if kind == "q8_0":  # the package wants such a shape in bytes
            shape, number = gguf.quant_shape_to_byte_shape(shape, quantized), "uint8"
        writer.add_tensor_info(output.name, shape, np.dtype(number), _size(output, kind), raw_dtype=quantized)
    planned.describe(writer)
    return writer


def _add(writer: Any, key: str, value: Value) -> None:
    """Metadata of the type that a value of Python is: whole numbers in 32 bits without sign, others in float32."""
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, folder: Path) -> None:
    import gguf

    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    for key, flag in vocabulary.flags.items():
        writer.add_bool(f"tokenizer.ggml.{key}", flag)
    try:
        special = gguf.SpecialVocab(folder, load_merges=vocabulary.model == "gpt2", n_vocab=len(vocabulary.tokens))
        if vocabulary.model == "gpt2":  # llama.cpp's defaults are those of the model it knows the splitting from
            special.add_special_token.setdefault("bos", False)
        special.add_to_gguf(writer, quiet=True)
    except Exception as error:  # it trusts the files, which are strangers'
        raise BadModelFile(f"the tokenizer in {folder} is broken: {error!r:.200}", "fetch it again") from None
    if vocabulary.model == "gpt2" and not special.merges:
        raise BadModelFile(f"the tokenizer in {folder} has no merges", "fetch it again")


def _choose(outputs: list[Output]) -> Type:
    """The type in 16 bits that the checkpoint's matrices have, f16 where they have none."""
    first = next((o.dtype for o in outputs if len(o.shape) > 1 and o.pieces), "")
    return "bf16" if first == "BF16" else "f16"


def _type_of(output: Output, dtype: str) -> str:
    """The type of a tensor in a file of a type: vectors and what llama.cpp computes with exactly are float32."""
    name = output.name
    if len(output.shape) < 2 or name.endswith(("_norm.weight", *_EXACT)) or not name.endswith(_MATRICES):
        return "f32"
    if dtype == "q8_0" and output.shape[-1] % _Q8_BLOCK:
        return "f16"
    return dtype


def _size(output: Output, kind: str) -> int:
    import math

    elements = math.prod(output.shape)
    return {"f32": elements * 4, "f16": elements * 2, "bf16": elements * 2, "q8_0": elements // 32 * 34}[kind]


def _write_data(writer: Any, planned: Plan, report: Report) -> None:
    file, done = writer.fout[0], 0
    writer.write_padding(file, file.tell())
    for output, kind in planned.outputs:
        written = 0
        for dtype, block in output.blocks():
            data = encode(block, dtype, kind, output)
            file.write(data.data)
            written += data.nbytes
            report(done + written, planned.size)
        if written != _size(output, kind):
            raise BadModelFile(f"{output.name} came to {written} bytes instead of {_size(output, kind)}")
        writer.write_padding(file, written)
        done += written
    file.flush()


def _leave_out_data(writer: Any, planned: Plan) -> None:
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    file.flush()
    sizes = (_size(output, kind) for output, kind in planned.outputs)
    file.truncate(file.tell() + sum(writer.ggml_pad(size, writer.data_alignment) for size in sizes))


def encode(block: np.ndarray, dtype: str, kind: str, output: Output) -> np.ndarray:
    """A block of the stored type `dtype` -> the bytes of one of the type `kind` (uint8, contiguous).

    Numbers of the same type pass through bit by bit. Raises BadModelFile for what the type cannot hold.
    """
    import gguf
    import numpy as np

    if dtype.lower() == kind and not output.added and output.scaled == 1:
        return np.ascontiguousarray(block).view(np.uint8).reshape(-1)
    exact = as_float32(block, dtype)
    if output.scaled != 1:
        exact = exact * np.float32(output.scaled)
    if output.added:
        exact = exact + np.float32(output.added)
    if kind == "f32":
        return np.ascontiguousarray(exact).view(np.uint8).reshape(-1)
    if kind == "f16":
        try:
            with np.errstate(over="raise"):
                return exact.astype(np.float16).view(np.uint8).reshape(-1)
        except FloatingPointError:
            hint = "choose --dtype bf16 or f32"
            raise BadModelFile(f"{output.name} has numbers that are too large for float16", hint) from None
    if kind != "bf16" and not np.isfinite(exact).all():
        raise BadModelFile(f"{output.name} has elements that are no numbers, and {kind} holds none such")
    found: np.ndarray = gguf.quants.quantize(exact, gguf.GGMLQuantizationType[kind.upper()])
    return np.ascontiguousarray(found).view(np.uint8).reshape(-1)


def as_float32(block: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers of a checkpoint as float32; bfloat16 is its upper half."""
    import numpy as np

    if dtype == "BF16":
        found: np.ndarray = (block.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return found
    return block.astype(np.float32, copy=False)
