"""What a masked language model would write where a text has a mask, as transformers' fill-mask pipeline computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from localllm.errors import NotNumbers, UsageError

if TYPE_CHECKING:
    from localllm.protocols import MaskedModel

MASKS = ("[MASK]", "<mask>")  # as people write it, whatever the model's own is


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token for a mask, with its probability and the text that it makes; other masks in it stay open."""

    token: int
    piece: str
    probability: float
    text: str


def fill(model: MaskedModel, text: str, top: int) -> list[list[Candidate]]:
    """The `top` likeliest candidates for each mask of a text, each mask by itself, the likeliest first.

    Raises UsageError where the text has no mask or is too long, EngineError.
    """
    import numpy as np

    for mask in MASKS:
        text = text.replace(mask, model.mask_token)
    (tokens,) = model.tokenize_all([text])
    places = [index for index, token in enumerate(tokens) if token == model.mask]
    if not places:
        raise UsageError("there is no mask in the text", f"write {model.mask_token} where a word is to be found")
    if len(tokens) > model.limit:
        raise UsageError(f"the text has {len(tokens)} tokens and the model takes {model.limit}", "shorten it")
    rows = model.logits(tokens)[places].astype(np.float64)
    if not np.isfinite(rows).all():
        raise NotNumbers
    odds = np.exp(rows - rows.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    found = []
    for place, row in zip(places, odds, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        found.append([_candidate(model, tokens, place, int(token), float(row[token])) for token in best])
    return found


def _candidate(model: MaskedModel, tokens: list[int], place: int, token: int, probability: float) -> Candidate:
    """The other masks are decoded as what they are: special tokens are left out of a text otherwise."""
    filled = [*tokens[:place], token, *tokens[place + 1 :]]
    parts: list[list[int]] = [[]]
    for each in filled:
        if each == model.mask:
            parts.append([])
        else:
            parts[-1].append(each)
    text = f" {model.mask_token} ".join(model.decode(part) for part in parts).strip()
    return Candidate(token, model.piece(token), probability, text)
