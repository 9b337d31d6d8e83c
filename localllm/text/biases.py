"""`--logit-bias TOKEN_ID=BIAS`, read once for every engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from localllm.errors import UsageError


def read_biases(texts: Sequence[str], vocabulary_size: int) -> list[tuple[int, float]]:
    """(token, bias) of each text. Raises UsageError."""
    biases = []
    for text in texts:
        token, _, bias = text.partition("=")
        try:
            biases.append((int(token), float(bias)))
        except ValueError:
            raise UsageError(f"--logit-bias {text!r} is not TOKEN_ID=BIAS", "for example --logit-bias 2=-inf") from None
        if not biases[-1][1] < math.inf:
            raise UsageError(f"--logit-bias {text!r} is not a number or -inf", "100 is as good as certain")
        if not 0 <= biases[-1][0] < vocabulary_size:
            raise UsageError(f"--logit-bias: the vocabulary ends at {vocabulary_size - 1}")
    return biases
