"""GGUF files against their ONNX exports: how far the logits are apart, and what that makes of the perplexity.

Run by hand: python -m tests.benchmarks.compare_onnx_quality [--chunks N] FILE.gguf...
Of each file: the largest and the mean distance of the logits to llama.cpp's, and the ratio of the perplexities with its
standard error, by accuracy level (0: activations as they are, 4: in 8 bits, as llama.cpp computes).

llama.cpp's own kernels round activations, so that level 0 is far from them whatever the weights. A llama.cpp built with
-DGGML_BLAS=ON -DGGML_CPU_REPACK=OFF multiplies the same quantized weights with activations as they are: with
LLAMA_CPP_LIB_PATH naming its folder, level 0 shows whether the weights were carried over unchanged.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

from localllm.convert.onnx import export
from localllm.engines.scorer import Scorer
from localllm.jobs.calibration import evaluation_text
from localllm.jobs.evaluate import in_chunks
from localllm.types import EngineOptions
from tests.support.onnx_models import Runner

CONTEXT = 512


def losses(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Of each token of the second half."""
    rows = logits[CONTEXT // 2 - 1 : -1].astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(rows, np.array(tokens[CONTEXT // 2 :])[:, None], -1)[:, 0]
    return np.asarray(np.log(np.exp(rows).sum(axis=-1)) - chosen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for path in options.files:
        compare(path, options.chunks, options.threads)


def compare(path: Path, chunks: int, threads: int) -> None:
    exact = EngineOptions(context=CONTEXT, cache_type_k="f32", cache_type_v="f32", flash_attention="off")
    with tempfile.TemporaryDirectory() as place, closing(Scorer(path, exact, gpu_layers=0, threads=threads)) as scorer:
        runners = {}
        for accuracy in (export.EXACT, export.INT8):
            export.write(export.plan(path, "auto", accuracy), Path(place) / str(accuracy))
            runners[accuracy] = Runner(Path(place) / str(accuracy), threads)
        scorer.open_scoring(CONTEXT, 0, at_once=1)
        tokens = scorer.tokenize(evaluation_text(), begin=False)
        theirs: list[np.ndarray] = []
        found: dict[int, list[np.ndarray]] = {accuracy: [] for accuracy in runners}
        apart: dict[int, list[float]] = {accuracy: [] for accuracy in runners}
        for chunk in in_chunks(tokens, CONTEXT, chunks, scorer.begin_token):
            expected = np.array(scorer.score([chunk])[0])
            theirs.append(losses(expected, chunk))
            for accuracy, runner in runners.items():
                runner.reset()
                logits = runner.run(chunk)
                found[accuracy].append(losses(logits, chunk))
                distance = np.abs(logits - expected)
                apart[accuracy] += [float(distance.max()), float(distance.mean())]
        perplexity = np.exp(np.mean(theirs))
        for accuracy in runners:
            ratios = np.concatenate(found[accuracy]) - np.concatenate(theirs)
            error = ratios.std() / np.sqrt(len(ratios))
            print(
                f"{path.name}: llama.cpp {perplexity:.3f}, accuracy {accuracy}: ratio {np.exp(ratios.mean()):.4f} +- "
                f"{error:.4f}, logits apart {max(apart[accuracy][0::2]):.1e} at most, "
                f"{np.mean(apart[accuracy][1::2]):.1e} in the mean",
                flush=True,
            )


if __name__ == "__main__":
    main()
