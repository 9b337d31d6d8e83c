"""Runs a decoder's graph step by step: what is bound once stays bound, and its caches are not copied in Python.

Where attention accepts one buffer for past and present (GroupQueryAttention), each cache is one array of the context's
length that the graph writes in place; elsewhere what a step gave is handed to the next as it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from localllm.engines import providers
from localllm.engines.interrupt import Flag
from localllm.engines.onnx_graph import Cache, Interface
from localllm.engines.onnx_session import run_error, runtime
from localllm.formats.onnx import Value

Floats = npt.NDArray[np.float32]
_BFLOAT16 = 16
_NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i64": np.int64, "i32": np.int32}


class RunFlag(Flag):
    """ONNX Runtime looks at it between two nodes of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.options = runtime().RunOptions()
        self.options.log_severity_level = 4
        # The binding's Python half looks for this at every run, and does not find it by way of a C++ exception: 1 % of
        # a small model's token. It says what is so without it: that no run is recorded for a GPU to replay.
        self.options.add_run_config_entry("gpu_graph_id", "-1")

    @property
    def is_up(self) -> bool:
        return bool(self.options.terminate)

    def set(self, up: bool) -> None:
        self.options.terminate = up


class Runner:
    """One sequence in a session on a provider. `single` says that its logits are those of the last position only."""

    def __init__(self, session: Any, interface: Interface, provider: str, flag: RunFlag, *, single: bool) -> None:
        self._session, self._interface, self._flag = session, interface, flag
        self._device, self._on_cpu = providers.device(provider), provider == "cpu"
        # A provider that computes elsewhere than the tensors lie copies them, and would not see what is written later.
        self._shared = interface.shared and (self._on_cpu or self._device != "cpu")
        self._single = single or interface.keep is not None
        self._fixed = np.zeros((1, 1, interface.vocabulary_size), _NUMPY[interface.logits.type])
        self._rows: npt.NDArray[Any] = self._fixed

    def open(self, length: int) -> None:
        """Make room for `length` tokens, and forget all."""
        face = self._interface
        self._binding = self._session.io_binding()
        self._binding.bind_output(face.logits.name)
        self._is_fixed = False
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._ones = np.ones((1, length), _NUMPY[face.mask.type] if face.mask else np.int64)
        self._values = [self._value(self._zeros(cache, length if self._shared else 0), cache) for cache in face.caches]
        if self._shared:
            for cache, value in zip(face.caches, self._values, strict=True):
                self._binding.bind_ortvalue_input(cache.past, value)
                self._binding.bind_ortvalue_output(cache.present, value)

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens of the caches; of those that do not grow, none or all can be kept."""
        if self._shared:
            return
        caches = zip(self._interface.caches, self._values, strict=True)
        if length:
            self._values = [self._shortened(cache, value, length) for cache, value in caches]
        else:
            self._values = [self._value(self._zeros(cache, 0), cache) for cache, _ in caches]

    def run(self, tokens: Sequence[int], past: int, rows: int = 1) -> None:
        """Evaluate tokens that follow `past` others; the logits of the last `rows` are wanted.

        Raises KeyboardInterrupt, EngineError.
        """
        face, count = self._interface, len(tokens)
        self._give(face.ids, tokens, count)
        if face.positions is not None:
            self._give(face.positions, range(past, past + count), count)
        if face.mask is not None:
            self._bind(face.mask.name, self._ones[:, : past + count])
        if face.branch is not None:
            self._bind(face.branch, np.array([past > 0]))
        if face.keep is not None:
            self._bind(face.keep.name, np.full((1,) * len(face.keep.shape), rows, _NUMPY[face.keep.type]))
        fixed = bool(face.vocabulary_size) and rows == 1 and (self._single or count == 1)
        if not fixed:
            self._binding.bind_output(face.logits.name)
        elif not self._is_fixed:
            value = _ort_value(self._fixed, face.logits.type)
            self._binding.bind_ortvalue_output(face.logits.name, value)
        self._is_fixed = fixed
        if not self._shared:
            for cache, value in zip(face.caches, self._values, strict=True):
                self._binding.bind_ortvalue_input(cache.past, value)
                self._binding.bind_output(cache.present, self._device)
        self._evaluate()
        if fixed and (self._shared or not face.caches):
            self._rows = self._fixed
            return
        outputs = self._binding.get_outputs()
        self._rows = self._fixed if fixed else _array(outputs[0], face.logits.type)
        if not self._shared:
            self._values = outputs[1:]

    def logits(self) -> Floats:
        """Of the last position, float32 (vocabulary,); they hold until the next run."""
        return _floats(self._rows[0, -1], self._interface.logits.type)

    def all_logits(self) -> Floats:
        """Of the positions of the last run, float32 (positions, vocabulary)."""
        return _floats(self._rows[0], self._interface.logits.type)

    def _evaluate(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._flag.options)
        except Exception as error:  # pybind's exceptions have no common ancestor but this
            if self._flag.is_up:
                raise KeyboardInterrupt from None
            raise run_error(str(error)) from None

    def _give(self, value: Value, numbers: Iterable[int], count: int) -> None:
        """Write whole numbers into an input; a single one goes into the array that is bound already."""
        held = self._arrays.get(value.name)
        if held is None or held.shape[1] != count or not self._on_cpu:
            self._bind(value.name, np.fromiter(numbers, _NUMPY[value.type], count).reshape(1, count))
        else:
            held[0] = np.fromiter(numbers, held.dtype, count)

    def _bind(self, name: str, array: npt.NDArray[Any]) -> None:
        self._arrays[name] = array
        self._binding.bind_ortvalue_input(name, runtime().OrtValue.ortvalue_from_numpy(array))

    def _zeros(self, cache: Cache, length: int) -> npt.NDArray[Any]:
        shape = [length if axis == cache.axis else size for axis, size in enumerate(cache.shape)]
        return np.zeros(shape, _NUMPY[cache.type])  # memory that nobody has written to costs nothing

    def _value(self, array: npt.NDArray[Any], cache: Cache) -> Any:
        if self._device == "cpu":
            return _ort_value(array, cache.type)
        kind = _BFLOAT16 if cache.type == "bf16" else array.dtype.type
        return runtime().OrtValue.ortvalue_from_shape_and_type(array.shape, kind, self._device)

    def _shortened(self, cache: Cache, value: Any, length: int) -> Any:
        if cache.axis is None:
            return value
        kept = _array(value, cache.type)[:, :, :length]
        if self._device == "cpu":
            return _ort_value(np.ascontiguousarray(kept), cache.type)
        return runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(kept), self._device)


def _ort_value(array: npt.NDArray[Any], kind: str) -> Any:
    """An OrtValue over an array's own memory; numpy has no bfloat16, whose bits are uint16 here."""
    value = runtime().OrtValue
    if kind == "bf16":
        return value.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
    return value.ortvalue_from_numpy(array)


def _array(value: Any, kind: str) -> npt.NDArray[Any]:
    """A tensor's numbers, bfloat16 as uint16. Those of a device are copied."""
    if kind != "bf16":
        found: npt.NDArray[Any] = value.numpy()
        return found
    count = int(np.prod(value.shape()))
    memory = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    bits: npt.NDArray[Any] = np.ctypeslib.as_array(memory).reshape(value.shape()).copy()
    return bits


def _floats(array: npt.NDArray[Any], kind: str) -> Floats:
    if kind == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)
