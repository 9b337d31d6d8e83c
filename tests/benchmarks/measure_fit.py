"""What `fit` estimates against what llama.cpp allocates: a line for every context and type of cache.

python tests/benchmarks/measure_fit.py GGUF...    for these files, with the process's growth in memory
python tests/benchmarks/measure_fit.py            for random models of every family that can be written here

Estimates and sizes in MB; in brackets the estimate over what was measured.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.random_models import write
from tests.test_fit import CASES, GROWTH, MODELS, measured


def show(title: str, path: Path) -> None:
    for case, (estimated, actual) in zip(CASES, measured(path, *CASES), strict=True):
        sizes = (actual["model"], actual["KV"] + actual["RS"], actual["compute"] + actual["output"])
        parts = [
            f"{name} {e / 1e6:.1f}/{a / 1e6:.1f} ({e / a:.3f})"
            for name, e, a in zip(("weights", "cache", "compute"), estimated, sizes, strict=True)
        ]
        ratio = sum(estimated) / sum(sizes)
        print(f"{title:31} {case:15} {parts[0]:30} {parts[1]:28} {parts[2]:29} total ({ratio:.3f})", flush=True)


def show_growth(title: str, path: Path) -> None:
    for context in (2048, 8192):
        command = [sys.executable, "-c", GROWTH, str(path), str(context)]
        actual, estimated = map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
        sizes = f"{estimated / 1e6:.1f}/{actual / 1e6:.1f} ({estimated / actual:.3f})"
        print(f"{title:31} {context:<15} the process grows by {sizes}", flush=True)


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        show(path.name, path)
        show_growth(path.name, path)
    if len(sys.argv) > 1:
        return
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            show(str(model), write(Path(folder) / "m.gguf", model))


if __name__ == "__main__":
    main()
