"""Vectors for the rows of a batch: each request's text is embedded, side by side with its neighbours'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from localllm.errors import ContextOverflow, LocalLLMError
from localllm.jobs.embed import embed
from localllm.protocols import Embedder, Key
from localllm.types import Request

WINDOW = 256  # texts that are sorted by length together, and lost together when the process is killed


@dataclass(frozen=True, slots=True)
class Vector:
    """Of length 1; `tokens` is how long the text was."""

    values: list[float]
    tokens: int


def vectors(
    embedder: Embedder, requests: Iterable[tuple[Key, Request]]
) -> Iterator[tuple[Key, Vector | LocalLLMError]]:
    """What became of each request, in their order; one text that is too long fails alone. Raises EngineError."""
    source, prefix = iter(requests), embedder.prompts.get("", "")
    with embedder.interruptible():
        while window := list(islice(source, WINDOW)):
            texts = [prefix + "\n\n".join(message.content for message in request.messages) for _, request in window]
            lengths = [len(tokens) for tokens in embedder.tokenize_all(texts)]
            fit = [index for index, length in enumerate(lengths) if 0 < length <= embedder.limit]
            found = dict(zip(fit, embed(embedder, [texts[index] for index in fit]), strict=True))
            for index, (key, _) in enumerate(window):
                if index in found:
                    yield key, Vector([float(f"{x:.7g}") for x in found[index].tolist()], lengths[index])
                elif lengths[index]:
                    yield key, ContextOverflow(lengths[index], embedder.limit, embedder.limit)
                else:
                    yield key, LocalLLMError("its text is empty")
