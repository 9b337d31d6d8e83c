"""Prompt and decode speed, measured as llama-bench measures them.

A test is a number of prompt tokens in one evaluation, or of single-token evaluations from an empty context; random
tokens, one warm-up, then repetitions, each from an empty KV cache. Nothing is sampled.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from localllm.protocols import TokenModel


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One test: `n_prompt` or `n_gen` tokens, and the nanoseconds of each repetition."""

    n_prompt: int
    n_gen: int
    samples_ns: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"

    @property
    def samples_ts(self) -> tuple[float, ...]:
        return tuple((self.n_prompt + self.n_gen) * 1e9 / ns for ns in self.samples_ns)

    @property
    def avg_ts(self) -> float:
        """Mean tokens per second."""
        return statistics.fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        return statistics.stdev(self.samples_ts) if len(self.samples_ts) > 1 else 0.0


def bench(
    model: TokenModel, vocabulary_size: int, *, prompts: list[int], generations: list[int], repetitions: int
) -> Iterator[BenchResult]:
    """Run each test; yields a result as soon as it is there. A size of 0 is left out."""
    draw = random.Random(0)
    for n_prompt, n_gen in [(n, 0) for n in prompts if n] + [(0, n) for n in generations if n]:
        model.open_context(n_prompt + n_gen + 1)
        samples = []
        with model.interruptible():
            for repetition in range(repetitions + 1):
                tokens = [draw.randrange(vocabulary_size) for _ in range(n_prompt + n_gen)]
                model.clear()
                started = time.perf_counter_ns()
                model.prefill(tokens[: n_prompt or 1])
                for token in tokens[n_prompt or 1 :]:
                    model.feed(token)
                if repetition:
                    samples.append(time.perf_counter_ns() - started)
        yield BenchResult(n_prompt, n_gen, tuple(samples))
