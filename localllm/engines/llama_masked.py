"""Draws from llama.cpp's sampler chain with some tokens forbidden.

The forbidden ones are left out of the candidates, rather than given a logit of minus infinity, which some samplers turn
into NaN (the entropy of locally typical sampling, for one).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from localllm.protocols import Mask
from localllm.text.sampling import allowed_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def masked_draw(api: Any, chain: Any, logits: Callable[[], NDArray[np.float32]], mask: Mask) -> int:
    """The next id from the allowed ones, accepted by the chain. Raises EngineError where none is allowed."""
    scores = logits()
    allowed = allowed_tokens(mask, len(scores))
    candidates = np.zeros(len(allowed), _CANDIDATE)
    candidates["id"], candidates["logit"] = allowed, scores[allowed]
    pointer = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(api.llama_token_data))
    array = api.llama_token_data_array(data=pointer, size=len(allowed), selected=-1, sorted=False)
    api.llama_sampler_apply(chain, ctypes.byref(array))
    token = int(array.data[max(array.selected, 0)].id)
    api.llama_sampler_accept(chain, token)
    return token
