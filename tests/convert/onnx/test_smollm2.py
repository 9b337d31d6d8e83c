"""SmolLM2, exported, says what llama.cpp says with the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.convert.onnx import export
from localllm.engines.llama_model import LlamaModel
from localllm.engines.scorer import Scorer
from localllm.jobs.quantize import Choice, quantize
from localllm.types import EngineOptions, Sampling
from tests.support.onnx_models import Runner
from tests.support.real_checkpoints import smollm2

PROMPTS = (
    "What is gravity?", "Write a poem about the sea.", "List three fruits.", "How do I boil an egg?",
    "Explain recursion to a child.", "What is the capital of France?", "Why is the sky blue?", "Tell me a joke.",
    "Who wrote Hamlet?", "What is 12 times 12?", "Name the planets.", "Give me advice on sleeping better.",
    "What does a compiler do?", "Translate 'good morning' into French.", "Describe a rainbow.", "What is a noun?",
    "How far away is the moon?", "Write a haiku.", "What is photosynthesis?", "Summarize the story of Icarus.",
)  # fmt: skip
COUNT = int(os.environ.get("PROMPTS", "4"))  # 20 by hand
EXACT = EngineOptions(context=256, cache_type_k="f32", cache_type_v="f32", flash_attention="off")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """A folder with the checkpoint, its GGUF in float32, and what was exported of it."""
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2(folder / "checkpoint", model_path)
    gguf.write(gguf.plan(folder / "checkpoint", "f32"), folder / "F32.gguf")
    export.write(export.plan(folder / "checkpoint"), folder / "f32")
    return folder


def asked(model: LlamaModel, prompt: str) -> list[int]:
    return model.tokenize(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", begin=False)


def greedy(model: LlamaModel, tokens: list[int]) -> Iterator[int]:
    model.prefill(tokens)
    with model.sampler(Sampling(temperature=0), ignore_eos=False, history=tokens) as draw:
        for _ in range(128):
            following = draw()
            yield following
            model.feed(following)


@pytest.mark.slow
def test_the_same_text_and_logits(exact: Path) -> None:
    runner = Runner(exact / "f32", threads=1)
    texts = []
    with closing(LlamaModel(exact / "F32.gguf", EXACT, gpu_layers=0, threads=1)) as model:
        for prompt in PROMPTS[:COUNT]:
            tokens = asked(model, prompt)
            runner.reset()
            texts.append([*tokens, *greedy(model, tokens)])
            assert runner.greedy(tokens, 128) == texts[-1][-128:], prompt
    with closing(Scorer(exact / "F32.gguf", EXACT, gpu_layers=0, threads=1)) as scorer:
        for text in texts:
            scorer.open_scoring(len(text), 0)
            runner.reset()
            assert np.abs(scorer.score([text])[0] - runner.run(text)).max() <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K_M"])
def test_blocks_are_carried_over_without_a_loss(kind: str, exact: Path, tmp_path: Path) -> None:
    """llama.cpp rounds activations, so that its own logits are no measure: tests/benchmarks has the distance to them."""
    path = tmp_path / f"{kind}.gguf"
    quantize(exact / "F32.gguf", path, kind, Choice(), lambda done, total: None)
    for name, quant in (("carried", "auto"), ("dequantized", "f32")):
        export.write(export.plan(path, quant, export.EXACT), tmp_path / name)
    found, expected = (Runner(tmp_path / name).run(list(range(100, 228))) for name in ("carried", "dequantized"))
    assert np.abs(found - expected).max() <= 1e-3
