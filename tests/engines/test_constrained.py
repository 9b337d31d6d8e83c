"""Masks in the sampling of a real model: what is allowed keeps its proportions, and an answer has its form."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable

import jsonschema
import numpy as np
import pytest

from localllm.engines.llama_model import LlamaModel
from localllm.engines.local import LocalEngine
from localllm.errors import EngineError
from localllm.types import Constraint, Limits, Message, Request, Sampling
from tests.support.schemas import COUNT, schemas

Mask = Callable[[], bytes]


def mask_of(model: LlamaModel, *tokens: int) -> Mask:
    bits = np.zeros(model.vocabulary_size, np.uint8)
    bits[list(tokens)] = 1
    return lambda: np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.slow
def test_what_is_allowed_keeps_its_proportions(model: LlamaModel) -> None:
    prompt = model.tokenize("The capital of France is", begin=True)
    model.prefill(prompt)
    logits = model.logits().astype(np.float64)
    few = [int(token) for token in np.argsort(logits)[-200::40]]  # beyond any top-k of all
    wanted = np.exp(logits[few] - logits[few].max())
    wanted /= wanted.sum()
    sampling = Sampling(temperature=1, top_k=0, top_p=1, min_p=0, seed=3)
    with model.sampler(sampling, ignore_eos=False, history=prompt, mask=mask_of(model, *few)) as draw:
        counts = collections.Counter(draw() for _ in range(4000))
    assert set(counts) <= set(few)
    found = np.array([counts[token] / 4000 for token in few])
    assert np.abs(found - wanted).max() < 0.03


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(),
        Sampling(typical_p=0.5, seed=1),
        Sampling(top_n_sigma=1.0, xtc_probability=1.0, xtc_threshold=0.0, seed=1),
        Sampling(mirostat=1, seed=1),
        Sampling(mirostat=2, seed=1),
        Sampling(repeat_penalty=1.5, dry_multiplier=1.0, logit_bias=("5=9",), seed=1),
    ],
)
def test_every_way_of_sampling_obeys(model: LlamaModel, sampling: Sampling) -> None:
    prompt = model.tokenize("One two three", begin=True)
    model.prefill(prompt)
    for allowed in ([17], [400, 401, 402]):
        with model.sampler(sampling, ignore_eos=False, history=prompt, mask=mask_of(model, *allowed)) as draw:
            assert {draw() for _ in range(20)} <= set(allowed)


def test_no_token_at_all_is_an_error(model: LlamaModel) -> None:
    model.prefill(model.tokenize("One", begin=True))
    sampler = model.sampler(Sampling(), ignore_eos=False, history=(), mask=mask_of(model))
    with sampler as draw, pytest.raises(EngineError, match="no token of the vocabulary"):
        draw()


def test_scores_are_those_of_the_models_own_distribution(model: LlamaModel) -> None:
    request = Request(
        (Message("user", "The capital of France is"),),
        Sampling(temperature=2, seed=9),
        Limits(max_tokens=3),
        logprobs=5,
    )
    chunks = [chunk for chunk in LocalEngine(model, None).stream(request) if chunk.scores]
    tokens = model.tokenize("The capital of France is", begin=True)
    assert len(chunks) == 3
    for chunk in chunks:
        assert chunk.scores is not None and chunk.token is not None
        model.prefill(tokens)
        logits = model.logits().astype(np.float64)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert chunk.scores.chosen.token == chunk.token
        assert chunk.scores.chosen.logprob == pytest.approx(expected[chunk.token], abs=0.02)
        best = [int(token) for token in np.argsort(-expected)[:2]]
        assert [score.token for score in chunk.scores.top[:2]] == best
        tokens = [*tokens, chunk.token]


@pytest.mark.slow
def test_answers_under_schemas_are_valid(model: LlamaModel) -> None:
    """Every 25th of the 300; tests/benchmarks/check_schemas.py asks for them all."""
    engine, ended = LocalEngine(model, None), 0
    for index in range(0, COUNT, 25):
        schema = schemas()[index]
        request = Request(
            (Message("user", "JSON:"),),
            Sampling(temperature=1, seed=index),
            Limits(max_tokens=100),
            Constraint("schema", json.dumps(schema)),
        )
        chunks = list(engine.stream(request))
        if chunks[-1].fulfilled:
            ended += 1
            jsonschema.validate(json.loads("".join(chunk.text for chunk in chunks)), schema)
    assert ended > 3
