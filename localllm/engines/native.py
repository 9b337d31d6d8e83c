"""Loads llama.cpp's C API and keeps its log: the one place that knows how the binding package is laid out.

`import llama_cpp` runs the package's high-level half too (numpy, a disk cache, SQLite: 100 ms and 30 MB), which this
program does not use. Here only its ctypes module is imported. A later `import llama_cpp` by somebody else in the same
process gets the whole package, as ever.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from localllm import hardware
from localllm.errors import EngineError

DeviceKind = Literal["cpu", "gpu", "igpu", "accelerator", "meta"]
_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accelerator", "meta")
_DEBUG, _ERROR, _CONTINUED = 1, 4, 5


@dataclass(frozen=True, slots=True)
class Device:
    """A device that llama.cpp was built for and found; memory in bytes."""

    name: str
    description: str
    kind: DeviceKind
    memory_free: int
    memory_total: int


class Log:
    """What the native library said: the last errors kept, all shown on stderr when `verbose`.

    An `observer` hears every piece of text, which need not end where a line does.
    """

    def __init__(self) -> None:
        self.verbose = False
        self.observer: Callable[[str], None] | None = None
        self.errors: deque[str] = deque(maxlen=50)
        self.callback: Any = None  # C keeps a bare pointer to it
        self._level = 0

    def write(self, level: int, text: bytes, _data: Any) -> None:
        self._level = self._level if level == _CONTINUED else level
        if self.verbose and self._level != _DEBUG:
            sys.stderr.write(text.decode(errors="replace"))
        if self.observer is not None and self._level != _DEBUG:
            self.observer(text.decode(errors="replace"))
        if self._level == _ERROR:
            self.errors.append(text.decode(errors="replace").strip())

    def take_errors(self) -> list[str]:
        lines = [line for line in self.errors if line]
        self.errors.clear()
        return lines


log = Log()


@lru_cache(maxsize=1)
def llama() -> Any:
    """The ctypes module of llama.cpp, its backend started and its log in our hands. Raises EngineError."""
    _wait_briefly()
    try:
        module = _import_ctypes_module()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"llama.cpp cannot be loaded: {error}", "pip install --force-reinstall llama-cpp-python"
        ) from error
    callback = module.llama_log_callback(log.write)
    log.callback = callback
    module.llama_log_set(callback, None)
    module.llama_backend_init()
    return module


def _wait_briefly() -> None:
    """Where other programs want the cores too, have threads that wait for others give theirs away soon.

    libgomp lets them turn for milliseconds. On a crowded machine the thread they wait for is the one that does not run:
    measured, a thirtieth of the speed and less. A thousand turns are some 20 microseconds; on a quiet machine they cost
    up to 5 %. It reads its environment when it is loaded, so this does nothing where something else has loaded it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() and hardware.is_crowded():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _import_ctypes_module() -> Any:
    if "llama_cpp" in sys.modules:
        return importlib.import_module("llama_cpp.llama_cpp")
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("llama-cpp-python is not installed")
    bare = types.ModuleType("llama_cpp")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = bare
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        for name in [n for n in sys.modules if n == "llama_cpp" or n.startswith("llama_cpp.")]:
            del sys.modules[name]


def version() -> str:
    """The version of the binding package; llama.cpp itself has no number in its C API."""
    from importlib.metadata import version

    return version("llama-cpp-python")


def cpu_features() -> dict[str, bool]:
    """The instruction sets that this build of llama.cpp uses, by its own account."""
    text = llama().llama_print_system_info().decode()
    pairs = (part.rpartition(":")[2].split("=") for part in text.split("|") if "=" in part)
    return {name.strip(): value.strip() == "1" for name, value in pairs}


@lru_cache(maxsize=1)
def devices() -> tuple[Device, ...]:
    """Every device llama.cpp sees, the CPU among them."""
    base, registry = _ggml()
    found = []
    for index in range(registry.ggml_backend_dev_count()):
        device = registry.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                base.ggml_backend_dev_name(device).decode(),
                base.ggml_backend_dev_description(device).decode(),
                _KINDS[base.ggml_backend_dev_type(device)],
                free.value,
                total.value,
            )
        )
    return tuple(found)


@lru_cache(maxsize=1)
def ggml_base() -> ctypes.CDLL:
    """ggml's base library, with what is asked of single tensors declared; they are passed as pointers."""
    base, _ = _ggml()
    base.ggml_op_name.argtypes, base.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
    base.ggml_nbytes.argtypes, base.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    base.ggml_backend_tensor_get.restype = None
    return base


def _ggml() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """ggml's two libraries with the types of the device functions declared; the registry knows which devices exist."""
    folder = Path(llama().__file__).parent / "lib"
    base, registry = (_open_library(folder, name) for name in ("ggml-base", "ggml"))
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    for function in ("name", "description"):
        getattr(base, f"ggml_backend_dev_{function}").argtypes = [ctypes.c_void_p]
        getattr(base, f"ggml_backend_dev_{function}").restype = ctypes.c_char_p
    base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p] + [ctypes.POINTER(ctypes.c_size_t)] * 2
    base.ggml_backend_dev_memory.restype = None
    return base, registry


def _open_library(folder: Path, name: str) -> ctypes.CDLL:
    for candidate in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll", f"lib{name}.dll"):
        if (folder / candidate).exists():
            return ctypes.CDLL(str(folder / candidate))
    raise EngineError(f"llama-cpp-python has no library {name}", "pip install --force-reinstall llama-cpp-python")
