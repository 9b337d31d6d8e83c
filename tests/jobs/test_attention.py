"""What each token looks at: against transformers, and what must hold of any attention."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.engines import open_text_model
from localllm.engines.scorer import Scorer
from localllm.errors import LocalLLMError, UsageError
from localllm.jobs import attention
from localllm.jobs.attention import attend, rollout
from localllm.types import EngineOptions
from tests.support import checkpoints
from tests.support.lines import lines

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "inside.npz")
PRECISE = EngineOptions(cache_type_k="f32", cache_type_v="f32", flash_attention="off")


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[Scorer]:
    with closing(open_text_model(model_path, PRECISE)) as opened:
        yield opened


@pytest.mark.slow
def test_it_is_transformers(precise_path: Path) -> None:
    with closing(open_text_model(precise_path, PRECISE)) as opened:
        found = attend(opened, opened.tokenize(str(REFERENCE["sentence"]), begin=True))
    assert found.weights.shape == (30, 9, 6, 6) and found.layers == tuple(range(30))
    rows, columns = np.tril_indices(6)
    assert np.abs(found.weights[:, :, rows, columns] - REFERENCE["attention"]).max() < 1e-3


def proper(weights: np.ndarray) -> None:
    assert np.abs(weights.sum(axis=-1) - 1).max() < 1e-3 and (weights >= 0).all()
    assert not np.triu(weights, 1).any()


@pytest.mark.slow
def test_rows_sum_to_one_and_none_looks_ahead(model: Scorer) -> None:
    tokens = model.tokenize("\n".join(lines(12)), begin=True)[:300]
    found = attend(model, tokens, 7)  # longer than what is evaluated at once
    assert found.weights.shape == (1, 9, 300, 300) and found.layers == (7,)
    proper(found.weights)
    first = attend(model, tokens[:20])
    assert first.weights.shape == (30, 9, 20, 20)
    proper(first.weights)
    assert np.abs(first.weights[7] - found.weights[0, :, :20, :20]).max() < 0.02  # other kernels for other batches
    assert [first.data[i] for i in (0, 1)] == [model.spelled(token) for token in tokens[:2]]


@pytest.mark.parametrize("case", ["gemma3", "qwen3-moe", "phi3", "gpt2"])
def test_other_architectures(case: str, tmp_path: Path) -> None:
    """Sliding windows, experts, fused projections, learned positions."""
    target = tmp_path / "tiny.gguf"
    gguf.write(gguf.plan(checkpoints.write(tmp_path / "tiny", case), "f32"), target)
    with closing(open_text_model(target, PRECISE)) as opened:
        found = attend(opened, checkpoints.case(case)["tokens"][:12])
        assert found.weights.shape[:2] == (opened.layers, opened.heads)
    proper(found.weights)


def test_it_is_the_same_whatever_the_model_was_opened_with(model: Scorer, model_path: Path) -> None:
    tokens = model.tokenize("The cat sat on the mat", begin=True)
    with closing(open_text_model(model_path, EngineOptions(flash_attention="on", cache_type_v="q8_0"))) as opened:
        assert (attend(opened, tokens).weights == attend(model, tokens).weights).all()


def test_a_sliding_window(tmp_path: Path) -> None:
    """Columns are places in the text, also where the cache could have wrapped around."""
    checkpoint = checkpoints.write(tmp_path / "tiny", "gemma3")
    window = json.loads((checkpoint / "config.json").read_text())["sliding_window"]
    gguf.write(gguf.plan(checkpoint, "f32"), tmp_path / "tiny.gguf")
    count = 3 * window
    with closing(open_text_model(tmp_path / "tiny.gguf", PRECISE)) as opened:
        found = attend(opened, (checkpoints.case("gemma3")["tokens"] * count)[:count])
    proper(found.weights)
    reach = [int((np.arange(count)[:, None] - np.arange(count))[layer.any(axis=0)].max()) for layer in found.weights]
    assert set(reach) == {window - 1, count - 1}


def test_one_matrix_of_many(model: Scorer) -> None:
    found = attend(model, model.tokenize("The cat sat on the mat", begin=True))
    assert (found.matrix(3, 2) == found.weights[3, 2]).all()
    assert np.allclose(found.matrix(3), found.weights[3].mean(axis=0), atol=1e-6)
    assert np.allclose(found.matrix(head=2), found.weights[:, 2].mean(axis=0), atol=1e-6)
    assert (found.matrix(combine="max") == found.weights.max(axis=(0, 1))).all()
    proper(found.matrix(combine="rollout"))
    for wrong in ({"layer": 30}, {"head": 9}, {"head": -1}, {"layer": 1, "combine": "rollout"}, {"combine": "sum"}):
        with pytest.raises(UsageError):
            found.matrix(**wrong)


def test_rollout_is_its_definition() -> None:
    weights = np.tril(np.random.RandomState(0).rand(3, 2, 4, 4)).astype(np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    first, second, third = (0.5 * layer.mean(axis=0) + 0.5 * np.eye(4) for layer in weights)
    assert np.allclose(rollout(weights), third @ second @ first, atol=1e-6)


def test_limits(model: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        attend(model, [])
    with pytest.raises(UsageError, match="800 tokens, and 30 layers of 9 heads can be kept for 705"):
        attend(model, [5] * 800)
    with pytest.raises(UsageError, match="4000 tokens, and 1 layer of 9 heads can be kept for 3861"):
        attend(model, [5] * 4000, 0)
    with pytest.raises(UsageError, match="--layer 99: the model has no attention there"):
        attend(model, [5, 6], 99)


def test_what_fails_inside_native_code_is_told(model: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "F32", -1)
    with pytest.raises(LocalLLMError, match="the attention could not be read: .*layer 0 computes its weights in type"):
        attend(model, [5, 6])
