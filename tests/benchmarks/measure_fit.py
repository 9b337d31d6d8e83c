"""What `fit` estimates against what llama.cpp allocates, for real files and for random models of every family.

python tests/benchmarks/measure_fit.py [GGUF...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.random_models import write
from tests.test_fit import CASES, MODELS, measured


def show(title: str, path: Path) -> None:
    for case, (estimated, actual) in zip(CASES, measured(path, *CASES), strict=True):
        ratio = sum(estimated) / sum(actual.values())
        parts = "  ".join(f"{kind} {size / 1e6:.1f}" for kind, size in actual.items() if size)
        print(f"{title:28} {case:18} {parts:60} ratio {ratio:.3f}", flush=True)


def main() -> None:
    for name in sys.argv[1:]:
        show(Path(name).name, Path(name))
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            show(str(model), write(Path(folder) / "m.gguf", model))


if __name__ == "__main__":
    main()
