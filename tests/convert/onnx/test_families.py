"""Every family's random checkpoint, exported, computes in ONNX Runtime what transformers computed, within 1e-3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.convert.onnx import export
from localllm.errors import UnknownArchitecture
from tests.support import checkpoints
from tests.support.onnx_models import Runner

EXPORTED = (
    "llama-llama3-bias", "llama-tied-linear", "llama-yarn", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2",
    "gemma3", "phi3", "phi4-mini-long", "phi4-mini-short",
)  # fmt: skip
OTHERS = sorted(set(checkpoints.NAMES) - {*EXPORTED, *export.ENCODERS})


@pytest.mark.parametrize("name", EXPORTED)
def test_logits_and_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case, expected = checkpoints.case(name), checkpoints.expected(name)
    export.write(export.plan(checkpoints.write(tmp_path / "checkpoint", name)), tmp_path / "model")
    model = Runner(tmp_path / "model")
    logits = model.run(case["tokens"])
    assert logits.shape == expected.shape and np.abs(logits - expected).max() <= 1e-3
    model.reset()
    assert model.greedy(case["tokens"], 32) == case["greedy"]


@pytest.mark.parametrize("name", EXPORTED)
def test_a_gguf_tells_as_much_as_the_checkpoint(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(checkpoints.write(tmp_path / "checkpoint", name), "f32"), path)
    export.write(export.plan(path), tmp_path / "model")
    logits = Runner(tmp_path / "model").run(checkpoints.case(name)["tokens"])
    assert np.abs(logits - checkpoints.expected(name)).max() <= 1e-3


@pytest.mark.parametrize("name", ["llama-tied-linear", "qwen3", "gemma2"])
def test_float16_on_a_processor_too(name: str, tmp_path: Path) -> None:
    case, expected = checkpoints.case(name), checkpoints.expected(name)
    export.write(export.plan(checkpoints.write(tmp_path / "checkpoint", name), "f16"), tmp_path / "model")
    logits = Runner(tmp_path / "model").run(case["tokens"])
    assert logits.dtype == np.float16 and np.abs(logits - expected).max() <= 2e-2


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitecture, match="is not exported to ONNX, only llama, qwen2"):
        export.plan(checkpoints.write(tmp_path, name))


def test_a_window_that_only_the_configuration_tells(tmp_path: Path) -> None:
    """Mistral's: the last tokens do not see the first ones."""
    config = checkpoints.case("mistral")["config"]
    wide = export.plan(checkpoints.write(tmp_path / "wide", "mistral"))
    narrow = export.plan(checkpoints.write(tmp_path / "narrow", "mistral", config={**config, "sliding_window": 16}))
    assert set(wide.decoder.windows) == {-1} and set(narrow.decoder.windows) == {16}
    found = []
    for plan, tokens in ((narrow, [1] * 64), (narrow, [2] * 8 + [1] * 56), (wide, [2] * 8 + [1] * 56)):
        export.write(plan, tmp_path / "model", force=True)
        found.append(Runner(tmp_path / "model").run(tokens)[-1])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[1], found[2])
