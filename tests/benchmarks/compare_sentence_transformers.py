"""Compares `localllm embed` with sentence-transformers, in turns: 1,000 sentences, the same threads.

python tests/benchmarks/compare_sentence_transformers.py CHECKPOINT PYTHON MODEL... [--rounds N] [--threads N]

CHECKPOINT is the folder of an embedding model, PYTHON one that has sentence-transformers, MODEL what was made of the
checkpoint (a GGUF, an ONNX folder). Ratios below 1 mean that localllm takes less time; opening the model is outside of
"encode", and inside of "process" with everything else. Both sides run once before their time counts.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data import topics

import numpy as np

THEIRS = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[4]))
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
rounds = int(sys.argv[5])
if rounds:
    model.encode(texts)
started = time.perf_counter()
found = model.encode(texts, normalize_embeddings=True)
print(time.perf_counter() - started)
import numpy as np
np.save(sys.argv[3], found)
"""
OURS = """
import sys, time
from pathlib import Path
from localllm.engines import open_embedder
from localllm.jobs.embed import embed
from localllm.types import EngineOptions
model = open_embedder(Path(sys.argv[1]), EngineOptions(threads=int(sys.argv[4])))
texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
embed(model, texts)
started = time.perf_counter()
found = embed(model, texts)
print(time.perf_counter() - started)
import numpy as np
np.save(sys.argv[3], found)
"""


def sentences(count: int) -> list[str]:
    text = " ".join(" ".join(t.split()) for t in topics.topics.values())
    return [s for s in re.split(r"(?<=[.:]) ", text) if 20 < len(s) < 400][:count]


def timed(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("python")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        texts, theirs, ours = (str(Path(place) / name) for name in ("texts", "theirs.npy", "ours.npy"))
        Path(texts).write_text("\n".join(sentences(1000)) + "\n", encoding="utf-8")
        threads = str(arguments.threads)
        for model in arguments.models:
            ratios: dict[str, list[float]] = {"encode": [], "process": []}
            for _ in range(arguments.rounds):
                their_command = [arguments.python, "-c", THEIRS, arguments.checkpoint, texts, theirs, threads]
                _, printed = timed([*their_command, "1"])
                _, our_printed = timed([sys.executable, "-c", OURS, model, texts, ours, threads])
                ratios["encode"].append(float(our_printed) / float(printed))
                whole, _ = timed([*their_command, "0"])
                command = [
                    sys.executable,
                    "-m",
                    "localllm",
                    "embed",
                    "-m",
                    model,
                    "-f",
                    texts,
                    "-o",
                    ours,
                    "-t",
                    threads,
                ]
                our_whole, _ = timed(command)
                ratios["process"].append(our_whole / whole)
            cosines = (np.load(theirs) * np.load(ours)).sum(axis=1)
            for name, values in ratios.items():
                row = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
                print(f"{Path(model).name}: {name}: {row}; least cosine {cosines.min():.6f}", flush=True)


if __name__ == "__main__":
    main()
