"""The house keeps its arrows: imports point down, heavy modules come when they are needed, only the top prints."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import localllm

PACKAGE = Path(localllm.__file__).parent
LAYERS = {
    "errors": 0, "types": 0, "protocols": 0, "fields": 0, "settings": 0, "whole": 0, "signals": 0, "toml_lines": 0,
    "text": 1, "formats": 1, "hardware": 1, "shape": 1, "fit": 1,
    "hub": 2, "convert": 2, "engines": 2,
    "conversation": 3, "tree": 3, "overflow": 3, "history": 3, "transcript": 3, "prompts": 3, "jobs": 3,
    "ui": 4,
    "commands": 5, "cli": 5, "api": 5, "__main__": 6, "__init__": 6,
}  # fmt: skip
APART = {"hub", "engines", "convert"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] != "localllm" or len(parts) < 2 or parts[1] == "__version__":
            continue
        there = parts[1]
        assert LAYERS[there] <= LAYERS[here], f"{here} imports {there}"
        assert here == there or not {here, there} <= APART, f"{here} imports {there}, beside it"


def test_only_the_top_writes_to_the_terminal() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                # The template worker's stdout is the pipe to its parent, not the terminal.
                assert room(path) in ("ui", "commands", "cli") or path.name == "template_worker.py", path


@pytest.mark.parametrize("module", ["localllm", "localllm.cli"])
def test_nothing_heavy_is_imported(module: str) -> None:
    heavy = ["numpy", "llama_cpp", "onnxruntime", "huggingface_hub", "prompt_toolkit", "rich", "jinja2", "psutil"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_imports_no_more_than_it_needs(model_path: Path) -> None:
    heavy = ["numpy", "onnxruntime", "huggingface_hub", "prompt_toolkit", "rich", "jinja2", "diskcache"]
    heavy += ["localllm.commands.batch", "localllm.commands.tune", "localllm.hub.download"]
    code = (
        "import sys, os\nfrom localllm.cli import app\nsys.stdin = open(os.devnull)\n"
        f"try:\n    app(['run', '-m', {str(model_path)!r}, 'Hi', '-n', '1'])\n"
        f"except SystemExit:\n    print([m for m in {heavy} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
