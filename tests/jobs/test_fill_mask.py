"""Candidates for masks are those of transformers' pipeline; what is no masked language model is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.convert.onnx import export
from localllm.engines import open_embedder, open_masked
from localllm.errors import BadModelFile, LocalLLMError, NotNumbers, UsageError
from localllm.jobs.fill_mask import fill
from localllm.types import EngineOptions
from tests.support import checkpoints, masked, sentences
from tests.support.command import localllm

OPTIONS = EngineOptions(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("masked")
    export.write(export.plan(masked.write_checkpoint(place / "checkpoint")), place / "model")
    return place / "model"


def test_candidates_are_those_of_transformers(folder: Path) -> None:
    with closing(open_masked(folder, OPTIONS)) as model:
        for text, expected in zip(sentences.MASKED, masked.described()["expected"], strict=True):
            found = fill(model, text, 5)
            assert [[c.token for c in m] for m in found] == [[c["token"] for c in m] for m in expected]
            for ours, theirs in zip(found, expected, strict=True):
                assert max(abs(a.probability - b["score"]) for a, b in zip(ours, theirs, strict=True)) < 1e-6


@pytest.mark.parametrize("quant", ["f16", "q8"])
def test_smaller_models_are_near(quant: str, folder: Path, tmp_path: Path) -> None:
    export.write(export.plan(masked.write_checkpoint(tmp_path / "checkpoint"), quant), tmp_path / "model")
    text = sentences.MASKED[0]
    with closing(open_masked(folder, OPTIONS)) as whole, closing(open_masked(tmp_path / "model", OPTIONS)) as small:
        likely = {c.token: c.probability for c in fill(whole, text, 1200)[0]}
        assert all(abs(c.probability - likely[c.token]) < 2e-4 for c in fill(small, text, 1200)[0])


def test_probabilities_add_up_and_the_text_is_filled(folder: Path) -> None:
    with closing(open_masked(folder, OPTIONS)) as model:
        (candidates,) = fill(model, "a <mask> b", 1200)
        assert abs(sum(c.probability for c in candidates) - 1) < 1e-9
        assert len(candidates) == 1200
        two = fill(model, "[MASK] b [MASK]", 1)
        assert len(two) == 2 and two[0][0].text.endswith("b [MASK]") and two[1][0].text.startswith("[MASK] b")


def test_weights_that_are_no_numbers(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    data = tmp_path / "damaged" / "model.onnx.data"
    data.write_bytes(np.full(data.stat().st_size // 4, np.nan, np.float32).tobytes())
    with closing(open_masked(data.parent, OPTIONS)) as model, pytest.raises(NotNumbers):
        fill(model, "a [MASK] b", 1)


def test_what_cannot_be_filled(folder: Path) -> None:
    with closing(open_masked(folder, OPTIONS)) as model:
        with pytest.raises(UsageError, match="there is no mask"):
            fill(model, "a b", 5)
        with pytest.raises(UsageError, match="has 103 tokens and the model takes 64"):
            fill(model, "[MASK] " + "a " * 100, 5)


def test_models_of_other_kinds(folder: Path, tmp_path: Path, model_path: Path) -> None:
    export.write(export.plan(checkpoints.write(tmp_path / "bert", "bert")), tmp_path / "encoder")
    with pytest.raises(BadModelFile, match="no masked language model: it gives last_hidden_state") as caught:
        open_masked(tmp_path / "encoder", OPTIONS)
    assert "localllm embed" in caught.value.hint
    with pytest.raises(BadModelFile, match="logits and no vectors") as caught:
        open_embedder(folder, OPTIONS)
    assert "localllm fill-mask" in caught.value.hint
    with pytest.raises(BadModelFile, match="is a GGUF"):
        open_masked(model_path, OPTIONS)


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    export.write(export.plan(checkpoints.write(tmp_path / "qwen2", "qwen2")), tmp_path / "decoder")
    with pytest.raises(BadModelFile, match="is no encoder: it wants past_key_values"):
        open_masked(tmp_path / "decoder", OPTIONS)


@pytest.mark.parametrize(
    ("name", "data", "kind", "message"),
    [
        ("tokenizer.json", None, BadModelFile, "no tokenizer.json"),
        ("tokenizer.json", b"{}", BadModelFile, "is no tokenizer"),
        ("tokenizer.json", b"\0\xff", BadModelFile, "is no tokenizer"),
        ("model.onnx", b"", BadModelFile, "model.onnx"),
        ("model.onnx", b"\x08\x01garbage", BadModelFile, "model.onnx"),
        ("model.onnx.data", None, BadModelFile, "model.onnx"),
        ("model.onnx.data", b"short", BadModelFile, "model.onnx"),
    ],
)
def test_damaged_folders(
    name: str, data: bytes | None, kind: type[LocalLLMError], message: str, folder: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / name
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(kind, match=message):
        open_masked(tmp_path / "copy", OPTIONS)


@pytest.mark.slow
def test_the_command(folder: Path) -> None:
    done = localllm("fill-mask", "-m", str(folder), sentences.MASKED[0], "--top", "2", "--json")
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    assert [c["token"] for c in found["masks"][0]] == [c["token"] for c in masked.described()["expected"][0][0][:2]]
    done = localllm("fill-mask", "-m", str(folder), input="one [MASK]\ntwo [MASK] [MASK]\n")
    assert [line.split()[0] for line in done.stdout.splitlines() if "likely" in line] == ["token", "mask"]


def test_the_command_says_what_is_missing(folder: Path) -> None:
    for words, message in (
        (["a [MASK]"], "fill-mask needs a masked language model"),
        (["-m", str(folder), "nothing here"], "there is no mask in the text"),
    ):
        done = localllm("fill-mask", *words)
        assert (done.returncode, done.stdout) == (2, "") and message in done.stderr and done.stderr.count("\n") == 1
