"""Sees tensors while llama.cpp computes them: the evaluation callback of ggml's scheduler.

A subclass says which tensors it `wants`, before they are computed, and takes them afterwards. What it raises reaches
whoever calls `raise_failure`: no exception may fly through C.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from localllm.engines.native import ggml_base, llama
from localllm.errors import EngineError

if TYPE_CHECKING:
    import numpy as np

F32 = 0  # ggml's number of the type


class Tensor(ctypes.Structure):
    """ggml_tensor, as ggml.h has it: `ne` are its dimensions, innermost first, `nb` their strides in bytes."""


Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64), ("extra", ctypes.c_void_p), ("padding", ctypes.c_char * 8),
]  # fmt: skip


class Observer(ABC):
    def __init__(self) -> None:
        self._base = ggml_base()
        self._failure: BaseException | None = None
        self.callback = llama().ggml_backend_sched_eval_callback(self._see)  # C keeps a bare pointer to it

    @abstractmethod
    def wants(self, tensor: Any) -> bool: ...

    @abstractmethod
    def take(self, tensor: Any) -> None: ...

    def raise_failure(self, what: str) -> None:
        if self._failure is not None:
            raise EngineError(f"{what}: {self._failure!r}") from self._failure

    def operation(self, tensor: Any) -> bytes:
        return bytes(self._base.ggml_op_name(tensor.op))

    def _see(self, pointer: Any, ask: bool, _data: Any) -> bool:
        try:
            tensor = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
            if ask:
                return self.wants(tensor)
            self.take(tensor)
        except BaseException as failure:
            self._failure = self._failure or failure
        return True

    def bytes_of(self, tensor: Any) -> np.ndarray:
        """A tensor's memory, uint8, whichever device it is on."""
        import numpy as np

        data = np.empty(self._base.ggml_nbytes(ctypes.byref(tensor)), dtype=np.uint8)
        self._base.ggml_backend_tensor_get(ctypes.byref(tensor), data.ctypes.data, 0, data.nbytes)
        return data

    def read(self, tensor: Any) -> np.ndarray:
        """A float32 tensor, outermost dimension first."""
        import numpy as np

        count = tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        strides = [4]
        for size in tensor.ne[:3]:
            strides.append(strides[-1] * size)
        data = self.bytes_of(tensor)
        shape = tuple(reversed(tensor.ne))
        if list(tensor.nb) == strides:
            return data.view(np.float32)[:count].reshape(shape)
        view = np.lib.stride_tricks.as_strided(data.view(np.float32), shape, tuple(reversed(tensor.nb)))
        return np.ascontiguousarray(view)
