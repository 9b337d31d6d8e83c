"""Which quantization, how many threads and which KV cache serve a model best on this machine: measured, not believed.

Every candidate's size, memory, prompt and decode speed are taken here, and its Kullback-Leibler divergence from the
model it was made of. A goal weighs them; what is beaten in everything by another is not on the Pareto front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from localllm import fit, hardware
from localllm.engines.llama_cpp import load, open_scorer
from localllm.engines.scorer import Scorer
from localllm.errors import EngineError, UsageError
from localllm.formats.gguf import read_model
from localllm.jobs.bench import bench
from localllm.jobs.evaluate import evaluate
from localllm.types import EngineOptions

Report = Callable[[int, int], None]
Goal = Literal["speed", "balanced", "quality"]
GOALS: tuple[Goal, ...] = ("speed", "balanced", "quality")
PROMPT, ANSWER = 512, 64  # tokens of the two speed tests
CONTEXT = 4096  # tokens with which memory is counted
_ANSWERED = 256  # tokens of the answer in the exchange that speed is judged by, to a prompt of PROMPT
_DOUBLE = 0.1  # the divergence that counts as much as twice the time
_NO_WORSE = 1.03  # of the best time: noise
_MORE = 0.01  # divergence that a smaller KV cache may add


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate: sizes in bytes, speeds in tokens per second, divergence from the reference in nats."""

    name: str
    path: Path
    size: int
    memory: int
    prompt_ts: float
    decode_ts: float
    kld: float
    kld_stderr: float
    same_top: float

    @property
    def seconds(self) -> float:
        """Of an exchange: a prompt of 512 tokens and an answer of 256."""
        return PROMPT / self.prompt_ts + _ANSWERED / self.decode_ts


@dataclass(frozen=True, slots=True)
class Setting:
    """Threads and KV cache type with the speeds they gave, and the divergence they add."""

    threads: int
    cache_type: str
    prompt_ts: float
    decode_ts: float
    added_kld: float = 0.0

    @property
    def seconds(self) -> float:
        return PROMPT / self.prompt_ts + _ANSWERED / self.decode_ts

    @property
    def options(self) -> dict[str, Any]:
        """As options of the engine; what is the default anyhow is left out."""
        found: dict[str, Any] = {} if self.threads == hardware.physical_cores() else {"threads": self.threads}
        if self.cache_type != "f16":
            found |= {"cache_type_k": self.cache_type, "cache_type_v": self.cache_type}
        return found


class Tuner:
    """Measures candidates against a reference, which stays open. Raises EngineError and its children."""

    def __init__(self, reference: Path, text: str, chunks: int, options: EngineOptions) -> None:
        self._options, self._chunks = options, chunks
        self._reference: Scorer = open_scorer(reference, options)
        self._tokens = self._reference.tokenize(text, begin=True, special=False)

    def close(self) -> None:
        self._reference.close()

    def measure(self, name: str, path: Path, report: Report = lambda done, total: None) -> Measured:
        """Everything about one candidate. `report` hears of chunks compared and of all."""
        header = read_model(path)
        need = fit.estimate(header, CONTEXT, "f16", "f16", repacked_types=hardware.repacked_types())
        prompt_ts, decode_ts = self.speed(path, self._options)
        kld, error, same = self.divergence(path, self._options, report)
        return Measured(name, path, header.file_size, need.total, prompt_ts, decode_ts, kld, error, same)

    def speed(self, path: Path, options: EngineOptions) -> tuple[float, float]:
        """Tokens per second of a prompt and of an answer."""
        with closing(load(read_model(path), options)) as model:
            prompt, answer = bench(model, model.vocabulary_size, prompts=[PROMPT], generations=[ANSWER], repetitions=3)
        return max(prompt.samples_ts), max(answer.samples_ts)  # what disturbs only makes slower

    def divergence(
        self, path: Path, options: EngineOptions, report: Report = lambda done, total: None
    ) -> tuple[float, float, float]:
        """Mean divergence from the reference, its standard error, and how often the top token is the same."""
        with closing(open_scorer(path, options)) as model, model.interruptible():
            context = min(512, model.trained_context)
            found = evaluate(model, self._reference, self._tokens, context=context, chunks=self._chunks, report=report)
        assert found.mean_kld is not None and found.mean_kld_stderr is not None and found.same_top is not None
        return found.mean_kld, found.mean_kld_stderr, found.same_top

    def settings(self, chosen: Measured, report: Callable[[Setting], None]) -> Setting:
        """The fewest threads and the smallest KV cache that cost nothing that matters."""
        found = []
        for threads in _thread_counts(hardware.physical_cores()):
            setting = Setting(threads, "f16", *self.speed(chosen.path, replace(self._options, threads=threads)))
            report(setting)
            found.append(setting)
        best = fewest_threads(found)
        smaller = replace(self._options, threads=best.threads, cache_type_k="q8_0", cache_type_v="q8_0")
        try:
            added = self.divergence(chosen.path, smaller)[0] - chosen.kld
            half = Setting(best.threads, "q8_0", *self.speed(chosen.path, smaller), added)
        except EngineError:  # not every model can have such a cache
            return best
        report(half)
        return half if half.seconds <= best.seconds * _NO_WORSE and added <= _MORE else best


def _thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})


def fewest_threads(found: Sequence[Setting]) -> Setting:
    """Of those that are as fast as the fastest, the one that leaves most cores to others."""
    fastest = min(setting.seconds for setting in found)
    return min((s for s in found if s.seconds <= fastest * _NO_WORSE), key=lambda s: s.threads)


def pareto_front(found: Sequence[Measured]) -> list[Measured]:
    """Those that no other beats in speed, divergence and size at once."""

    def beats(a: Measured, b: Measured) -> bool:
        ours, theirs = ((m.seconds, m.kld, m.size) for m in (a, b))
        return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))

    return [m for m in found if not any(beats(other, m) for other in found)]


def recommend(
    found: Sequence[Measured], goal: Goal, *, max_size: int | None = None, max_memory: int | None = None
) -> Measured:
    """The best for a goal within bounds of bytes. Raises UsageError where none is within.

    `speed` takes the shortest exchange, `quality` the smallest divergence; `balanced` lets a divergence of 0.1 weigh as
    much as twice the time.
    """
    allowed = [m for m in found if m.size <= (max_size or m.size) and m.memory <= (max_memory or m.memory)]
    if not allowed:
        least = min(found, key=lambda m: m.size)
        raise UsageError(
            f"none is that small: {least.name} is the smallest with {least.size} bytes, {least.memory} in memory",
            "try smaller types, for example IQ3_XXS or Q2_K with --imatrix auto",
        )
    weights: dict[Goal, Callable[[Measured], float]] = {
        "speed": lambda m: m.seconds,
        "quality": lambda m: m.kld,
        "balanced": lambda m: m.seconds * (1 + m.kld / _DOUBLE),
    }
    return min(allowed, key=weights[goal])
