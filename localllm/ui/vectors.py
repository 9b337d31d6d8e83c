"""Vectors of texts -> lines, JSON, CSV, an .npy file, or a table of similarities."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Literal

from localllm.ui.render import visible
from localllm.ui.table import print_table

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

Format = Literal["lines", "json", "jsonl", "csv", "npy"]
FORMATS: tuple[Format, ...] = ("lines", "json", "jsonl", "csv", "npy")
Part = tuple[Sequence[str], "np.ndarray"]


def numbers(row: np.ndarray) -> list[str]:
    """The shortest texts that mean the same numbers of float32, as JSON has them."""
    found: list[str] = row.astype("U16").tolist()
    return found


def write(out: IO[str], parts: Iterable[Part], format: Format, model: str, dimensions: int) -> None:
    """Write texts and their vectors, float32 (texts, dimensions), as they come; `json` is one object at the end."""
    {"lines": _lines, "json": _json, "jsonl": _jsonl, "csv": _csv}[format](out, parts, model, dimensions)
    out.flush()


def _lines(out: IO[str], parts: Iterable[Part], _model: str, dimensions: int) -> None:
    """A vector a line; on a terminal no more of it than fits."""
    width = shutil.get_terminal_size().columns if out.isatty() else 0
    for texts, vectors in parts:
        for text, row in zip(texts, vectors, strict=True):
            out.write((_cut(text, row, dimensions, width) if width else " ".join(numbers(row))) + "\n")


def _cut(text: str, row: np.ndarray, dimensions: int, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    label, room = visible(text).replace("\n", "␊"), max(12, width // 3)
    label = set_cell_size(label, room) if cell_len(label) <= room else set_cell_size(label, room - 1) + "…"
    end = f" … ({dimensions} numbers)"
    found = label
    for value in row:
        cell = f" {value:8.4f}"
        if cell_len(found) + len(cell) + len(end) > width:
            break
        found += cell
    return found + end


def _json(out: IO[str], parts: Iterable[Part], model: str, dimensions: int) -> None:
    out.write(f'{{"model": {json.dumps(model)}, "dimensions": {dimensions}, "embeddings": [')
    separator = "\n"
    for _, vectors in parts:
        for row in vectors:
            out.write(f"{separator}[{', '.join(numbers(row))}]")
            separator = ",\n"
    out.write("\n]}\n")


def _jsonl(out: IO[str], parts: Iterable[Part], _model: str, _dimensions: int) -> None:
    index = 0
    for texts, vectors in parts:
        for text, row in zip(texts, vectors, strict=True):
            start = f'{{"index": {index}, "text": {json.dumps(text, ensure_ascii=False)}'
            out.write(f'{start}, "embedding": [{", ".join(numbers(row))}]}}\n')
            index += 1
        out.flush()


def _csv(out: IO[str], parts: Iterable[Part], _model: str, dimensions: int) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", *map(str, range(dimensions))])
    for texts, vectors in parts:
        writer.writerows([text, *numbers(row)] for text, row in zip(texts, vectors, strict=True))


def save_npy(path: Path, parts: Iterable[Part], dimensions: int) -> None:
    """All vectors as one array of numpy's format, float32 (texts, dimensions)."""
    import numpy as np

    rows = [vectors for _, vectors in parts]
    whole = np.ascontiguousarray(np.concatenate(rows) if rows else np.zeros((0, dimensions), np.float32))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.data)  # numpy's own way says of a full disk nothing but two numbers


def print_similarity(texts: Sequence[str], matrix: np.ndarray) -> None:
    """The cosines of all pairs; a row's text stands at its end."""
    head = ["", *(str(i + 1) for i in range(len(texts))), "text"]
    rows = [[str(i + 1), *(f"{v:.4f}" for v in row), texts[i]] for i, row in enumerate(matrix)]
    print_table(head, rows, right=range(len(texts) + 1))


def similarity_json(texts: Sequence[str], matrix: np.ndarray, model: str) -> None:
    """The same as one JSON object on stdout."""
    values = [[float(cell) for cell in numbers(row)] for row in matrix]
    sys.stdout.write(
        json.dumps({"model": model, "texts": list(texts), "similarity": values}, ensure_ascii=False) + "\n"
    )
