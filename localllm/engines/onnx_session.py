"""Opens a checked ONNX model in ONNX Runtime: options, providers, and its exceptions as errors of one line."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from localllm.engines import providers
from localllm.engines.interrupt import Flag, abort_on_interrupt
from localllm.errors import BadModelFile, EngineError, LocalLLMError, OutOfMemory
from localllm.formats.onnx import Model
from localllm.formats.onnx_edit import Edited
from localllm.types import EngineOptions

_FOLDER = "session.model_external_initializers_file_folder_path"
_SILENT, _WARNING = 4, 2
# Where in ONNX Runtime's sources something failed, and in which function of C++.
_PLACE = re.compile(
    r"(/[\w.+-]+)+\.(cc|h|hpp):\d+ (?:[\w:<>&*, ~]{0,200}?::~?\w{1,80}\((?:[^()]|\(\)){0,1000}\)(?: const)? )?"
)
NOT_HERE = ("flash_attention", "mmap")  # options that any model has and a graph decides by itself


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, the short name of the provider that computes, and what the user should know."""

    session: Any
    provider: str
    notices: tuple[str, ...]


class _LoadFlag(Flag):
    """ONNX Runtime looks at it while it optimizes a graph and packs weights; it loads without Python's lock."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self._options, self._up = options, False

    @property
    def is_up(self) -> bool:
        return self._up

    def set(self, up: bool) -> None:
        self._up = up
        self._options.set_load_cancellation_flag(up)


class _NobodyLooks(Flag):
    """An import cannot be stopped: of a signal in the middle of it, its C++ makes an ImportError."""

    @property
    def is_up(self) -> bool:
        return False

    def set(self, up: bool) -> None:
        """It makes no difference."""


def runtime() -> Any:
    """The onnxruntime module, its log turned off. Raises EngineError."""
    try:
        if "onnxruntime" not in sys.modules:
            with abort_on_interrupt(_NobodyLooks()):
                importlib.import_module("onnxruntime")
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime cannot be loaded: {error}", "pip install onnxruntime") from None
    return onnxruntime


def ignored(options: EngineOptions, names: Sequence[str] = NOT_HERE) -> tuple[str, ...]:
    """What of the options of these names was asked for, and an ONNX model has its own way of."""
    changed = [
        f"--{'no-' if getattr(options, f.name) is False else ''}{f.name.replace('_', '-')}"
        for f in fields(options)
        if f.name in names and getattr(options, f.name) != f.default
    ]
    return (f"{', '.join(changed)}: not for ONNX models, whose graph decides that",) if changed else ()


def open_session(
    model: Model, edited: Edited | None, names: Sequence[str], threads: int, *, verbose: bool = False
) -> Opened:
    """A session on the first of the providers that starts; `edited` is what to open in the file's place.

    Raises BadModelFile, OutOfMemory, EngineError, KeyboardInterrupt.
    """
    notices = []
    for position, name in enumerate(names):
        last = position == len(names) - 1
        try:
            session = _session(model, edited, name, threads, verbose=verbose)
        except LocalLLMError as error:
            if last:
                raise
            notices.append(f"the provider {name} did not start ({error}); using {names[position + 1]}")
            continue
        if last or providers.chosen(name, session.get_providers()):
            return Opened(session, name, tuple(notices))
        notices.append(f"the provider {name} did not start; using {names[position + 1]}")
    raise AssertionError("the CPU is always tried")


def _session(model: Model, edited: Edited | None, provider: str, threads: int, *, verbose: bool) -> Any:
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _WARNING if verbose else _SILENT
    source: str | bytes = str(model.path)
    if edited is not None:
        source = edited.data
        options.add_session_config_entry(_FOLDER, str(edited.folder))
    wanted = dict.fromkeys((providers.full_name(provider), "CPUExecutionProvider"))
    flag = _LoadFlag(options)
    with abort_on_interrupt(flag):
        try:
            return ort.InferenceSession(source, options, providers=list(wanted), enable_fallback=0)
        except Exception as error:  # pybind's exceptions have no common ancestor but this
            if flag.is_up:
                raise KeyboardInterrupt from error
            raise _load_error(model.path, str(error)) from None


def _load_error(path: Path, message: str) -> LocalLLMError:
    reason = clean(message)
    if "is under development" in message or "IR version" in message:
        return BadModelFile(f"{path} is newer than this ONNX Runtime: {reason}", "pip install -U onnxruntime")
    if _is_memory(message):
        return OutOfMemory(f"{path}: not enough memory to load it ({reason})", "take a smaller quantization")
    return BadModelFile(f"{path} cannot be loaded: {reason}")


def run_error(message: str) -> EngineError:
    """The error that a failed evaluation is."""
    if _is_memory(message):
        return OutOfMemory(f"not enough memory: {clean(message)}", "try a smaller --context")
    return EngineError(f"ONNX Runtime could not evaluate: {clean(message)}")


def _is_memory(message: str) -> bool:
    return any(word in message for word in ("bad_alloc", "Failed to allocate", "out of memory", "OUT_OF_MEMORY"))


def clean(message: str) -> str:
    """ONNX Runtime's message in one line, without its own error codes and the places in its sources."""
    line = " ".join(message.split())
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = _PLACE.sub("", line)
    line = re.sub(r"^Load model from .{1,4000}? failed: ?", "", line)
    return line[:300] + ("..." if len(line) > 300 else "")
