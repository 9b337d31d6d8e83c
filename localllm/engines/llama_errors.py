"""What llama.cpp logged when it refused, as the errors of this house."""

from __future__ import annotations

from pathlib import Path

from localllm.errors import BadModelFile, EngineError, OutOfMemory, UnknownArchitecture
from localllm.types import EngineOptions


def load_error(path: Path, lines: list[str]) -> EngineError | BadModelFile:
    text = "; ".join(lines)
    if "unknown model architecture" in text:
        name = text.partition("architecture: '")[2].partition("'")[0]
        return UnknownArchitecture(f"{path}: llama.cpp does not know the architecture {name!r}")
    if "alloc" in text or "out of memory" in text.lower():
        return OutOfMemory(f"{path}: not enough memory to load it ({lines[0]})")
    reason = lines[0].rpartition("error loading model: ")[2] if lines else "no reason was logged"
    return BadModelFile(f"{path} cannot be loaded: {reason}")


def context_error(path: Path, options: EngineOptions, length: int, lines: list[str]) -> EngineError:
    reason = "; ".join(lines) or "no reason was logged"
    if "alloc" in reason or not lines:
        return OutOfMemory(f"{path}: no memory for a context of {length} tokens ({reason})")
    if "V cache requires flash_attn" in reason:
        return EngineError(
            f"--cache-type-v {options.cache_type_v} needs flash attention", "leave --flash-attention at auto"
        )
    return EngineError(f"{path}: no context could be made: {reason.rpartition('llama_init_from_model: ')[2]}")
