"""Weights that are NaN, as a damaged file has them: an error of one line, not an answer of whatever comes first."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.engines import open_embedder, open_engine, open_together
from localllm.engines.local import LocalEngine
from localllm.errors import NotNumbers
from localllm.formats.gguf import read_header
from localllm.jobs.embed import embed
from localllm.types import EngineOptions, Limits, Message, Request, Sampling
from tests.support import onnx_encoders, tiny_onnx

OPTIONS = EngineOptions(context=64, threads=1)


def damaged_gguf(sound: Path, folder: Path) -> Path:
    path = folder / "damaged.gguf"
    shutil.copyfile(sound, path)
    norm = next(t for t in read_header(path).tensors if t.name == "blk.3.ffn_norm.weight")
    weights = np.memmap(path, np.float32, "r+", norm.offset, norm.size // 4)
    weights[5] = np.nan
    weights.flush()
    return path


def damaged_onnx(folder: Path) -> Path:
    path = tiny_onnx.write(folder, "own")
    data = path.with_name("model.onnx.data")
    data.write_bytes(np.full(data.stat().st_size // 4, np.nan, np.float32).tobytes())
    return path


@pytest.fixture(params=["llama.cpp", "onnx"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> LocalEngine:
    kind = request.param
    sound = request.getfixturevalue("model_path") if kind == "llama.cpp" else tmp_path
    return open_engine(kind, damaged_gguf(sound, tmp_path) if kind == "llama.cpp" else damaged_onnx(tmp_path), OPTIONS)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=1), Sampling(mirostat=2, seed=1)])
def test_an_answer_is_refused(engine: LocalEngine, sampling: Sampling) -> None:
    with pytest.raises(NotNumbers, match="not numbers"):
        list(engine.stream(Request((Message("user", "Hello"),), sampling, Limits(max_tokens=3))))
    engine.close()


def test_what_only_a_later_token_meets_is_refused_too(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    shutil.copyfile(model_path, path)
    table = next(t for t in read_header(path).tensors if t.name == "token_embd.weight")
    rows = np.memmap(path, np.uint8, "r+", table.offset, (table.shape[1], table.size // table.shape[1]))
    rows[300, :2] = np.array([np.nan], np.float16).view(np.uint8)  # the scale of the row's first block
    rows.flush()
    engine = open_engine("llama.cpp", path, OPTIONS)
    with closing(engine):
        model = engine.model
        model.prefill([1, 2, 3])
        model.feed(301)
        with pytest.raises(NotNumbers):
            model.feed(300)
        model.allow_guesses(1)
        model.open_context()
        model.prefill([1, 2, 3])
        with pytest.raises(NotNumbers):
            model.feed_ahead(300, [301])


def test_answers_side_by_side_are_refused(model_path: Path, tmp_path: Path) -> None:
    engine, answers = open_together("llama.cpp", damaged_gguf(model_path, tmp_path), OPTIONS, 2)
    request = Request((Message("user", "Hello"),), Sampling(temperature=0), Limits(max_tokens=3))
    with closing(engine), pytest.raises(NotNumbers):
        list(answers([("a", request), ("b", request)]))


def test_a_vector_is_refused(tmp_path: Path) -> None:
    """JSON has no NaN, and a distance to it is none."""
    path = onnx_encoders.write(onnx_encoders.beside(tmp_path) / "model.onnx", ["input_ids"], "last_hidden_state")
    table = onnx_encoders.table()
    path.write_bytes(path.read_bytes().replace(table.tobytes(), np.full_like(table, np.nan).tobytes()))
    with closing(open_embedder(path, OPTIONS)) as embedder, pytest.raises(NotNumbers):
        embed(embedder, ["a"])
