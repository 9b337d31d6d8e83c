"""The sampler in numpy chooses what llama.cpp's own chain chooses: same logits, same seed, same tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest

from localllm.engines.llama_chain import links
from localllm.engines.llama_masked import masked_draw
from localllm.engines.llama_model import LlamaModel
from localllm.errors import EngineError, UsageError
from localllm.text.biases import read_biases
from localllm.text.sampling import Candidates, Draws, Sampler, find_breakers, top_k
from localllm.types import Sampling

PROMPTS = (
    "The sea was calm that morning, and the sea was calm that",
    'def main():\n    print("hello")\n    print("hello")\n    print(',
    "One, two, three, four. One, two, three, four. One, two",
)
DRAWS = 24


@pytest.fixture(scope="module")
def evaluated(model: LlamaModel) -> list[tuple[list[int], np.ndarray]]:
    """For each prompt its tokens, and the logits of what comes next."""
    found = []
    for prompt in PROMPTS:
        tokens = model.tokenize(prompt, begin=True)
        model.prefill(tokens)
        logits = model._llama.llama_get_logits_ith(model._context, -1)
        found.append((tokens, np.ctypeslib.as_array(logits, (model.vocabulary_size,)).copy()))
    return found


def native_choices(model: LlamaModel, sampling: Sampling, history: list[int], logits: np.ndarray) -> Iterator[int]:
    """What llama.cpp's chain chooses of the same logits again and again."""
    api = model._llama
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    biases = read_biases(sampling.logit_bias, model.vocabulary_size)
    for link in links(api, model._vocabulary, model.vocabulary_size, model.context, sampling, biases):
        api.llama_sampler_chain_add(chain, link)
    for token in history:
        api.llama_sampler_accept(chain, token)
    size = len(logits)
    data = (api.llama_token_data * size)()
    rows = np.ctypeslib.as_array(data)
    for _ in range(DRAWS):
        rows["id"], rows["logit"], rows["p"] = np.arange(size), logits, 0
        candidates = api.llama_token_data_array(data, size, -1, False)
        api.llama_sampler_apply(chain, ctypes.byref(candidates))
        token = candidates.data[candidates.selected].id
        api.llama_sampler_accept(chain, token)
        yield token
    api.llama_sampler_free(chain)


@lru_cache(maxsize=1)
def pieces(model: LlamaModel) -> list[bytes]:
    return [model._piece(token, special=True) for token in range(model.vocabulary_size)]


def sampler(model: LlamaModel, sampling: Sampling, history: list[int]) -> Sampler:
    dry = sampling.dry_multiplier > 0
    return Sampler(
        sampling,
        context=model.context,
        vocabulary_size=model.vocabulary_size,
        biases=read_biases(sampling.logit_bias, model.vocabulary_size),
        breakers=find_breakers(
            sampling.dry_sequence_breaker if dry else (),
            pieces(model) if dry else (),
            lambda text: model.tokenize(text, begin=False, special=False),
        ),
        history=history,
    )


OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.7},
        {"temperature": 0.0},
        {"temperature": 0.0, "repeat_penalty": 1.3},
        {"top_k": 1},
        {"top_k": 5, "top_p": 1.0, "min_p": 0.0},
        {"top_k": 3000, "top_p": 1.0, "min_p": 0.0, "temperature": 3.0},
        OPEN,
        OPEN | {"top_p": 0.9, "temperature": 1.5},
        OPEN | {"min_p": 0.02, "temperature": 2.0},
        OPEN | {"typical_p": 0.5},
        {"typical_p": 0.9, "temperature": 1.4},
        OPEN | {"top_n_sigma": 2.0},
        {"top_n_sigma": 1.0, "temperature": 2.0},
        {"xtc_probability": 0.5, "xtc_threshold": 0.05, "temperature": 1.2},
        OPEN | {"xtc_probability": 1.0, "xtc_threshold": 0.02},
        {"repeat_penalty": 1.5, "repeat_last_n": 8},
        {"presence_penalty": 2.0, "frequency_penalty": 0.5, "repeat_last_n": -1},
        {"repeat_penalty": 1.5, "repeat_last_n": 0},
        {"dry_multiplier": 2.0},
        {"dry_multiplier": 5.0, "dry_sequence_breaker": (), "temperature": 0.0},
        {"dry_multiplier": 5.0, "dry_sequence_breaker": (" three, four", "calm")},
        {"dry_multiplier": 3.0, "dry_allowed_length": 0, "dry_penalty_last_n": 6},
        {"mirostat": 1},
        {"mirostat": 1, "mirostat_tau": 3.0, "temperature": 1.3, "repeat_penalty": 1.1},
        {"mirostat": 2},
        {"mirostat": 2, "mirostat_tau": 1.0, "mirostat_eta": 0.5},
        {"logit_bias": ("100=12.5", "200=-inf", "300=11")},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_the_tokens_are_those_of_llama_cpp(
    model: LlamaModel, evaluated: list[tuple[list[int], np.ndarray]], options: dict[str, object]
) -> None:
    sampling = Sampling(seed=1234, **options)
    for tokens, logits in evaluated:
        before = logits.copy()
        ours = sampler(model, sampling, tokens)
        wanted = list(native_choices(model, sampling, tokens, logits))
        assert [ours.choose(logits) for _ in wanted] == wanted
        assert (logits == before).all()


def test_another_seed_draws_other_tokens(model: LlamaModel, evaluated: list[tuple[list[int], np.ndarray]]) -> None:
    tokens, logits = evaluated[0]
    hot = {"temperature": 5.0, "top_k": 0, "min_p": 0.0}
    one, two = (sampler(model, Sampling(seed=seed, **hot), tokens) for seed in (1, 2))
    assert [one.choose(logits) for _ in range(9)] != [two.choose(logits) for _ in range(9)]


def test_a_forbidden_token_is_never_chosen() -> None:
    logits = np.zeros(8, np.float32)
    logits[3] = 9
    ours = Sampler(
        Sampling(temperature=0), context=8, vocabulary_size=8, biases=[(3, -np.inf), *((t, -np.inf) for t in range(3))]
    )
    assert ours.choose(logits) == 4


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"typical_p": 0.9, "top_k": 0}, {"repeat_penalty": 1.5}])
def test_under_a_mask_the_tokens_are_those_of_llama_cpp(
    model: LlamaModel, evaluated: list[tuple[list[int], np.ndarray]], options: dict[str, float]
) -> None:
    sampling, api = Sampling(seed=7, **options), model._llama
    for tokens, logits in evaluated:
        bits = np.random.RandomState(len(tokens)).randint(0, 256, -(-len(logits) // 8)).astype(np.uint8).tobytes()
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        biases = read_biases(sampling.logit_bias, model.vocabulary_size)
        for link in links(api, model._vocabulary, model.vocabulary_size, model.context, sampling, biases):
            api.llama_sampler_chain_add(chain, link)
        for token in tokens:
            api.llama_sampler_accept(chain, token)
        wanted = [masked_draw(api, chain, lambda scores=logits: scores, lambda mask=bits: mask) for _ in range(12)]
        api.llama_sampler_free(chain)
        ours = sampler(model, sampling, tokens)
        assert [ours.choose(logits, lambda mask=bits: mask) for _ in wanted] == wanted
    with pytest.raises(EngineError, match="no token of the vocabulary"):
        ours.choose(logits, lambda: bytes(len(logits)))


def test_everything_forbidden_still_chooses() -> None:
    logits = np.full(8, -np.inf, np.float32)
    for options in ({}, {"top_k": 0}, {"temperature": 0.0}):
        with np.errstate(invalid="ignore"):
            assert 0 <= Sampler(Sampling(seed=1, **options), context=8, vocabulary_size=8).choose(logits) < 8


@pytest.mark.parametrize("size", [1, 5, 63, 64, 4999, 49152])
def test_the_top_k_are_the_top_k(size: int) -> None:
    logits = np.random.RandomState(size).standard_normal(size).astype(np.float32)
    for count in (1, 2, 40, size):
        found = Candidates(logits, np.arange(size))
        top_k(found, count)
        assert found.logits.tolist() == np.sort(logits)[::-1][:count].tolist()
        assert (found.logits == logits[found.ids]).all()


def test_draws_are_those_of_the_mersenne_twister() -> None:
    # The first words of std::mt19937 with its default seed are 3499211612, 581869302, 3890346734.
    assert Draws(5489).double() == (3499211612 + 581869302 * 2.0**32) / 2.0**64
    draws = Draws(5489)
    assert [draws.single() for _ in range(3)] == [
        np.float32(n) / np.float32(2**32) for n in (3499211612, 581869302, 3890346734)
    ]


@pytest.mark.parametrize("text", ["1=inf", "1=nan", "1", "x=1", "10=1"])
def test_biases_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--logit-bias"):
        read_biases((text,), 10)
