"""Decoding while other programs want the cores too, as threads wait here and as libgomp has it, in turns; prints ratios.

    python tests/benchmarks/compare_spinning.py MODEL.gguf [--busy N] [--threads N] [--rounds N]

Each turn is a process of its own, as libgomp reads its environment once. A ratio above 1 means that waiting as we do
is faster; `--busy 0` measures the quiet machine, on which both are to be the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

_DECODE = """
import sys, time
from pathlib import Path
from localllm.engines import open_engine
from localllm.types import EngineOptions
model = open_engine("llama.cpp", Path(sys.argv[1]), EngineOptions(context=512, threads=int(sys.argv[2]))).model
model.prefill(range(100, 164))
started, count = time.perf_counter(), 0
while time.perf_counter() - started < 2:
    model.feed(5)
    model.logits()
    count += 1
    if count % 256 == 0:
        model.prefill(range(100, 164))
print(count / (time.perf_counter() - started))
"""
_AS_IT_HAS_IT = "300000"  # libgomp's own number of turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--busy", type=int, default=1, help="other programs that always want a core")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}

    def speed(**more: str) -> float:
        command = [sys.executable, "-c", _DECODE, given.model, str(given.threads)]
        return float(subprocess.run(command, env=clean | more, capture_output=True, check=True).stdout)

    pairs = []
    try:
        for turn in range(given.rounds):  # whoever comes second may find the processor warm
            if turn % 2:
                its, ours = speed(GOMP_SPINCOUNT=_AS_IT_HAS_IT), speed()
            else:
                ours, its = speed(), speed(GOMP_SPINCOUNT=_AS_IT_HAS_IT)
            pairs.append((ours, its))
    finally:
        for other in others:
            other.kill()
    ratios = [ours / its for ours, its in pairs]
    ours, its = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
    print("| busy programs | localllm | libgomp's default | median ratio | from to |\n|---|---|---|---|---|")
    print(
        f"| {given.busy} | {ours:.0f} t/s | {its:.0f} t/s | {statistics.median(ratios):.2f} "
        f"| {min(ratios):.2f} to {max(ratios):.2f} |"
    )


if __name__ == "__main__":
    main()
