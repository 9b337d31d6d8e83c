"""Every family's random checkpoint, converted, computes in llama.cpp what transformers computed, within 1e-3."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.engines.llama_model import LlamaModel
from localllm.engines.native import llama
from localllm.engines.scorer import Scorer
from localllm.types import EngineOptions, Sampling
from tests.support import checkpoints

ENCODERS = ("bert", "nomic-bert")
DECODERS = [name for name in checkpoints.NAMES if name not in ENCODERS]
EXACT = EngineOptions(context=128, cache_type_k="f32", cache_type_v="f32", flash_attention="off")


def convert(folder: Path, dtype: str = "f32") -> Path:
    target = folder / "model.gguf"
    gguf.write(gguf.plan(folder, dtype), target)
    return target


def test_there_is_a_case_for_every_family() -> None:
    assert len(DECODERS) >= 27 and set(ENCODERS) < set(checkpoints.NAMES)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = convert(checkpoints.write(tmp_path, name))
    case, expected = checkpoints.case(name), checkpoints.expected(name)
    with closing(Scorer(path, EXACT, gpu_layers=0, threads=1)) as model:
        model.open_scoring(64, 0)
        logits = model.score([case["tokens"]])[0]
        assert logits.shape == expected.shape == (64, 288)
        assert np.abs(logits - expected).max() <= 1e-3


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = convert(checkpoints.write(tmp_path, name))
    case = checkpoints.case(name)
    with closing(LlamaModel(path, EXACT, gpu_layers=0, threads=1)) as model:
        assert list(greedy(model, case["tokens"])) == case["greedy"]


def greedy(model: LlamaModel, tokens: list[int]) -> Iterator[int]:
    model.prefill(tokens)
    with model.sampler(Sampling(temperature=0), ignore_eos=False, history=tokens) as draw:
        for _ in range(32):
            following = draw()
            yield following
            model.feed(following)


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = convert(checkpoints.write(tmp_path, name))
    expected = checkpoints.expected(name)
    assert np.abs(embeddings(path, checkpoints.case(name)["tokens"]) - expected).max() <= 1e-3


def embeddings(path: Path, tokens: list[int]) -> np.ndarray:
    """The last hidden state of every token, unpooled."""
    api = llama()
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    assert model
    parameters = api.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 128
    parameters.embeddings, parameters.pooling_type = True, 0
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.flash_attn_type = 0
    context = api.llama_init_from_model(model, parameters)
    assert context
    batch = api.llama_batch_init(len(tokens), 0, 1)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    batch.n_tokens = len(tokens)
    assert api.llama_encode(context, batch) == 0
    width = api.llama_model_n_embd(model)
    found = ctypes.cast(api.llama_get_embeddings(context), ctypes.POINTER(ctypes.c_float * (len(tokens) * width)))
    values = np.array(found.contents, dtype=np.float32).reshape(len(tokens), width)
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return values
