"""Which batches of guesses round as single steps do, found out by comparing bits.

llama.cpp computes a batch by other code than a single token: weights of some types from 4 tokens on, and its flash
attention on a CPU where the cache has more than 256 cells and several threads share a token. The sums are the same, but
in another order, and the last bits differ; now and then another token is the likeliest then. An answer that is to be
what it would be without guesses takes only batches of which all rows were found equal once.
"""

from __future__ import annotations

from collections import deque

_ONE_BLOCK = 256  # cells; llama.cpp looks at multiples of this, and at one such block it goes by one way only
_FIRST = 4  # tokens from which on other code multiplies; nothing longer is tried before this
_SHORT = 3  # tokens; what is still tried where that differs


class Proofs:
    """What is known of batches of at most `most` tokens; `rows` are the bits that came of the last tokens, one by one.

    Memory: `most` rows; the model gives what it has of a token, hidden values and logits as float32.
    """

    def __init__(self, most: int) -> None:
        self.rows: deque[bytes] = deque(maxlen=most)
        self._most = most
        self._proved = {False: 1, True: 1}  # in a cache of one block, and in a longer one -> tokens
        self._limit = {False: most, True: most}

    def _is_long(self, held: int) -> bool:
        return held + self._most > _ONE_BLOCK

    def limit(self, held: int) -> int:
        """Tokens that a batch may have which follows `held` tokens, as far as is known."""
        return self._limit[self._is_long(held)]

    def wants_rows(self, held: int) -> bool:
        """Whether something is left to find out."""
        long = self._is_long(held)
        return self._proved[long] < self._limit[long]

    def allows(self, size: int, held: int) -> bool:
        return size <= self._proved[self._is_long(held)]

    def next(self, size: int, held: int) -> int:
        """How many of the last tokens to evaluate again at once, before `size` tokens may be; 0 where they are too few.

        Their rows must be there; in a long cache, all of them from where it has been of more than one block.
        """
        long = self._is_long(held)
        size = _FIRST if size > _FIRST > self._proved[long] else size
        return size if size <= len(self.rows) and (held - size >= _ONE_BLOCK or not long) else 0

    def compare(self, rows: list[bytes], held: int) -> bool:
        """Whether these, of the last tokens evaluated at once, are the same; takes note of it."""
        long, size = self._is_long(held), len(rows)
        same = rows == list(self.rows)[-size:]
        if same:
            self._proved[long] = max(self._proved[long], size)
        else:
            self._limit[long] = _SHORT if size > _SHORT else 1
        return same
