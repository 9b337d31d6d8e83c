"""Two models on one text, side by side: where one expected what came and the other did not.

Models with the same tokenizer are compared token by token, their distributions too. Where the tokenizers differ, the
tokens between two places at which both have a border stand together, and their surprisal is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from localllm.errors import UsageError
from localllm.jobs.explain import (
    Expectation,
    Explanation,
    Step,
    candidates,
    collect,
    expectations,
    explain,
    step,
)
from localllm.protocols import TextModel

PART_BITS = 1.0  # surprisal by which two models part that cannot be compared token by token


@dataclass(frozen=True, slots=True)
class Pair:
    """A stretch of the text: the first model's tokens and the second's; one each where the tokenizers agree."""

    first: tuple[Step, ...]
    second: tuple[Step, ...]

    @property
    def data(self) -> bytes:
        return b"".join(step.data for step in self.first)

    @property
    def bits(self) -> tuple[float | None, float | None]:
        """Both models' surprisal; nothing where nothing came before the tokens."""
        return _bits(self.first), _bits(self.second)

    @property
    def parts(self) -> bool:
        """Whether the two would have gone on differently here: another likeliest token, or a bit of surprisal."""
        first, second = self.bits
        if first is None or second is None:
            return False
        if len(self.first) == len(self.second) == 1:
            return self.first[0].top[0].data != self.second[0].top[0].data
        return abs(first - second) >= PART_BITS


@dataclass(frozen=True)
class Comparison:
    first: Explanation
    second: Explanation
    pairs: list[Pair]

    @property
    def mean_divergence(self) -> float | None:
        """Mean Kullback-Leibler divergence of the second model from the first, in nats."""
        found = [step.divergence for step in self.second.predicted if step.divergence is not None]
        return sum(found) / len(found) if found else None


def compare(
    first: TextModel,
    second: TextModel,
    tokens: Sequence[int],
    others: Callable[[], Sequence[int]],
    *,
    top: int,
) -> Comparison:
    """`tokens` are the text to the first model, `others()` what they are to the second where its tokenizer differs.

    Raises UsageError where the two do not make the same text of their tokens, ContextOverflow, EngineError.
    """
    same = all(_spells_alike(first, second, token) for token in set(tokens))
    if same and first.vocabulary_size == second.vocabulary_size:
        one, two = _side_by_side((first, second), tokens, top)
    else:
        one = collect(explain(first, tokens, top=top))
        two = collect(explain(second, tokens if same else others(), top=top))
    pairs = [Pair((a,), (b,)) for a, b in zip(one.steps, two.steps, strict=True)] if same else list(align(one, two))
    return Comparison(one, two, pairs)


def _side_by_side(models: Sequence[TextModel], tokens: Sequence[int], top: int) -> list[Explanation]:
    expected: tuple[Expectation | None, ...] = (None,) * len(models)
    steps: list[list[Step]] = [[] for _ in models]
    for token, after in zip(tokens, expectations(models, tokens, top), strict=True):
        for model, told, column in zip(models, expected, steps, strict=True):
            column.append(step(model, token, told))
        expected = after
    return [
        Explanation(column, candidates(model, told.top if told else ()))
        for model, column, told in zip(models, steps, expected, strict=True)
    ]


def align(one: Explanation, two: Explanation) -> Iterator[Pair]:
    """Stretches between common borders of two tokenizations; special tokens count for no text. Raises UsageError."""
    texts = [b"".join(step.data for step in found.steps if not step.special) for found in (one, two)]
    # SentencePiece puts a space before a text.
    ahead = [int(texts[i] == b" " + texts[1 - i]) for i in range(2)]
    if texts[0] != texts[1] and not any(ahead):
        raise UsageError(
            "the two models read different texts, so that their tokens cannot be aligned",
            "without --chat, or with models of one template",
        )
    streams = [_Stream(found.steps, -extra) for found, extra in zip((one, two), ahead, strict=True)]
    while any(stream.rest for stream in streams):
        taken = [stream.take() for stream in streams]
        while streams[0].position != streams[1].position:
            behind = 0 if streams[0].position < streams[1].position else 1
            taken[behind] += streams[behind].take()
        yield Pair(tuple(taken[0]), tuple(taken[1]))


class _Stream:
    """Steps that are taken one by one, and how many bytes of the text they came to."""

    def __init__(self, steps: Sequence[Step], position: int) -> None:
        self.rest, self.position = list(steps), position

    def take(self) -> list[Step]:
        """The next token, with the special tokens before it, and behind the last of the text."""
        taken: list[Step] = []
        while self.rest:
            taken.append(self.rest.pop(0))
            if not taken[-1].special:
                self.position += len(taken[-1].data)
                break
        while self.rest and all(step.special for step in self.rest):
            taken.append(self.rest.pop(0))
        return taken


def _spells_alike(first: TextModel, second: TextModel, token: int) -> bool:
    return token < second.vocabulary_size and first.spelled(token) == second.spelled(token)


def _bits(steps: Sequence[Step]) -> float | None:
    found = [step.surprisal for step in steps if step.surprisal is not None]
    return sum(found) if found else None
