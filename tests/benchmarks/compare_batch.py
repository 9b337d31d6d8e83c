"""64 prompts of 64 tokens answered together and one by one, in turns within one process; prints ratios.

    python tests/benchmarks/compare_batch.py MODEL.gguf... [--rounds N] [--parallel N] [--threads N]

Each answer has 64 tokens. One by one they share the template's head too, as the engine keeps what prompts have in
common. A ratio above 1 means that together is faster. It also tells how many greedy answers are the same: batches of
another size round differently in the last bit, and where two tokens are nearly as likely the other one may be chosen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics

from localllm.engines import open_engine, open_together
from localllm.types import Chunk, EngineOptions, Limits, Message, Request, Sampling

ROWS, TOKENS = 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parallel", type=int)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    print("| file | together | one by one | median ratio | from to | same answers |\n|---|---|---|---|---|---|")
    for path in given.models:
        compare(path, EngineOptions(threads=given.threads, context=1024), given.parallel, given.rounds)


def compare(path: Path, options: EngineOptions, parallel: int | None, rounds: int) -> None:
    alone = open_engine("llama.cpp", path, options)
    together, answers = open_together("llama.cpp", path, options, parallel)
    text = alone.model.tokenize(" ".join(topics.values()), begin=False)
    starts = range(0, ROWS * TOKENS, TOKENS)
    prompts = [b"".join(map(alone.model.piece, text[i : i + TOKENS])).decode(errors="replace") for i in starts]
    sampling, limits = Sampling(temperature=0), Limits(max_tokens=TOKENS, ignore_eos=True)
    requests = {i: Request((Message("user", prompt),), sampling, limits) for i, prompt in enumerate(prompts)}
    list(alone.stream(requests[0]))
    times: tuple[list[float], list[float]] = ([], [])
    same = 0
    for _ in range(rounds):
        started = time.perf_counter()
        found = dict(answers(requests.items()))
        middle = time.perf_counter()
        expected = {key: list(alone.stream(request)) for key, request in requests.items()}
        times[0].append(middle - started)
        times[1].append(time.perf_counter() - middle)
        same = sum(said(found[key]) == said(expected[key]) for key in requests)
    together.close()
    alone.close()
    ratios = [slow / fast for fast, slow in zip(*times, strict=True)]
    speeds = [ROWS * TOKENS / statistics.median(seconds) for seconds in times]
    print(
        f"| {path.name} | {speeds[0]:.0f} t/s | {speeds[1]:.0f} t/s | {statistics.median(ratios):.2f} "
        f"| {min(ratios):.2f} to {max(ratios):.2f} | {same} of {ROWS} |",
        flush=True,
    )


def said(outcome: object) -> str:
    assert isinstance(outcome, list), outcome
    chunks: list[Chunk] = outcome
    return "".join(chunk.text for chunk in chunks)


if __name__ == "__main__":
    main()
