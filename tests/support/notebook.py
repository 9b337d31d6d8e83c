"""Runs a notebook's cells one after the other, as its kernel would, and can write what they gave into it.

    python -m tests.support.notebook docs/inside.ipynb

A kernel, its sockets and five packages would add nothing: the cells are plain Python, and what a notebook shows of the
last expression of a cell is its `_repr_html_`, or else its `repr`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Output:
    """What a cell printed, its last expression's value, and how that is shown: as text, or as HTML of its own."""

    printed: str
    value: Any
    text: str
    html: str | None


def run(path: Path) -> tuple[dict[str, Any], list[Output]]:
    """The names that are left, and what each code cell gave."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return names, [_run_cell("".join(cell["source"]), names) for cell in _code_cells(json.loads(path.read_text()))]


def _code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _run_cell(source: str, names: dict[str, Any]) -> Output:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    shown = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return Output(printed.getvalue(), value, repr(value), shown)


def main() -> None:
    path = Path(sys.argv[1])
    notebook, (_, outputs) = json.loads(path.read_text()), run(path)
    for count, (cell, output) in enumerate(zip(_code_cells(notebook), outputs, strict=True), 1):
        cell["execution_count"], cell["outputs"] = count, []
        if output.printed:
            lines = output.printed.splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines})
        if output.value is not None:
            data = {"text/plain": output.text.splitlines(keepends=True)}
            if output.html is not None:
                data = {
                    "text/html": output.html.splitlines(keepends=True),
                    "text/plain": [f"<{type(output.value).__name__}>"],
                }
            result = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}
            cell["outputs"].append(result)
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
