"""Reads a SentencePiece model (`tokenizer.model`), whose description is sentencepiece_model.proto.

Only the fields that a GGUF needs are declared; protobuf passes over the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile

BPE = 2  # TrainerSpec.ModelType
NORMAL = 1
MAX_BYTES = 256 << 20

# Message -> field -> (number, type: a name of FieldDescriptorProto's, default)
_MESSAGES: dict[str, dict[str, tuple[int, str, str]]] = {
    "Piece": {"piece": (1, "string", ""), "score": (2, "float", "0"), "type": (3, "int32", "1")},
    "Trainer": {"model_type": (3, "int32", "1")},
    "Normalizer": {"add_dummy_prefix": (3, "bool", "true")},
    "Model": {
        "pieces": (1, "*Piece", ""),
        "trainer_spec": (2, "Trainer", ""),
        "normalizer_spec": (3, "Normalizer", ""),
    },
}


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """(text, score, type) of every token, the types numbered as in a GGUF, and whether a text gets a space in front."""

    pieces: list[tuple[str, float, int]]
    space_prefix: bool


def read(path: Path) -> SentencePieces:
    """Read a model that merges by score (BPE). Raises BadModelFile for broken files and for unigram models."""
    if path.stat().st_size > MAX_BYTES:
        raise BadModelFile(f"{path} has {path.stat().st_size} bytes, which no tokenizer has")
    model = _model_class()()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own, which differs between its implementations
        raise BadModelFile(f"{path} is not a SentencePiece model: {error}", "fetch it again") from None
    if not model.pieces:
        raise BadModelFile(f"{path} is a SentencePiece model without a token", "fetch it again")
    if model.trainer_spec.model_type != BPE:
        raise BadModelFile(f"{path} is a unigram model, and only tokenizers that merge pairs are converted")
    pieces = [(p.piece, p.score, p.type) for p in model.pieces]
    return SentencePieces(pieces, model.normalizer_spec.add_dummy_prefix)


@lru_cache(maxsize=1)
def _model_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = "localllm.sentencepiece"
    file = descriptor_pb2.FileDescriptorProto(name="localllm/sentencepiece.proto", package=package, syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, default) in fields.items():
            label = kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if kind.lstrip("*") in _MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind.lstrip('*')}"
            else:
                field.type, field.default_value = getattr(kinds, f"TYPE_{kind.upper()}"), default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))
