"""Runs llama.cpp's quantizer in a process of its own, for `quantize.py`.

The quantizer cannot be stopped from within, and aborts the process on some inputs. Here the one that waits for it can
kill it, and its own end ends this one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.engines.native import llama, log
from localllm.jobs.imatrix import Imatrix, read_imatrix

if TYPE_CHECKING:
    import numpy as np

_INT, _STRING = 0, 3  # of llama_model_kv_override_type
_MAX_TEXT = 127  # bytes of an overridden string


@dataclass(frozen=True, slots=True)
class Task:
    """What llama_model_quantize is to do. `types` are (pattern, ggml type) for single tensors."""

    source: str
    target: str
    file_type: int
    threads: int
    imatrix: str = ""
    types: tuple[tuple[str, int], ...] = ()
    keep_output: bool = False
    pure: bool = False
    requantize: bool = False
    dry_run: bool = False


def work(task: Task, connection: Connection) -> None:
    """Send ("log", text) as llama.cpp tells it, and at the end ("end", its error or "")."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it too, and decides
    threading.Thread(target=_end_with_parent, args=(task.target,), daemon=True).start()
    try:
        api = llama()
        log.observer = lambda text: connection.send(("log", text))
        log.take_errors()
        failed = api.llama_model_quantize(
            os.fsencode(task.source), os.fsencode(task.target), ctypes.byref(_parameters(api, task))
        )
        error = "; ".join(log.take_errors()) or "no reason was logged" if failed else ""
    except Exception as failure:  # an imatrix that is none: the parent raises it again
        connection.send(("error", failure))
        return
    connection.send(("end", error))


def _end_with_parent(target: str) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if target:
            Path(target).unlink(missing_ok=True)
        os._exit(1)


def _parameters(api: Any, task: Task) -> Any:
    found = api.llama_model_quantize_default_params()
    found.ftype, found.nthread = task.file_type, task.threads
    found.quantize_output_tensor, found.pure = not task.keep_output, task.pure
    found.allow_requantize, found.dry_run = task.requantize, task.dry_run
    if task.types:
        rows = [*((p.encode(), kind) for p, kind in task.types), (None, 0)]
        found.tt_overrides = (api.llama_model_tensor_override * len(rows))(*rows)
    if task.imatrix:
        matrix = read_imatrix(Path(task.imatrix))
        found.imatrix = _entries(api, matrix.weights())
        found.kv_overrides = _overrides(api, _described(task.imatrix, matrix))
    return found


def _entries(api: Any, weights: Mapping[str, np.ndarray]) -> Any:
    number = ctypes.POINTER(ctypes.c_float)
    rows = [(name.encode(), values.ctypes.data_as(number), values.size) for name, values in weights.items()]
    entries = (api.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0))
    entries.kept = list(weights.values())  # C has bare pointers to their numbers
    return entries


def _described(path: str, matrix: Imatrix) -> list[tuple[str, str | int]]:
    """What llama-quantize notes in the file, in its order."""
    rows: list[tuple[str, str | int]] = [("file", path)]
    rows += [("dataset", matrix.datasets[0])] if matrix.datasets else []
    rows.append(("entries_count", len(matrix.sums)))
    rows += [("chunks_count", matrix.chunks)] if matrix.chunks > 0 else []
    return rows


def _overrides(api: Any, rows: list[tuple[str, str | int]]) -> Any:
    found = (api.llama_model_kv_override * (len(rows) + 1))()
    for override, (key, value) in zip(found, rows, strict=False):
        override.key = f"quantize.imatrix.{key}".encode()
        if isinstance(value, int):
            override.tag, override.value.val_i64 = _INT, value
        else:
            override.tag, override.value.val_str = _STRING, value.encode()[:_MAX_TEXT]
    return found
