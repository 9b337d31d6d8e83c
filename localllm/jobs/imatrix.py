"""Importance matrices: how much each column of a weight matters, by the squares of what it is multiplied with.

Read and written in llama.cpp's GGUF format (tools/imatrix): for each matrix the sums of squares (`NAME.in_sum2`,
float32, experts x columns) and how many rows they are of (`NAME.counts`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.engines.observer import F32, Observer
from localllm.errors import BadModelFile
from localllm.formats.gguf import read_array, read_header
from localllm.whole import replacing

if TYPE_CHECKING:
    import numpy as np

    from localllm.engines.scorer import Scorer

Report = Callable[[int, int], None]
CONTEXT = 512  # tokens of a chunk, as llama-imatrix has it
_LEAST_ROWS = 16  # fewer are no text


@dataclass
class Imatrix:
    """`sums` by the weight's name, (experts, columns), `counts` (experts,), both float32."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    chunks: int = 0
    chunk_size: int = CONTEXT

    def weights(self) -> dict[str, np.ndarray]:
        """What the quantizer takes: means of squares, flat; 1 for an expert that no token came to."""
        import numpy as np

        found = {}
        for name, sums in self.sums.items():
            counts = self.counts[name].reshape(-1, 1)
            means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
            found[name] = np.ascontiguousarray(means, dtype=np.float32).reshape(-1)
        return found


def read_imatrix(path: Path) -> Imatrix:
    """Raises ModelNotFound, BadModelFile."""
    import numpy as np

    header = read_header(path, any_kind=True)
    if header.metadata.get("general.type") != "imatrix":
        raise BadModelFile(f"{path} is no importance matrix", "llama-imatrix and localllm imatrix write one")
    found = Imatrix(
        chunks=_count(header.metadata.get("imatrix.chunk_count")),
        chunk_size=_count(header.metadata.get("imatrix.chunk_size")) or CONTEXT,
    )
    names = header.metadata.get("imatrix.datasets", ())
    if not isinstance(names, (list, tuple)):
        names = list(read_array(path.read_bytes(), names))
    found.datasets = [str(name) for name in names]
    tables: dict[str, dict[str, np.ndarray]] = {"in_sum2": found.sums, "counts": found.counts}
    for tensor in header.tensors:
        name, _, kind = tensor.name.rpartition(".")
        if kind not in tables or tensor.type != "F32":
            raise BadModelFile(f"{path} holds {tensor.name[:60]!r}, which no importance matrix has")
        data = np.fromfile(path, "<f4", tensor.parameters, offset=tensor.offset)
        if not np.isfinite(data).all() or (data < 0).any():
            raise BadModelFile(f"{path} holds numbers in {tensor.name[:60]!r} that are no sums of squares")
        tables[kind][name] = data.reshape(-1, tensor.shape[0]) if kind == "in_sum2" else data
    if not found.sums or found.sums.keys() != found.counts.keys():
        raise BadModelFile(f"{path} is no whole importance matrix: sums and counts do not pair")
    if any(len(found.counts[name]) not in (1, len(sums)) for name, sums in found.sums.items()):
        raise BadModelFile(f"{path} is no whole importance matrix: it counts other experts than it sums")
    return found


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


def write_imatrix(matrix: Imatrix, path: Path) -> None:
    """Write it whole or not at all."""
    import gguf

    with replacing(path) as beside:
        writer = gguf.GGUFWriter(beside, "imatrix")
        del writer.kv_data[0]["general.architecture"]
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", matrix.datasets)
        writer.add_uint32("imatrix.chunk_count", matrix.chunks)
        writer.add_uint32("imatrix.chunk_size", matrix.chunk_size)
        for name in sorted(matrix.sums):
            writer.add_tensor(f"{name}.in_sum2", matrix.sums[name])
            writer.add_tensor(f"{name}.counts", matrix.counts[name].reshape(-1, 1))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def compute(model: Scorer, tokens: list[int], dataset: str, *, chunks: int = 0, report: Report) -> Imatrix:
    """Evaluate a text in chunks and sum what each matrix is multiplied with. `chunks` 0 takes all there are.

    Raises EngineError, UsageError where the text is too short.
    """
    from localllm.jobs.evaluate import in_chunks

    collector = _Collector()
    length = min(CONTEXT, model.trained_context)
    parts = in_chunks(tokens, length, chunks, model.begin_token)
    model.open_scoring(length, 0, observer=collector.callback, at_once=1)
    for done, part in enumerate(parts):
        model.score([part])
        collector.raise_failure("the importance matrix could not be computed")
        report(done + 1, len(parts))
    matrix = collector.matrix
    matrix.datasets, matrix.chunks, matrix.chunk_size = [dataset], len(parts), length
    return matrix


class _Collector(Observer):
    """Sums squares of what the matrices are multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = Imatrix()

    def wants(self, tensor: Any) -> bool:
        operation = self.operation(tensor)
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return False
        rows, name = tensor.src[1].contents, _name(tensor.src[0].contents)
        many = rows.ne[1] >= _LEAST_ROWS and rows.type == F32 and name.startswith("blk.")
        return operation == b"MUL_MAT_ID" or bool(many)

    def take(self, tensor: Any) -> None:
        operation = self.operation(tensor)
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return
        weight = tensor.src[0].contents
        values = self.read(tensor.src[1].contents)
        if operation == b"MUL_MAT_ID":
            self._add_experts(_name(weight), weight, self._read_ids(tensor.src[2].contents), values)
        else:
            self._add(_name(weight), weight, values)

    def _read_ids(self, tensor: Any) -> np.ndarray:
        """The experts chosen for each token, (tokens, chosen) of int32; a view into a larger tensor."""
        import numpy as np

        data = self.bytes_of(tensor)
        shape, strides = (tensor.ne[1], tensor.ne[0]), (tensor.nb[1], tensor.nb[0])
        return np.lib.stride_tricks.as_strided(data.view(np.int32), shape, strides)

    def _add(self, name: str, weight: Any, values: np.ndarray) -> None:
        import numpy as np

        matrices = weight.ne[2] * weight.ne[3]
        squares = np.square(values).sum(axis=2, dtype=np.float32)  # (ne3, ne2, columns)
        squares = squares.reshape(-1, matrices, squares.shape[-1]).sum(axis=0)
        rows = values.shape[0] * values.shape[1] * values.shape[2] // matrices
        self._sum(name, squares, np.array([rows], dtype=np.float32))

    def _add_experts(self, name: str, weight: Any, ids: np.ndarray, values: np.ndarray) -> None:
        """`values` are (1, tokens, chosen or 1, columns)."""
        import numpy as np

        experts, squares = weight.ne[2], np.square(values[0])
        sums = np.zeros((experts, squares.shape[-1]), dtype=np.float32)
        for slot in range(ids.shape[1]):
            np.add.at(sums, ids[:, slot], squares[:, slot % squares.shape[1]])
        counts = np.bincount(ids.ravel(), minlength=experts).astype(np.float32)
        self._sum(name, sums, counts)

    def _sum(self, name: str, sums: np.ndarray, counts: np.ndarray) -> None:
        matrix = self.matrix
        if name in matrix.sums:
            matrix.sums[name] += sums
            matrix.counts[name] += counts
        else:
            matrix.sums[name], matrix.counts[name] = sums, counts


def _name(tensor: Any) -> str:
    return _plain(tensor.name.decode(errors="replace"))


def _plain(name: str) -> str:
    """Without what the scheduler puts around a name when it copies a tensor to another device: CPU#name#0."""
    match = re.fullmatch(r"[^#]*#([^#]+)(#.*)?", name)
    return match[1] if match else name
