"""Speculation: what comes next is guessed, and the model checks several guesses at once.

Without a second model, what comes next is often what came before (prompt lookup). A text that quotes, edits or repeats
says again what stands in the prompt or in the answer so far. Where the last tokens have been there before, those that
followed them are a guess at the next ones. The model evaluates several tokens in less time than one after the other;
each that it would have chosen itself counts, the rest is taken back. It chooses with its own sampler at every place, so
that the text is what it would have been without. Where nothing is repeated, a small model of the same vocabulary may
guess (arXiv 2211.17192).

How many tokens are worth guessing is decided anew every time, from two things that are measured all along. How often a
guess is right is counted by how long a stretch is being repeated: also while nothing is guessed, so that a story pays
nothing to find out. And what a batch of n tokens costs in single steps is timed on this machine as batches come. Texts
differ, and what was learned from one misleads in the next: so what an answer may lose to wrong guesses is bounded.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from typing import Protocol

from localllm.protocols import TokenModel
from localllm.types import Sampling

# Tokens that are evaluated at once (the one that is known, and the guessed ones) -> what that costs in single steps, as
# long as nothing was measured: what Q4_0 weights cost on two cores.
_COSTS = {2: 1.7, 3: 2.2, 4: 2.5, 6: 3.6, 8: 3.8, 12: 4.8, 16: 5.4}
SIZES = tuple(_COSTS)
_GRAM = 3  # tokens that must have been there before; two say too little
_LONGEST = 64  # a repeated stretch is not counted further
# Lengths of stretches, from each on counted together -> the share of right guesses that is assumed at first: what a
# small model's texts showed.
_STRETCHES = {3: 0.65, 4: 0.7, 6: 0.8, 9: 0.85, 13: 0.9, 19: 0.92, 28: 0.95, 41: 0.97}
_LEVELS = tuple(_STRETCHES)
_DOUBT = 4.0  # guesses that the first assumptions count for
_MEMORY = 200.0  # guesses that are remembered; older ones fade
_FIRST_SHARE, _FIRST_STEP = 0.7, 0.3  # what is assumed of a small model: right guesses, and their cost in steps
_PATIENCE = 64  # tokens after which a small model that did not pay is tried again
_WORTH = 1.1  # what must be gained in expectation before anything is guessed
# Single steps: what wrong guesses may cost an answer, at once and for each token. What right ones save is added.
_STAKE, _RATE = 2.0, 0.02


class Ahead(Protocol):
    """A model that can evaluate at most `lookahead` guesses; `ahead` are those that have not been fed since.

    Where it is `exact`, only as many at once as give the logits of single steps to the last bit.
    """

    ahead: list[int]
    exact: bool

    @property
    def lookahead(self) -> int: ...

    def clear_ahead(self, count: int) -> int:
        """How many of `count` guesses may be evaluated now."""
        ...

    def feed_ahead(self, token: int, guess: Sequence[int]) -> None:
        """Evaluate a token and what may follow it. To `feed` it the first of `ahead` then costs nothing."""
        ...

    def feed(self, token: int) -> None: ...


class Pace:
    """What is known of a model on this machine: how often guesses are right, and what batches cost in single steps."""

    def __init__(self, assumed: Sequence[float] = tuple(_STRETCHES.values())) -> None:
        self.step = 0.0  # what it costs to make a guess, in single steps
        self._right = [_DOUBT * share for share in assumed]
        self._asked = [_DOUBT for _ in _STRETCHES]
        self._cost = dict(_COSTS)
        self._single = 0.0

    def saw(self, stretch: int, right: bool) -> None:
        """A guess after a stretch of this length was right, or not, or would have been."""
        level = _level(stretch)
        if self._asked[level] > _MEMORY:
            self._asked[level] *= 0.5
            self._right[level] *= 0.5
        self._asked[level] += 1
        self._right[level] += right

    def made(self, count: int, seconds: float) -> None:
        """To make so many guesses took so long."""
        if self._single:
            self.step += 0.25 * (seconds / count / self._single - self.step)

    def took(self, size: int, seconds: float) -> None:
        """An evaluation of `size` tokens took so long."""
        if size == 1:
            self._single += (seconds - self._single) * (0.1 if self._single else 1.0)
        elif self._single and size in self._cost:
            found = max(1.0, min(2.0 * size, seconds / self._single))
            self._cost[size] += 0.25 * (found - self._cost[size])

    def price(self, size: int) -> float:
        """What an evaluation of `size` tokens costs more than a single step, and to guess them; in single steps."""
        return self._cost[size] + self.step * (size - 1) - 1

    def best(self, stretch: int, most: int, purse: float = inf) -> int:
        """How many tokens to guess where the last `stretch` are a repetition; 0 if it would not pay.

        At most `most`, which may all be wrong: then they cost no more than `purse`, in single steps.
        """
        chosen, gain = 0, _WORTH
        expected, chance, guessed = 1.0, 1.0, 0
        for size in SIZES:
            if size - 1 > most or self.price(size) > purse:
                break
            while guessed < size - 1:
                level = _level(stretch + guessed)
                chance *= self._right[level] / self._asked[level]
                expected += chance
                guessed += 1
            found = expected / (1 + self.price(size))
            if found > gain:
                chosen, gain = guessed, found
        return chosen


def _level(stretch: int) -> int:
    return max(0, bisect_right(_LEVELS, stretch) - 1)


class Lookup:
    """Where the last tokens of a growing text have been before. `stretch` is how many they are; 0 is nowhere."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.text: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._next = 0  # the place of the token that would follow, where there is a stretch
        self.stretch = 0
        for token in tokens:
            self._index(token)

    def guess(self, count: int) -> list[int]:
        """`count` tokens that followed the last time; where the text ends before, it goes on turning in that circle."""
        if not self.stretch:
            return []
        followed = self.text[self._next : self._next + count]
        return [followed[i % len(followed)] for i in range(count)]

    def add(self, token: int) -> None:
        """The text goes on with `token`."""
        text = self.text
        if self.stretch and text[self._next] == token:
            self._next += 1
            self.stretch = min(_LONGEST, self.stretch + 1)
            self._index(token)
            return
        self.stretch = 0
        before = self._places.get((*text[1 - _GRAM :], token)) if len(text) >= _GRAM else None
        self._index(token)
        if before is not None:
            self._next, self.stretch = before, _GRAM
            while self.stretch < _LONGEST and self._next > self.stretch:
                if text[self._next - 1 - self.stretch] != text[-1 - self.stretch]:
                    break
                self.stretch += 1

    def _index(self, token: int) -> None:
        self.text.append(token)
        if len(self.text) >= _GRAM:
            self._places[tuple(self.text[-_GRAM:])] = len(self.text)


class Draft:
    """A small model that guesses for a large one; it takes over no more than the large one's tokens."""

    def __init__(self, model: TokenModel) -> None:
        self.model = model
        self.pace = Pace([_FIRST_SHARE] * len(_STRETCHES))
        self.pace.step = _FIRST_STEP
        self._right = 0  # its guesses since the last wrong one
        self._idle = 0  # tokens since the last guess
        self._known = 0  # how long the text was then, with the guess

    def guess(self, tokens: Sequence[int], most: int, purse: float) -> list[int]:
        """How the tokens may go on, as far as that pays."""
        self._idle += 1
        count = self.pace.best(self._right, most, purse) or int(self._idle > _PATIENCE and most > 0)
        if not count or len(tokens) + count >= self.model.context:
            return []
        self._idle = 0
        started = time.perf_counter()
        guess: list[int] = []
        self.model.prefill(tokens)
        with self.model.sampler(Sampling(temperature=0), ignore_eos=False, history=()) as sample:
            while len(guess) < count:
                if guess:
                    self.model.feed(guess[-1])
                guess.append(sample())
        if len(tokens) <= self._known + 1:  # it had nothing to catch up with
            self.pace.made(count, time.perf_counter() - started)
        self._known = len(tokens) + count
        return guess

    def saw(self, right: bool) -> None:
        self.pace.saw(self._right, right)
        self._right = min(_LONGEST, self._right + 1) if right else 0


class Speculation:
    """Feeds a model for one answer; `drafted` and `accepted` count the guesses."""

    def __init__(self, model: Ahead, pace: Pace, tokens: Sequence[int], draft: Draft | None = None) -> None:
        self._model, self._pace, self._lookup, self._draft = model, pace, Lookup(tokens), draft
        self._drafts = False  # whether what is ahead is the small model's
        self._purse = _STAKE  # single steps that may still be lost
        self.drafted = self.accepted = 0

    def feed(self, token: int, room: int) -> None:
        """The answer goes on with `token`; `room` more tokens may follow it."""
        model, lookup, pace = self._model, self._lookup, self._pace
        guessed = lookup.guess(1)
        if guessed:
            pace.saw(lookup.stretch, guessed[0] == token)
        lookup.add(token)
        if model.ahead:
            right = model.ahead[0] == token
            if self._drafts and self._draft is not None:
                self._draft.saw(right)
            if right:
                model.feed(token)
                self.accepted += 1
                self._purse += 1
                return
        most = min(room, model.lookahead)
        guess = lookup.guess(pace.best(lookup.stretch, most, self._purse)) if lookup.stretch else []
        if self._draft is not None:
            self._drafts = not guess
            guess = guess or self._draft.guess(lookup.text, most, self._purse)
        guess = guess[: model.clear_ahead(len(guess))]
        started = time.perf_counter()
        model.feed_ahead(token, guess)
        seconds = time.perf_counter() - started
        size = 1 + len(model.ahead)
        self.drafted += len(model.ahead)
        if model.ahead:
            self._purse -= (self._draft.pace if self._drafts and self._draft else pace).price(size)
        self._purse += _RATE
        for known in (pace, self._draft.pace if self._draft else None):
            if known:
                known.took(size, seconds)
