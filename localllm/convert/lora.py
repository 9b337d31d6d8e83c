"""A PEFT LoRA adapter -> a GGUF adapter, which llama.cpp adds to a model of the same architecture when it runs.

A weight W becomes W + s B A, of A (rank, columns) and B (rows, rank); s is alpha / rank (arXiv 2106.09685), or
alpha / sqrt(rank) (arXiv 2312.03732). What a family does to the rows of W is done to those of B.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localllm.convert import rows
from localllm.convert.architectures import family_of
from localllm.convert.checkpoint import Checkpoint, Stored, read_json
from localllm.convert.config import Config
from localllm.convert.family import Family
from localllm.convert.outputs import Output, Piece
from localllm.errors import BadModelFile
from localllm.formats import safetensors

_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The matrices of an adapter as they will stand in the file, and its alpha."""

    family: Family
    outputs: list[Output]
    alpha: float


def base_of(folder: Path) -> str:
    """What the adapter says it was trained on, "" where it says nothing: a path, or a repository on the Hub."""
    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    return name if isinstance(name, str) else ""


def read_adapter(folder: Path, base: Path) -> Adapter:
    """Read an adapter; of its base only config.json is needed. Raises BadModelFile, ModelNotFound."""
    where = folder / "adapter_config.json"
    settings = Config(read_json(where), str(where))
    kind = settings.get("peft_type")
    if kind != "LORA" or settings.flag("use_dora"):
        what = "DoRA" if kind == "LORA" else str(kind)[:40]
        raise BadModelFile(f"{where} tells of {what}, and only LoRA is converted")
    config = Config(read_json(base / "config.json"), str(base / "config.json"))
    family = family_of(Checkpoint(base, config, {}))
    alpha = settings.number("lora_alpha")
    outputs = []
    for name, (a, b) in sorted(_pairs(folder).items()):
        rank = a.shape[0]
        if len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != rank or not rank:
            raise BadModelFile(f"{folder}: the matrices of {name[:80]!r} do not fit: {a.shape} and {b.shape}")
        # llama.cpp divides alpha by the rank, whatever the adapter's own rule is.
        wanted = _scale(settings, name, rank)
        factor = wanted * rank / alpha if alpha else 0.0
        outputs += list(_outputs(family, name, a, b, factor))
    return Adapter(family, outputs, alpha)


def _pairs(folder: Path) -> dict[str, tuple[Stored, Stored]]:
    path = folder / "adapter_model.safetensors"
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise BadModelFile(f"{folder} has its weights in a pickle, and reading a pickle runs the code in it")
    found: dict[str, dict[str, Stored]] = {}
    for tensor in safetensors.read_header(path).tensors:
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            raise BadModelFile(
                f"{path} holds {tensor.name[:80]!r}, which is no LoRA matrix of a linear layer",
                "merge the adapter into its base with PEFT, and convert that",
            )
        found.setdefault(match[1], {})[match[2]] = Stored(path, tensor)
    lonely = next((name for name, pair in found.items() if len(pair) < 2), None)
    if lonely is not None or not found:
        raise BadModelFile(f"{path} is no whole adapter: {lonely or 'it is empty'}")
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def _scale(settings: Config, name: str, rank: int) -> float:
    """What B A is multiplied by, with an alpha of its own for some layers."""
    alpha = settings.number("lora_alpha")
    patterns = settings.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if name == pattern or name.endswith(f".{pattern}"):
            alpha = settings.checked("alpha_pattern", value)
    return alpha / (math.sqrt(rank) if settings.flag("use_rslora") else rank)


def _outputs(family: Family, name: str, a: Stored, b: Stored, factor: float) -> list[Output]:
    weight = f"{name}.weight"
    halves = next((names for part, names in family.halves.items() if part in weight), None)
    if family.stacked.fullmatch(weight) or (halves and len(b.shape) != 2):
        raise BadModelFile(f"{name[:80]!r} adapts experts, which is not converted")
    if halves is not None:
        part = next(part for part in family.halves if part in weight)
        targets = [(weight.replace(part, half), Piece(b, rows.half(b.shape, i))) for i, half in enumerate(halves)]
    else:
        targets = [(weight, replace(family.piece(weight, b), transposed=False))]
    found = []
    for named, piece in targets:
        target = family.name_of(named)
        found.append(Output(f"{target}.lora_a", a.shape, (Piece(a),)))
        found.append(Output(f"{target}.lora_b", piece.shape, (piece,), scaled=factor))
    return found


def describe(writer: Any, adapter: Adapter, name: str) -> None:
    """Add an adapter's metadata to a writer."""
    import gguf

    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", adapter.alpha)
    writer.add_name(name)
