"""`localllm convert` against llama.cpp's convert_hf_to_gguf.py: time and peak memory, in turns within one run.

    python tests/benchmarks/compare_converter.py CHECKPOINT CONVERTER PYTHON [--dtype bf16] [--rounds 7]

CONVERTER is the path of convert_hf_to_gguf.py, PYTHON one that has torch and transformers for it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a process, its children not counted. The file cache is warm."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, command
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("converter", type=Path)
    parser.add_argument("python")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = f"{folder}/model.gguf"
        ours = [sys.executable, "-m", "localllm", "convert", str(arguments.checkpoint), "--dtype", arguments.dtype,
                "-o", target, "--force", "-q"]  # fmt: skip
        theirs = [arguments.python, str(arguments.converter), str(arguments.checkpoint), "--outtype", arguments.dtype,
                  "--outfile", target]  # fmt: skip
        run(ours)
        run(theirs)
        rows = [(run(ours), run(theirs)) for _ in range(arguments.rounds)]
    for index, what in enumerate(("seconds", "MiB")):
        mine, other = [row[0][index] for row in rows], [row[1][index] for row in rows]
        ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
        print(f"{what}: {statistics.median(mine):.2f} against {statistics.median(other):.2f}, "
              f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
