"""Sampling settings as the links of llama.cpp's own sampler chain."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence
from typing import Any

from localllm.types import Sampling


def links(
    api: Any, vocabulary: Any, size: int, context: int, s: Sampling, biases: Sequence[tuple[int, float]]
) -> Iterator[Any]:
    """The links in llama.cpp's own order; one that is off is left out.

    `size` is the number of tokens in the vocabulary; `biases` are added to the logits of some.
    """
    seed = s.seed if s.seed is not None else random.SystemRandom().randrange(2**32 - 1)
    if biases:
        yield api.llama_sampler_init_logit_bias(size, len(biases), (api.llama_logit_bias * len(biases))(*biases))
    if _has_penalties(s):
        window = context if s.repeat_last_n < 0 else s.repeat_last_n
        yield api.llama_sampler_init_penalties(size, window, s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
    if s.dry_multiplier > 0:
        breakers = [text.encode() for text in s.dry_sequence_breaker]
        window = context if s.dry_penalty_last_n < 0 else s.dry_penalty_last_n
        yield api.llama_sampler_init_dry(
            vocabulary, s.dry_multiplier, s.dry_base, s.dry_allowed_length, window,
            (ctypes.c_char_p * len(breakers))(*breakers), len(breakers),
        )  # fmt: skip
    if s.temperature == 0:
        yield api.llama_sampler_init_greedy()
        return
    if s.mirostat:
        yield api.llama_sampler_init_temp(s.temperature)
        if s.mirostat == 1:
            yield api.llama_sampler_init_mirostat(size, seed, s.mirostat_tau, s.mirostat_eta, 100)
        else:
            yield api.llama_sampler_init_mirostat_v2(seed, s.mirostat_tau, s.mirostat_eta)
        return
    if s.top_n_sigma > 0:
        yield api.llama_sampler_init_top_n_sigma(s.top_n_sigma)
    if s.top_k:
        yield api.llama_sampler_init_top_k(s.top_k)
    if s.typical_p < 1:
        yield api.llama_sampler_init_typical(s.typical_p, 1)
    if s.top_p < 1:
        yield api.llama_sampler_init_top_p(s.top_p, 1)
    if s.min_p > 0:
        yield api.llama_sampler_init_min_p(s.min_p, 1)
    if s.xtc_probability > 0:
        yield api.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, 1, seed)
    yield api.llama_sampler_init_temp(s.temperature)
    yield api.llama_sampler_init_dist(seed)


def _has_penalties(s: Sampling) -> bool:
    return s.repeat_last_n != 0 and (s.repeat_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0)


def penalizes(s: Sampling) -> bool:
    """Whether what was said before counts."""
    return _has_penalties(s) or s.dry_multiplier > 0


def look_back(s: Sampling, context: int) -> int:
    """How many tokens of it count."""
    windows = [s.repeat_last_n if _has_penalties(s) else 0, s.dry_penalty_last_n if s.dry_multiplier > 0 else 0]
    return context if min(windows) < 0 else max(windows)
