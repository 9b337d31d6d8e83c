"""Texts -> vectors: lengths checked, batches of texts of like length, the order kept, the memory bounded.

Padding costs as much as text, so the texts are sorted by their length first; as many as make a good batch for the
engine go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from localllm.errors import NotNumbers, UsageError

if TYPE_CHECKING:
    import numpy as np

    from localllm.protocols import Embedder

Report = Callable[[int], None]
WINDOW = 2048  # texts that are sorted together, and held at once


def embed(
    embedder: Embedder,
    texts: Iterable[str],
    *,
    normalize: bool = True,
    truncate: bool = False,
    report: Report = lambda done: None,
) -> np.ndarray:
    """Vectors of all texts in their order: float32, (texts, dimensions), of length 1 where `normalize`.

    `report` hears how many are done. Raises UsageError for a text that is too long, unless `truncate`; EngineError.
    """
    import numpy as np

    parts = list(stream(embedder, texts, normalize=normalize, truncate=truncate, report=report))
    return np.concatenate(parts) if parts else np.zeros((0, embedder.dimensions), np.float32)


def stream(
    embedder: Embedder,
    texts: Iterable[str],
    *,
    normalize: bool = True,
    truncate: bool = False,
    report: Report = lambda done: None,
) -> Iterator[np.ndarray]:
    """The same, some thousand texts at a time, for more than the memory would hold."""
    source, done = iter(texts), 0
    while window := list(islice(source, WINDOW)):
        tokens = embedder.tokenize_all(window)
        _check_lengths(embedder, tokens, done, truncate=truncate)
        yield _encoded(embedder, tokens, normalize, _after(report, done))
        done += len(window)


def _after(report: Report, before: int) -> Report:
    return lambda count: report(before + count)


def _encoded(embedder: Embedder, tokens: list[list[int]], normalize: bool, report: Report) -> np.ndarray:
    import numpy as np

    found = np.empty((len(tokens), embedder.dimensions), np.float32)
    done = 0
    for batch in batches([len(ids) for ids in tokens], embedder.batch):
        found[batch] = embedder.encode([tokens[index] for index in batch])
        done += len(batch)
        report(done)
    if not np.isfinite(found).all():  # JSON has no word for it, and no distance to it is one
        raise NotNumbers
    if normalize:
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return found


def batches(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Indexes in batches, the longest texts first, that take at most `room` tokens when padded to their longest.

    A text that is longer than that is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > room:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _check_lengths(embedder: Embedder, tokens: list[list[int]], before: int, *, truncate: bool) -> None:
    """Cut what is too long, or refuse it. The tokens that the model wants behind a text stay."""
    limit = embedder.limit
    for index, ids in enumerate(tokens):
        if not ids:
            raise UsageError(f"text {before + index + 1} is empty, and the model puts no tokens around a text")
        if len(ids) <= limit:
            continue
        if not truncate:
            raise UsageError(
                f"text {before + index + 1} has {len(ids)} tokens and the model takes {limit}",
                "--truncate embeds its beginning",
            )
        behind = _tokens_behind(embedder)
        ids[limit - behind :] = ids[len(ids) - behind :]


def _tokens_behind(embedder: Embedder) -> int:
    """How many tokens stand behind every text."""
    empty, other = embedder.tokenize_all(["", "a"])
    before = 0
    while before < len(empty) and empty[before] == other[before]:
        before += 1
    return len(empty) - before
