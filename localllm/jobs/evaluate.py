"""How well a model predicts a text, alone and against a reference, as llama-perplexity computes it.

The text is cut into chunks of `context` tokens; of each the second half is predicted, so that every token has some
context before it. Against a reference, the two distributions are compared at the same positions: the Kullback-Leibler
divergence from the reference, how often the likeliest token is the same, and the ratio of the perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from localllm import hardware
from localllm.errors import NotNumbers, UsageError

if TYPE_CHECKING:
    import numpy as np

    from localllm.protocols import SequenceModel

Report = Callable[[int, int], None]
_ROWS = 8  # positions whose logits are worked on at once
_NEGLIGIBLE = -16.0  # log probabilities below do not count for the divergence, as in llama-perplexity


@dataclass(frozen=True, slots=True)
class Quality:
    """Perplexity, and what a comparison found; nothing of that without a reference. Logarithms are natural."""

    perplexity: float
    perplexity_stderr: float
    chunks: int
    context: int
    tokens: int
    reference_perplexity: float | None = None
    mean_kld: float | None = None
    mean_kld_stderr: float | None = None
    kld_p99: float | None = None
    same_top: float | None = None
    same_top_stderr: float | None = None
    ppl_ratio: float | None = None
    ppl_ratio_stderr: float | None = None


def in_chunks(tokens: Sequence[int], context: int, chunks: int, begin: int | None) -> list[list[int]]:
    """A text in chunks of `context` tokens, at most `chunks` of them (0: all); each begins with the model's own token.

    What is left over at the end is not used. Raises UsageError where the text does not fill one.
    """
    count = len(tokens) // context
    if not count:
        raise UsageError(
            f"the text has {len(tokens)} tokens, and one chunk takes {context}", "a longer --text, or a smaller --ctx"
        )
    found = [list(tokens[i * context : (i + 1) * context]) for i in range(min(count, chunks or count))]
    if begin is not None:
        for chunk in found:
            chunk[0] = begin
    return found


def evaluate(
    model: SequenceModel,
    reference: SequenceModel | None,
    tokens: Sequence[int],
    *,
    context: int,
    chunks: int,
    report: Report,
) -> Quality:
    """Evaluate a text that the model's own tokenizer made ids of. `chunks` 0 takes all there are.

    Raises UsageError where the text is too short or the vocabularies differ, EngineError.
    """
    import numpy as np

    if reference is not None and reference.vocabulary_size != model.vocabulary_size:
        raise UsageError(
            f"the vocabularies differ: {model.vocabulary_size} tokens and {reference.vocabulary_size}",
            "compare with the model it was made from",
        )
    parts, first = in_chunks(tokens, context, chunks, model.begin_token), context // 2
    at_once = model.open_scoring(context, first)
    if reference is not None:
        model.abort.followers.append(reference.abort)  # Ctrl-C ends whichever is at work
        reference.open_scoring(context, first)
    rows: list[np.ndarray] = []
    with ThreadPoolExecutor(hardware.physical_cores()) as pool:  # numpy computes outside of Python's lock
        for start in range(0, len(parts), at_once):
            batch = parts[start : start + at_once]
            logits = model.score(batch)
            base = reference.score(batch) if reference is not None else None
            for row, part in enumerate(batch):
                targets = np.array(part[first + 1 :])
                compared = base[row] if base is not None else None
                blocks = range(0, len(targets), _ROWS)
                rows += pool.map(partial(_compare, logits[row], compared, targets), blocks)
                report(start + row + 1, len(parts))
    return _summary(np.concatenate(rows, axis=1), len(parts), context, compared=reference is not None)


def _compare(logits: np.ndarray, base: np.ndarray | None, targets: np.ndarray, start: int) -> np.ndarray:
    """For some positions: the loss, and where there is a reference its loss, the divergence, and 1 for the same top.

    A few rows at a time stay in the processor's cache.
    """
    import numpy as np

    part = slice(start, min(start + _ROWS, len(targets)))
    chosen = np.arange(part.stop - start), targets[part]
    found = log_probabilities(logits[part])
    if base is None:
        return np.stack([-found[chosen]]).astype(np.float64)
    expected = log_probabilities(base[part])
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    return np.stack([-found[chosen], -expected[chosen], divergence(expected, found), same]).astype(np.float64)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of logits (positions, vocabulary), in float32. Raises NotNumbers."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # what is infinite is told below
        shifted: np.ndarray = logits - logits.max(axis=1, keepdims=True)
    totals = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    if not np.isfinite(totals).all():
        raise NotNumbers
    shifted -= np.log(totals).astype(np.float32)
    return shifted


def divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence at each position, of log probabilities."""
    import numpy as np

    terms = np.exp(expected) * (expected - found)
    total: np.ndarray = np.where(expected > _NEGLIGIBLE, terms, 0).sum(axis=1, dtype=np.float64)
    return total


def _summary(rows: np.ndarray, chunks: int, context: int, *, compared: bool) -> Quality:
    import numpy as np

    loss = rows[0]
    mean, error = _mean(loss)
    perplexity = math.exp(mean)
    if not compared:
        return Quality(perplexity, perplexity * error, chunks, context, len(loss))
    _, base, divergences, same = rows
    base_mean, _ = _mean(base)
    # Both models miss at the same places, so the error of the ratio is that of the differences.
    ratio, (_, ratio_error) = math.exp(mean - base_mean), _mean(loss - base)
    kld, kld_error = _mean(divergences)
    top = float(same.mean())
    return Quality(
        perplexity, perplexity * error, chunks, context, len(loss), math.exp(base_mean), kld, kld_error,
        float(np.percentile(divergences, 99)), top, math.sqrt(top * (1 - top) / max(1, len(loss) - 1)),
        ratio, ratio * ratio_error,
    )  # fmt: skip


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    import numpy as np

    spread = max(0.0, float(np.mean(values * values)) - float(np.mean(values)) ** 2)
    return float(np.mean(values)), math.sqrt(spread / max(1, len(values) - 1))
