"""ggml's blocks as ONNX Runtime's: the same numbers times the same scales, only packed in another order.

MatMulNBits holds a matrix in blocks along the input: unsigned numbers in 4 or 8 bits that stand for themselves minus
the middle (8, 128), and a float32 scale a block. Types whose blocks have an offset besides keep it apart: see `Packed`.
The layouts are those of ggml-common.h; every type here holds exactly what ggml's would dequantize to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Layout:
    """`bits` a number, `block` numbers a scale; `offset` is whether blocks have one."""

    bits: int
    block: int
    offset: bool = False

    def width(self, columns: int) -> int:
        """Bytes of a row's numbers."""
        return columns * self.bits // 8


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of a matrix: `values` (rows, blocks, bytes) uint8, `scales` and `offsets` (rows, blocks) float32.

    An element is scale * (number - middle) + offset. The products with the offsets are those of the offsets with the
    sums of the input over each block, which is a matrix 32 times as small.
    """

    values: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None


LAYOUTS = {
    "Q4_0": Layout(4, 32), "Q4_1": Layout(4, 32, True), "Q5_0": Layout(8, 32), "Q5_1": Layout(8, 32, True),
    "Q8_0": Layout(8, 32), "Q2_K": Layout(4, 16, True), "Q3_K": Layout(4, 16), "Q4_K": Layout(4, 32, True),
    "Q5_K": Layout(8, 32, True), "Q6_K": Layout(8, 16), "IQ4_NL": Layout(8, 32), "IQ4_XS": Layout(8, 32),
    "MXFP4": Layout(8, 32),
}  # fmt: skip
# What the numbers of a type with an offset are counted from instead of 0: the middle, where the kernels round least.
_CENTRE = {"Q4_1": 8, "Q5_1": 16, "Q2_K": 0, "Q4_K": 8, "Q5_K": 16}
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice what they stand for


def pack(data: np.ndarray, kind: str) -> Packed:
    """Rows of a ggml type, uint8 (rows, bytes of a row), as MatMulNBits has them."""
    import numpy as np

    from localllm.formats.gguf import TENSOR_TYPES, TYPE_IDS

    layout, size = LAYOUTS[kind], TENSOR_TYPES[TYPE_IDS[kind]][2]
    numbers, scales, offsets = _READERS[kind](data.reshape(-1, size))
    if offsets is not None:
        centre = np.float32(_CENTRE[kind])
        numbers, offsets = numbers - np.int8(_CENTRE[kind]), offsets + centre * scales
    rows = len(data)
    raw = (numbers.astype(np.int16) + (1 << (layout.bits - 1))).astype(np.uint8).reshape(rows, -1, layout.block)
    if layout.bits == 4:
        raw = raw[..., 0::2] | (raw[..., 1::2] << np.uint8(4))
    return Packed(
        np.ascontiguousarray(raw),
        np.ascontiguousarray(scales.reshape(rows, -1), dtype=np.float32),
        None if offsets is None else np.ascontiguousarray(offsets.reshape(rows, -1), dtype=np.float32),
    )


def unpack(packed: Packed, layout: Layout) -> np.ndarray:
    """What the rows stand for, float32 (rows, columns)."""
    import numpy as np

    values = packed.values
    if layout.bits == 4:
        values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:2], layout.block)
    found = (values.astype(np.float32) - (1 << (layout.bits - 1))) * packed.scales[..., None]
    if packed.offsets is not None:
        found = found + packed.offsets[..., None]
    return np.asarray(found, np.float32).reshape(len(values), -1)


# --- one reader a type: blocks as bytes -> numbers (int8, in order), scales and offsets (float32), a row a block ---


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 at a byte of every block, as float32 (blocks, 1)."""
    import numpy as np

    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """Two numbers a byte: the low halves of all, then the high ones."""
    import numpy as np

    return np.concatenate((data & 15, data >> 4), axis=-1)


def _bits(data: np.ndarray) -> np.ndarray:
    """The bits of some bytes, the lowest of the first before all others."""
    import numpy as np

    found: np.ndarray = np.unpackbits(np.ascontiguousarray(data), axis=-1, bitorder="little")
    return found


def _signed(numbers: np.ndarray, middle: int) -> np.ndarray:
    import numpy as np

    found: np.ndarray = numbers.astype(np.int8) - np.int8(middle)
    return found


def _q4_0(blocks: np.ndarray) -> Parts:
    return _signed(_nibbles(blocks[:, 2:]), 8), _half(blocks, 0), None


def _q4_1(blocks: np.ndarray) -> Parts:
    return _signed(_nibbles(blocks[:, 4:]), 0), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> Parts:
    return _signed(_nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4, 16), _half(blocks, 0), None


def _q5_1(blocks: np.ndarray) -> Parts:
    return _signed(_nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4, 0), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> Parts:
    import numpy as np

    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _half(blocks, 0), None


def _crumbs(data: np.ndarray) -> np.ndarray:
    """Four numbers a byte, in halves of 32 bytes: (blocks, half, which of four, byte)."""
    import numpy as np

    halves: np.ndarray = data.reshape(len(data), 2, 1, 32)
    found: np.ndarray = halves >> np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1) & 3
    return found


def _q2_k(blocks: np.ndarray) -> Parts:
    import numpy as np

    numbers, scales = _crumbs(blocks[:, 16:80]).reshape(-1, 256), blocks[:, :16]
    small, least = (part.astype(np.float32) for part in (scales & 15, scales >> 4))
    return _signed(numbers, 0), _half(blocks, 80) * small, -(_half(blocks, 82) * least)


def _q3_k(blocks: np.ndarray) -> Parts:
    import numpy as np

    high = blocks[:, None, None, :32] >> np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1) & 1
    numbers = (_crumbs(blocks[:, 32:96]) | high << 2).reshape(-1, 256)
    low = _nibbles(blocks[:, 96:104])
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 4, 1)
    upper = (blocks[:, None, 104:108] >> shifts & 3).reshape(-1, 16)
    scales = _signed(low | upper << 4, 32).astype(np.float32)
    return _signed(numbers, 4), _half(blocks, 108) * scales, None


def _six_bits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima out of twelve bytes, as float32."""
    import numpy as np

    first, second, third = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(blocks: np.ndarray) -> Parts:
    numbers = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    scales, minima = _six_bits(blocks[:, 4:16])
    return _signed(numbers, 0), _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def _q5_k(blocks: np.ndarray) -> Parts:
    import numpy as np

    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1
    scales, minima = _six_bits(blocks[:, 4:16])
    return _signed((low | high << 4).reshape(-1, 256), 0), _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def _q6_k(blocks: np.ndarray) -> Parts:
    import numpy as np

    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    numbers = (low | _crumbs(blocks[:, 128:192]) << 4).reshape(-1, 256)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return _signed(numbers, 32), _half(blocks, 208) * scales, None


def _iq4_nl(blocks: np.ndarray) -> Parts:
    import numpy as np

    return np.array(_IQ4, np.int8)[_nibbles(blocks[:, 2:])], _half(blocks, 0), None


def _iq4_xs(blocks: np.ndarray) -> Parts:
    import numpy as np

    numbers = np.array(_IQ4, np.int8)[_nibbles(blocks[:, 8:].reshape(-1, 8, 16))].reshape(-1, 256)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    packed = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    high = (packed >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    return numbers, _half(blocks, 0) * _signed(low | high << 4, 32).astype(np.float32), None


def _mxfp4(blocks: np.ndarray) -> Parts:
    import numpy as np

    scales = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return np.array(_FP4, np.int8)[_nibbles(blocks[:, 1:])], scales.astype(np.float32), None


_READERS: dict[str, Callable[[np.ndarray], Parts]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}  # fmt: skip
