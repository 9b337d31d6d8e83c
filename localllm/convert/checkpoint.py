"""A checkpoint's folder: its configuration, and its tensors where they lie in the safetensors files.

Tensors are mapped into memory one at a time and let go again, so that a model of any size passes through little of it.
Pickles are refused, because reading one runs what it says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.convert.config import Config
from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats import safetensors

if TYPE_CHECKING:
    import numpy as np

# The types of numbers a tensor may have, as numpy reads them; numpy has no bfloat16, whose bits are kept.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON = 64 << 20  # bytes; the largest tokenizer.json known has 33 million


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file; `shape` is row-major."""

    path: Path
    tensor: safetensors.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def map(self) -> np.ndarray:
        """The tensor as it is in the file, bfloat16 as uint16; mapped, not read, and unmapped when it is let go."""
        import numpy as np

        return np.memmap(self.path, FLOATS[self.dtype], "r", self.tensor.offset, self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    config: Config
    tensors: dict[str, Stored]

    @property
    def architecture(self) -> str:
        """The model class that the configuration names, as transformers calls it."""
        return self.config.architecture


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's configuration and the headers of its files. Raises ModelNotFound, BadModelFile."""
    if not folder.is_dir():
        if not folder.exists():
            raise ModelNotFound(f"no such folder: {folder}", "name the folder that holds config.json")
        raise BadModelFile(f"{folder} is a file", "name the folder that holds config.json and the safetensors files")
    config = Config(read_json(folder / "config.json"), str(folder / "config.json"))
    method = config.quantized
    if method:
        hint = "convert the original checkpoint"
        raise BadModelFile(f"{folder} is quantized already ({method}), which is not read", hint)
    return Checkpoint(folder, config, _tensors(folder))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object out of a checkpoint. Raises ModelNotFound, BadModelFile."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise BadModelFile(f"{path} has {path.stat().st_size} bytes, which no such file has")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelNotFound(f"{path.parent} is no checkpoint: it has no {path.name}") from None
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
    except (ValueError, RecursionError):
        raise BadModelFile(f"{path} is not JSON", "fetch it again") from None
    if not isinstance(found, dict):
        raise BadModelFile(f"{path} is no JSON object", "fetch it again")
    return found


def read_optional_json(path: Path) -> dict[str, Any]:
    """The same; empty where there is no such file."""
    return read_json(path) if path.exists() else {}


def _tensors(folder: Path) -> dict[str, Stored]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        with index.open("rb") as file:
            shards = safetensors.read_index(file.read(safetensors.MAX_HEADER + 1), index)
        found = _read(folder / name for name in shards.files)
        _require_the_same(index, set(shards.shards), set(found))
        return found
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _nothing_to_read(folder)
    if len(files) > 1 and not all(f.name.startswith(("model-", "model_")) for f in files):
        whole = [f for f in files if f.name == "model.safetensors"]
        if not whole:
            names = ", ".join(f.name for f in files[:4])
            raise BadModelFile(f"{folder} has several safetensors files and no index of them: {names}")
        files = whole
    return _read(files)


def _read(paths: Iterable[Path]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for path in paths:
        for tensor in safetensors.read_header(path).tensors:
            if tensor.name in found:
                raise BadModelFile(f"{tensor.name[:80]!r} is in {found[tensor.name].path.name} and in {path.name}")
            found[tensor.name] = Stored(path, tensor)
    return found


def _require_the_same(index: Path, listed: set[str], present: set[str]) -> None:
    missing, extra = sorted(listed - present), sorted(present - listed)
    if missing or extra:
        what = f"lacks {missing[0][:80]!r}" if missing else f"has {extra[0][:80]!r}, which is not listed"
        raise BadModelFile(f"{index} and its files do not belong together: a file {what}", "fetch them again")


def _nothing_to_read(folder: Path) -> BadModelFile:
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES)
    if not pickles:
        return BadModelFile(f"{folder} holds no safetensors files")
    return BadModelFile(
        f"{folder} has its weights only in pickles ({pickles[0]}), and reading a pickle runs the code in it",
        "take a revision with safetensors, or convert it with transformers' save_pretrained where you trust it",
    )
