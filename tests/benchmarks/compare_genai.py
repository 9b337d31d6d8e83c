"""Prompt and decode speed of an ONNX model here and in onnxruntime-genai, in turns: ratios from one run on one machine.

    python tests/benchmarks/compare_genai.py FOLDER REFERENCE_PYTHON [--rounds N] [--threads N] [--clock wall|cpu]

FOLDER has a genai_config.json; REFERENCE_PYTHON is an interpreter with onnxruntime-genai. Both hold the model open in a
process of their own, warm up outside of the clock, and then take turns: 512 tokens of prompt, 128 of greedy decode.
On a machine that others use, `--threads 1 --clock cpu` is the steadier measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

OURS = """
import json, sys, time
from pathlib import Path
from localllm.engines.onnx import open_bare
from localllm.types import EngineOptions, Sampling
folder, threads = sys.argv[1], int(sys.argv[2])
model, _ = open_bare(Path(folder), EngineOptions(threads=threads, context=1024))
def measure(prompt, count):
    model.clear()
    start = clock()
    model.prefill(prompt)
    with model.sampler(Sampling(temperature=0), ignore_eos=True, history=prompt) as draw:
        tokens = [draw()]
        middle = clock()
        while len(tokens) <= count:
            model.feed(tokens[-1])
            tokens.append(draw())
        return middle - start, clock() - middle, tokens
"""
THEIRS = """
import json, sys, time
import onnxruntime_genai as og
folder, threads = sys.argv[1], int(sys.argv[2])
config = og.Config(folder)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = og.Model(config)
def measure(prompt, count):
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=1024, min_length=1024, do_sample=False)
    generator = og.Generator(model, parameters)
    start = clock()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    tokens = [int(generator.get_next_tokens()[0])]
    middle = clock()
    while len(tokens) <= count:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return middle - start, clock() - middle, tokens
"""
SERVE = """
clock = time.process_time if sys.argv[3] == "cpu" else time.perf_counter
for line in sys.stdin:
    prompt, count = json.loads(line)
    print(json.dumps(measure(prompt, count)), flush=True)
"""


class Worker:
    def __init__(self, python: str, code: str, folder: str, threads: int, clock: str) -> None:
        command = [python, "-c", code + SERVE, folder, str(threads), clock]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, prompt: list[int], count: int) -> tuple[float, float, list[int]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([prompt, count]) + "\n")
        self._process.stdin.flush()
        first, then, tokens = json.loads(self._process.stdout.readline())
        return first, then, tokens

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def prompt_of(folder: Path, size: int) -> list[int]:
    """The first tokens of a text that every Python brings."""
    from pydoc_data.topics import topics

    from localllm.engines.onnx_folder import read_folder
    from localllm.engines.onnx_tokenizer import JsonTokenizer

    tokenizer = JsonTokenizer(read_folder(folder).tokenizer, {})
    return tokenizer.tokenize("\n".join(topics.values()), begin=False)[:size]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("reference")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    given = parser.parse_args()
    pair = ((sys.executable, OURS), (given.reference, THEIRS))
    workers = [Worker(python, code, given.folder, given.threads, given.clock) for python, code in pair]
    prompt = prompt_of(Path(given.folder), 512)
    try:
        for worker in workers:
            worker.measure(prompt, 16)
        ratios: dict[str, list[float]] = {"pp512": [], "tg128": []}
        for number in range(given.rounds):
            found = [worker.measure(prompt, 128) for worker in (workers if number % 2 else workers[::-1])]
            ours, theirs = found if number % 2 else found[::-1]
            ratios["pp512"].append(theirs[0] / ours[0])
            ratios["tg128"].append(theirs[1] / ours[1])
            same = next((i for i, (a, b) in enumerate(zip(ours[2], theirs[2], strict=True)) if a != b), len(ours[2]))
            print(
                f"pp512 {512 / ours[0]:7.1f} {512 / theirs[0]:7.1f}  tg128 {128 / ours[1]:6.1f} {128 / theirs[1]:6.1f}  "
                f"same tokens {same} of {len(ours[2])}",
                flush=True,
            )
    finally:
        for worker in workers:
            worker.close()
    for name, values in ratios.items():
        print(
            f"{name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}) times onnxruntime-genai"
        )


if __name__ == "__main__":
    main()
