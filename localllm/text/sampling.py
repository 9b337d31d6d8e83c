"""Logits -> the next id, in numpy: what llama.cpp's sampler chain does, link by link and in its order.

    bias - penalties - DRY - (temperature 0: the likeliest)
                           - (mirostat: temperature - mirostat 1 or 2)
                           - top-n-sigma - top-k - typical - top-p - min-p - XTC - temperature - a draw

A link that is off is left out. The random numbers are those of C++'s `std::mt19937` and
`std::uniform_real_distribution` as libstdc++ and libc++ have them, so that one seed draws the same tokens from the same
logits in both engines.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localllm.errors import EngineError, NotNumbers
from localllm.protocols import Mask
from localllm.types import Sampling

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_BLOCK = 64  # logits of which one maximum is kept while the K largest are looked for
_MIROSTAT_TOKENS = 100
_LONGEST_BREAKER = 40  # bytes
_LONGEST_TAIL = 20  # tokens
_LARGEST_LOGARITHM = 88.7228391  # of a float32


@dataclass(slots=True)
class Candidates:
    """The tokens that may come next, float32 logits beside int64 ids; `ordered` with the likeliest first."""

    logits: Floats
    ids: Integers
    ordered: bool = False

    def keep(self, which: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> None:
        self.logits, self.ids = self.logits[which], self.ids[which]

    def order(self) -> None:
        if not self.ordered:
            self.keep(np.argsort(-self.logits, kind="stable"))
            self.ordered = True

    def probabilities(self) -> Floats:
        shifted = np.exp(self.logits - self.logits.max())
        found: Floats = shifted / shifted.sum()
        return found


Link = Callable[[Candidates], None]
Breakers = Mapping[int, Sequence[tuple[int, ...]]]
"""The first token of what ends a DRY sequence -> the tokens that may follow it."""


class Draws:
    """The numbers that a `std::mt19937` with a seed gives C++'s distributions."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.RandomState(seed)

    def single(self) -> np.float32:
        """Of [0, 1), as `uniform_real_distribution<float>`."""
        number: np.float32 = np.float32(self._word() / (1 << 32))
        return number

    def double(self) -> float:
        """Of [0, 1), as `uniform_real_distribution<double>`."""
        low, high = self._word(), self._word()
        return (low + high * 2.0**32) / 2.0**64

    def _word(self) -> int:
        return int.from_bytes(self._source.bytes(4), "little")


class Sampler:
    """Chooses tokens one after the other. `history` holds the tokens before the first one that is chosen.

    `breakers` are those of DRY, as `find_breakers` finds them; `forbidden` tokens are never chosen. A window of -1
    looks back over `context` tokens.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        context: int,
        vocabulary_size: int,
        biases: Iterable[tuple[int, float]] = (),
        breakers: Breakers | None = None,
        history: Sequence[int] = (),
    ) -> None:
        s = self._sampling = sampling
        seed = s.seed if s.seed is not None else random.SystemRandom().randrange(2**32 - 1)
        self._draws, self._xtc_draws = Draws(seed), Draws(seed)
        self._ids: Integers = np.arange(vocabulary_size, dtype=np.int64)
        self._repeat_window = context if s.repeat_last_n < 0 else s.repeat_last_n
        self._dry_window = context if s.dry_penalty_last_n < 0 else s.dry_penalty_last_n
        self._breakers = breakers or {}
        self._history = list(history[-max(self._repeat_window, self._dry_window, 1) :])
        self._surprise = 2 * s.mirostat_tau
        pairs = list(biases)
        self._biased = np.array([token for token, _ in pairs], np.int64)
        self._biases = np.array([bias for _, bias in pairs], np.float32)
        self._changes = list(self._changing_links())
        self._cuts = list(self._cutting_links())

    def choose(self, logits: Floats, mask: Mask | None = None) -> int:
        """The next token, of float32 logits (vocabulary,), which are not changed; only what the mask allows.

        Raises EngineError where it allows nothing, NotNumbers where a logit is NaN or infinite.
        """
        ids = self._ids if mask is None else allowed_tokens(mask, len(logits))
        if self._changes:
            logits = logits.copy()
            for change in self._changes:
                change(logits)
        token = self._draw(logits if mask is None else logits[ids], ids)
        if self._changes:
            self._history.append(token)
        return token

    def _draw(self, logits: Floats, ids: Integers) -> int:
        best = logits.argmax()
        if not logits[best] < np.inf:  # what is NaN counts as the largest
            raise NotNumbers
        if self._sampling.temperature == 0:
            return int(ids[best])
        candidates = Candidates(logits, ids)
        for cut in self._cuts:
            cut(candidates)
        if self._sampling.mirostat:
            return self._draw_mirostat(candidates)
        number = self._draws.double()
        sums = np.cumsum(np.exp(candidates.logits - candidates.logits.max()), dtype=np.float64)
        return int(candidates.ids[min(int(np.searchsorted(sums, sums[-1] * number)), len(sums) - 1)])

    # What changes single logits

    def _changing_links(self) -> Iterable[Callable[[Floats], None]]:
        s = self._sampling
        if len(self._biased):
            yield self._bias
        if self._repeat_window and (s.repeat_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0):
            yield self._penalize
        if s.dry_multiplier > 0 and s.dry_base >= 1 and self._dry_window:
            yield self._dry

    def _bias(self, logits: Floats) -> None:
        np.add.at(logits, self._biased, self._biases)

    def _penalize(self, logits: Floats) -> None:
        s = self._sampling
        tokens, counts = np.unique(np.array(self._history[-self._repeat_window :], np.int64), return_counts=True)
        found, penalty = logits[tokens], np.float32(s.repeat_penalty)
        found = np.where(found <= 0, found * penalty, found / penalty)
        found -= counts.astype(np.float32) * np.float32(s.frequency_penalty) + np.float32(s.presence_penalty)
        logits[tokens] = found

    def _dry(self, logits: Floats) -> None:
        """Penalize each token that would go on with a repetition, the more the longer it is."""
        s = self._sampling
        last = np.array(self._history[-self._dry_window :][::-1], np.int64)  # the latest first
        if len(last) <= s.dry_allowed_length:
            return
        limit = self._since_breaker(last)
        if limit < s.dry_allowed_length:
            return
        longest = math.inf if s.dry_base <= 1.000001 else int(_LARGEST_LOGARITHM / math.log(s.dry_base))
        for token, length in _repetitions(last, limit, s.dry_allowed_length).items():
            if () not in self._breakers.get(token, ()):
                exponent = min(length - s.dry_allowed_length, longest)
                logits[token] -= np.float32(s.dry_multiplier * s.dry_base**exponent)

    def _since_breaker(self, last: Integers) -> int:
        """How many of the latest tokens stand behind the latest sequence breaker."""
        for position, token in enumerate(last.tolist()):
            tails = [
                len(tail)
                for tail in self._breakers.get(token, ())
                if len(tail) <= position and tail == tuple(last[position - len(tail) : position][::-1].tolist())
            ]
            if tails:
                return position - max(tails)
        return len(last)

    # What leaves tokens out

    def _cutting_links(self) -> Iterable[Link]:
        s = self._sampling
        if s.mirostat:
            yield self._cool
            return
        if s.top_n_sigma > 0:
            yield self._top_n_sigma
        if s.top_k:
            yield lambda candidates: top_k(candidates, s.top_k)
        if s.typical_p < 1:
            yield self._typical
        if s.top_p < 1:
            yield self._top_p
        if s.min_p > 0:
            yield self._min_p
        if s.xtc_probability > 0:
            yield self._xtc
        yield self._cool

    def _cool(self, candidates: Candidates) -> None:
        candidates.logits = candidates.logits / np.float32(self._sampling.temperature)

    def _top_n_sigma(self, candidates: Candidates) -> None:
        logits = candidates.logits
        finite = logits[logits != -np.inf]
        least = logits.max() - np.float32(self._sampling.top_n_sigma) * finite.std()
        candidates.logits = np.where(logits < least, np.float32(-np.inf), logits)

    def _typical(self, candidates: Candidates) -> None:
        candidates.order()
        candidates.keep(candidates.logits != -np.inf)
        probabilities = candidates.probabilities()
        surprise = -np.log(np.maximum(probabilities, np.float32(1e-45)))
        distance = np.abs(surprise - (probabilities * surprise).sum())
        order = np.argsort(distance, kind="stable")
        beyond = np.cumsum(probabilities[order]) > np.float32(self._sampling.typical_p)
        candidates.keep(order[: _through_first(beyond)])
        candidates.ordered = False

    def _top_p(self, candidates: Candidates) -> None:
        candidates.order()
        reached = np.cumsum(candidates.probabilities()) >= np.float32(self._sampling.top_p)
        candidates.keep(slice(_through_first(reached)))

    def _min_p(self, candidates: Candidates) -> None:
        least = candidates.logits.max() + np.log(np.float32(self._sampling.min_p))
        candidates.keep(candidates.logits >= least)

    def _xtc(self, candidates: Candidates) -> None:
        s = self._sampling
        if s.xtc_threshold > 0.5 or len(candidates.ids) < 2:
            return
        if self._xtc_draws.single() > np.float32(s.xtc_probability):
            return
        candidates.order()
        above = int((candidates.probabilities() >= np.float32(s.xtc_threshold)).sum())
        candidates.keep(slice(max(0, above - 1), None))

    # Mirostat (arXiv 2007.14966)

    def _draw_mirostat(self, candidates: Candidates) -> int:
        if self._sampling.mirostat == 1:
            top_k(candidates, self._mirostat_size(candidates))
        else:
            surprise = -np.log2(np.maximum(candidates.probabilities(), np.float32(1e-45)))
            within = surprise <= self._surprise
            candidates.keep(within if within.any() else np.array([int(candidates.logits.argmax())]))
            candidates.order()
        probabilities = candidates.probabilities()
        chosen = 0
        if len(probabilities) > 1:  # std::discrete_distribution draws nothing for a single choice
            sums = np.cumsum(probabilities.astype(np.float64) / probabilities.sum(dtype=np.float64))
            chosen = min(int(np.searchsorted(sums, self._draws.double())), len(sums) - 1)
        observed = -math.log2(float(probabilities[chosen]))
        self._surprise -= self._sampling.mirostat_eta * (observed - self._sampling.mirostat_tau)
        return int(candidates.ids[chosen])

    def _mirostat_size(self, candidates: Candidates) -> int:
        """How many tokens give the surprise that is wanted, where their probabilities follow Zipf's law."""
        first = Candidates(candidates.logits, candidates.ids)
        top_k(first, _MIROSTAT_TOKENS)
        count = len(first.logits)
        ratios = (first.logits[:-1] - first.logits[1:]).astype(np.float64)
        ranks = np.log(np.arange(2, count + 1) / np.arange(1, count))
        usable = np.isfinite(ratios)
        exponent = float((ranks * ratios)[usable].sum() / max(1e-9, (ranks * ranks)[usable].sum()))
        above = exponent - 1
        try:
            size = (above * 2**self._surprise / (1 - float(len(self._ids)) ** -above)) ** (1 / exponent)
            return min(max(int(size), 1), len(self._ids))
        except (ArithmeticError, ValueError, TypeError):
            return len(self._ids)


def allowed_tokens(mask: Mask, vocabulary_size: int) -> Integers:
    """The ids that a mask allows now. Raises EngineError where there are none."""
    bits = np.unpackbits(np.frombuffer(mask(), np.uint8), count=vocabulary_size, bitorder="little")
    allowed: Integers = np.flatnonzero(bits)
    if not len(allowed):
        raise EngineError("no token of the vocabulary continues this answer in the form that was asked for")
    return allowed


def top_k(candidates: Candidates, count: int) -> None:
    """Keep the `count` likeliest, in order.

    They lie in the `count` blocks with the largest maxima, which is where they are looked for: of 49,152 logits 2,560.
    """
    size = len(candidates.logits)
    if not candidates.ordered and count * _BLOCK * 2 < size:
        whole = size - size % _BLOCK
        maxima = candidates.logits[:whole].reshape(-1, _BLOCK).max(axis=1)
        blocks = np.argpartition(maxima, len(maxima) - count)[-count:]
        inside = (np.sort(blocks)[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        candidates.keep(np.concatenate([inside, np.arange(whole, size)]))
    if not candidates.ordered and count < len(candidates.logits):
        candidates.keep(np.argpartition(candidates.logits, len(candidates.logits) - count)[-count:])
    candidates.order()
    candidates.keep(slice(count))


def find_breakers(
    texts: Iterable[str], pieces: Sequence[bytes], tokenize: Callable[[str], Sequence[int]]
) -> dict[int, list[tuple[int, ...]]]:
    """The tokens in which one of `texts` begins, with those that would end it; () where the token holds all of it.

    `pieces` are the bytes of every token, special ones by their text.
    """
    found: dict[int, list[tuple[int, ...]]] = {}
    for text in texts:
        wanted = text.encode()[:_LONGEST_BREAKER]
        tails: dict[int, tuple[int, ...]] = {}
        for token, piece in enumerate(pieces):
            if wanted and wanted in piece:
                found.setdefault(token, []).append(())
                continue
            for length in range(1, min(len(wanted), len(piece) + 1)):
                if piece.endswith(wanted[:length]):
                    if length not in tails:
                        rest = wanted[length:].decode(errors="replace")
                        tails[length] = tuple(tokenize(rest)[:_LONGEST_TAIL])
                    found.setdefault(token, []).append(tails[length])
    return found


def _repetitions(last: Integers, limit: int, least: int) -> dict[int, int]:
    """Tokens that once followed what now stands at the end, and how many tokens that was, `least` to `limit`.

    `last` has the latest token first.
    """
    starts = np.arange(1, len(last))
    found: dict[int, int] = {}
    length = 0
    while len(starts) and length <= limit:
        if length >= least:
            found |= dict.fromkeys(last[starts - 1].tolist(), length)
        starts = starts[starts + length < len(last)]
        starts = starts[last[starts + length] == last[length]]
        length += 1
    return found


def _through_first(flags: npt.NDArray[np.bool_]) -> int:
    """How many there are up to the first that is set, that one included; all where none is."""
    return int(flags.argmax()) + 1 if flags.any() else len(flags)
