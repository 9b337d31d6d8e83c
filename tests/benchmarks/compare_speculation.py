"""Decoding with guesses and without, in turns within one process; prints ratios.

    python tests/benchmarks/compare_speculation.py MODEL.gguf [--rounds N] [--tokens N] [--threads N]

A ratio above 1 means that guessing is faster. What it has learned of this machine it keeps from answer to answer, as in
a chat; the first round is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics

from localllm.engines import open_engine
from localllm.engines.local import LocalEngine
from localllm.engines.speculation import SIZES
from localllm.types import EngineOptions, Limits, Message, Request, Sampling, Usage

SENTENCE = (
    "The quick brown fox jumps over the lazy dog, and the farmer who lives on the hill watches the sheep graze near the "
    "old stone wall until the evening bells of the village church ring across the valley."
)
CODE = """def total(x):
    result = 0
    for item in x:
        if item is None:
            continue
        result += item
    if result < 0:
        raise ValueError('negative')
    return result

def mean(x):
    if not x:
        return 0
    return total(x) / len(x)"""
TEXTS = {
    "a text said again": f"Repeat this text over and over, word by word:\n{SENTENCE}",
    "code edited": f"Rename the variable x to values in this code and print it in full:\n```python\n{CODE}\n```",
    "a list": "Count from 1 to 100, one number a line.",
    "a summary, seems to copy": f"Summarize this in your own words: {SENTENCE} {CODE}",
    "a long text, and a question": f"{topics['assignment'][:1800]}\nWhat is an augmented assignment?",
    "a story": "Write a long story about a dog who went to sea.",
    "a letter": "Write a letter to my landlord about the broken heating.",
}


def decode(engine: LocalEngine, text: str, temperature: float, count: int) -> tuple[list[int | None], float, Usage]:
    """Tokens, the seconds from the first to the last, and what it cost."""
    sampling, limits = Sampling(temperature=temperature, seed=1), Limits(max_tokens=count, ignore_eos=True)
    first, tokens, usage = 0.0, [], None
    for chunk in engine.stream(Request((Message("user", text),), sampling, limits)):
        first = first or time.perf_counter()
        tokens += [chunk.token] if chunk.token is not None else []
        usage = chunk.usage
    assert usage is not None
    return tokens, time.perf_counter() - first, usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--loose", action="store_true", help="guesses also where batches round otherwise")
    given = parser.parse_args()
    options = EngineOptions(threads=given.threads, context=1024)
    plain, guessing = (open_engine("llama.cpp", given.model, options) for _ in range(2))
    guessing.model.allow_guesses(SIZES[-1] - 1)
    guessing.exact = not given.loose
    print("| text | temperature | median ratio | from to | accepted | tokens |\n|---|---|---|---|---|---|")
    for name, text in TEXTS.items():
        for temperature in (0, 0.8):
            ratios = []
            for _ in range(given.rounds + 1):
                expected, slow, _ = decode(plain, text, temperature, given.tokens)
                found, fast, usage = decode(guessing, text, temperature, given.tokens)
                ratios.append(slow / fast)
            same = "the same" if expected == found else "others"
            print(
                f"| {name} | {temperature} | {statistics.median(ratios[1:]):.2f} | {min(ratios[1:]):.2f} to "
                f"{max(ratios[1:]):.2f} | {usage.accepted_tokens} of {usage.drafted_tokens} | {same} |",
                flush=True,
            )
    plain.close()
    guessing.close()


if __name__ == "__main__":
    main()
