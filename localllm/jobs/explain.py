"""What a model thought of a text: of every token the probability it gave it, and what it would have said instead.

Logits come some positions at a time and are reduced at once, so that memory does not grow with the text. Surprisal and
entropy are in bits: -log2 p of the token that came, and the mean of that over all that might have come.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from localllm import hardware
from localllm.errors import ContextOverflow, UsageError
from localllm.jobs.evaluate import divergence, log_probabilities
from localllm.protocols import TextModel
from localllm.types import Sampling

if TYPE_CHECKING:
    import numpy as np

TOP = 5
# A text is short and its figures are looked at. Flash attention would round keys and values to float16.
PRECISE = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off"}
_LOGITS_BYTES = 64 << 20  # of one evaluation
_ROWS = 8  # positions whose logits are worked on at once: they stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that might have come; `data` is how it is written."""

    token: int
    data: bytes
    probability: float


@dataclass(frozen=True, slots=True)
class Step:
    """A token of the text and what the model expected in its place; nothing where nothing came before it.

    `logprob` is natural, `surprisal` and `entropy` are bits, `rank` counts from 1, `top` are the likeliest, best first.
    `divergence` is the second model's Kullback-Leibler divergence from the first, in nats, if they have one vocabulary.
    """

    token: int
    data: bytes
    special: bool
    generated: bool = False
    logprob: float | None = None
    rank: int | None = None
    entropy: float | None = None
    top: tuple[Candidate, ...] = ()
    divergence: float | None = None

    @property
    def probability(self) -> float | None:
        return None if self.logprob is None else math.exp(self.logprob)

    @property
    def surprisal(self) -> float | None:
        return None if self.logprob is None else abs(self.logprob) / math.log(2)


@dataclass(frozen=True)
class Explanation:
    """A text explained. `following` are the likeliest tokens after its end."""

    steps: list[Step] = field(default_factory=list)
    following: tuple[Candidate, ...] = ()

    @property
    def predicted(self) -> list[Step]:
        """The text's own tokens that had something before them; the figures below are of these."""
        return [step for step in self.steps if step.logprob is not None and not step.generated]

    @property
    def bits(self) -> float:
        """What the text would cost if the model compressed it."""
        return sum(step.surprisal or 0.0 for step in self.predicted)

    @property
    def perplexity(self) -> float | None:
        """e to the mean loss of the tokens that were predicted."""
        found = [step.logprob or 0.0 for step in self.predicted]
        return math.exp(-math.fsum(found) / len(found)) if found else None

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable between tokenizers."""
        size = sum(len(step.data) for step in self.predicted if not step.special)
        return self.bits / size if size else None


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a model expects at one position; the first three are of the token that came, where one did."""

    logprob: float | None
    rank: int | None
    entropy: float
    top: tuple[tuple[int, float], ...]
    divergence: float | None = None


def explain(
    model: TextModel, tokens: Sequence[int], *, top: int = TOP, more: int = 0, sampling: Sampling | None = None
) -> Iterator[Step | tuple[Candidate, ...]]:
    """Every token of a text in turn, then `more` that the model adds, and last the candidates for the one after.

    Raises UsageError, ContextOverflow, EngineError.
    """
    expected: Expectation | None = None
    for token, (after,) in zip(tokens, expectations((model,), tokens, top, more), strict=True):
        yield step(model, token, expected)
        expected = after
    assert expected is not None
    if more:
        expected = yield from _go_on(model, tokens, more, sampling or Sampling(), top)
    yield candidates(model, expected.top)


def expectations(
    models: Sequence[TextModel], tokens: Sequence[int], top: int, more: int = 0
) -> Iterator[tuple[Expectation, ...]]:
    """What each model expects after each token, all of them reading side by side; `more` is the room to leave.

    Of two and more, which must have the same vocabulary, the later ones tell their divergence from the first.
    """
    rows = min(_rows(model) for model in models)
    for model in models:
        _open(model, tokens, more, rows)
    with ThreadPoolExecutor(hardware.physical_cores()) as pool:  # numpy computes outside of Python's lock
        for start in range(0, len(tokens), rows):
            part = tokens[start : start + rows]
            logits = [model.read(part) for model in models]
            targets = tokens[start + 1 : start + 1 + len(part)]
            for block in pool.map(partial(_expect, logits, targets, top), range(0, len(part), _ROWS)):
                yield from block


def collect(found: Iterator[Step | tuple[Candidate, ...]]) -> Explanation:
    """The whole of what `explain` yields."""
    steps: list[Step] = []
    following: tuple[Candidate, ...] = ()
    for one in found:
        if isinstance(one, Step):
            steps.append(one)
        else:
            following = one
    return Explanation(steps, following)


def _open(model: TextModel, tokens: Sequence[int], more: int, rows: int) -> None:
    if not tokens:
        raise UsageError("there is nothing to explain: the text has no tokens", "write one after the command")
    if len(tokens) + more > model.context:
        raise ContextOverflow(len(tokens) + more, model.context, model.trained_context)
    model.open_text(len(tokens) + more, rows)


def _rows(model: TextModel) -> int:
    """Positions whose logits are held at once."""
    return max(_ROWS, min(256, _LOGITS_BYTES // (4 * model.vocabulary_size)))


def _go_on(
    model: TextModel, tokens: Sequence[int], more: int, sampling: Sampling, top: int
) -> Generator[Step, None, Expectation]:
    """What the model adds; returns what it expects after that."""
    with model.sampler(sampling, ignore_eos=False, history=tokens) as sample:
        logits = model.logits()[None]
        for _ in range(more):
            token = sample()
            ((told,),) = _expect([logits], [token], top, 0)
            yield step(model, token, told, generated=True)
            logits = model.read([token])
            if model.is_end(token):
                break
    ((after,),) = _expect([logits], [], top, 0)
    return after


def _expect(
    logits: Sequence[np.ndarray], targets: Sequence[int], top: int, start: int
) -> list[tuple[Expectation, ...]]:
    """Of the positions from `start` on, by every model; `targets` are the tokens that came, none after a text's end."""
    logprobs = [log_probabilities(one[start : start + _ROWS]) for one in logits]
    columns = [_told(found, targets[start : start + _ROWS], top) for found in logprobs]
    for column, found in zip(columns[1:], logprobs[1:], strict=True):
        apart = divergence(logprobs[0], found)
        column[:] = [replace(one, divergence=float(value)) for one, value in zip(column, apart, strict=True)]
    return list(zip(*columns, strict=True))


def _told(found: np.ndarray, targets: Sequence[int], top: int) -> list[Expectation]:
    """Log probabilities (positions, vocabulary), reduced."""
    import numpy as np

    entropies = -(np.exp(found) * np.maximum(found, -1e4)).sum(axis=1, dtype=np.float64) / math.log(2)
    first = max(0, found.shape[1] - top)
    likeliest = np.argpartition(found, min(first, found.shape[1] - 1), axis=1)[:, first:]
    told = []
    for row, values in enumerate(found):
        best = likeliest[row][np.lexsort((likeliest[row], -values[likeliest[row]]))].tolist()
        probable = tuple((token, math.exp(values[token])) for token in best)
        if row < len(targets):
            value = values[targets[row]]
            told.append(Expectation(float(value), int((values > value).sum()) + 1, float(entropies[row]), probable))
        else:
            told.append(Expectation(None, None, float(entropies[row]), probable))
    return told


def step(model: TextModel, token: int, expected: Expectation | None, *, generated: bool = False) -> Step:
    """A token with what was expected in its place."""
    data, special = model.spelled(token), model.is_special(token)
    if expected is None:
        return Step(token, data, special, generated)
    return Step(
        token, data, special, generated, expected.logprob, expected.rank, expected.entropy,
        candidates(model, expected.top), expected.divergence,
    )  # fmt: skip


def candidates(model: TextModel, top: Sequence[tuple[int, float]]) -> tuple[Candidate, ...]:
    return tuple(Candidate(token, model.spelled(token), probability) for token, probability in top)
