"""How likely the model itself found a token: logarithms of probabilities, before any sampling."""

from __future__ import annotations

from localllm.protocols import TokenModel
from localllm.types import Scores, TokenScore


def token_scores(model: TokenModel, chosen: int, count: int) -> Scores:
    """The score of `chosen` and of the `count` likeliest tokens, from the logits of the model's last evaluation."""
    import numpy as np

    logits = model.logits().astype(np.float64)
    logits -= logits.max()
    logits -= np.log(np.exp(logits).sum())
    count = min(count, len(logits))
    top = np.argpartition(logits, len(logits) - count)[len(logits) - count :] if count else np.empty(0, np.intp)
    best = sorted((int(token) for token in top), key=lambda token: (-logits[token], token))

    def score(token: int) -> TokenScore:
        return TokenScore(token, model.piece(token), float(logits[token]))

    return Scores(score(chosen), tuple(score(token) for token in best))
