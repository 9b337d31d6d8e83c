"""`quantize` of ONNX models: a file becomes a file, a folder a folder, and what is meant for GGUF files is refused."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.commands._quantize_onnx import is_onnx, quantize_onnx
from localllm.convert.onnx import export
from localllm.engines import open_embedder
from localllm.types import EngineOptions
from tests.support import checkpoints
from tests.support.command import localllm
from tests.support.onnx_models import Runner

CASE = "llama-tied-linear"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("onnx")
    export.write(export.plan(checkpoints.write(place / "checkpoint", CASE)), place / "tiny")
    (place / "tiny" / "README.md").write_text("# a model")
    return place / "tiny"


@pytest.mark.slow
def test_a_folder(folder: Path, tmp_path: Path) -> None:
    done = localllm("quantize", str(folder), "Q4", "q8", "-o", str(tmp_path))
    names = [tmp_path / f"tiny-{kind}" for kind in ("q4", "q8")]
    assert (done.returncode, done.stdout) == (0, "".join(f"{name}\n" for name in names)), done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["tiny-q4", "tiny-q8"]
    assert all(" matrices quantized, " in line and "times smaller" in line for line in lines)
    tokens, expected = checkpoints.case(CASE)["tokens"], checkpoints.expected(CASE)
    for name, within in zip(names, (1.0, 0.1), strict=True):
        assert {p.name for p in name.iterdir()} == {p.name for p in folder.iterdir()} - {"model.onnx.data"}
        assert 0 < np.abs(Runner(name).run(tokens) - expected).max() < within
    again = localllm("quantize", str(folder), "q8", "-o", str(names[1]))
    assert again.returncode == 2 and "--force" in again.stderr
    assert localllm("quantize", str(folder), "q8", "-o", str(names[1]), "--force", "--quiet").stderr == ""
    (names[1] / "thesis.txt").write_text("mine")
    again = localllm("quantize", str(folder), "q8", "-o", str(names[1]), "--force")
    assert again.returncode == 2 and "thesis.txt" in again.stderr and (names[1] / "thesis.txt").exists()


def test_how_vectors_are_pooled_is_kept(tmp_path: Path) -> None:
    """The note lies in a folder of its own, and the first token's vector is not the mean."""
    folder = tmp_path / "bert"
    export.write(export.plan(checkpoints.write(tmp_path / "checkpoint", "bert")), folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "pictures").mkdir()
    (folder / "pictures" / "config.json").write_text("{}")
    target = tmp_path / "small"
    for force in (False, True):
        quantize_onnx(folder, ["q8"], target, force=force, quiet=True)
    assert not (target / "pictures").exists()
    found = []
    for place in (folder, target):
        with closing(open_embedder(place, EngineOptions(threads=1))) as embedder:
            assert not embedder.notices
            (vector,) = embedder.encode(embedder.tokenize_all(["the cat sat"]))
            found.append(vector / np.linalg.norm(vector))
    with closing(open_embedder(folder, EngineOptions(threads=1), "mean")) as embedder:
        (mean,) = embedder.encode(embedder.tokenize_all(["the cat sat"]))
    assert found[0] @ found[1] > 0.99 > found[0] @ mean / np.linalg.norm(mean)


def test_a_model_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    """There the data beside a model are a link, like the model itself."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, blobs / f"blob-of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-of-{path.name}")
    found = []
    for place in (folder, snapshot):
        quantize_onnx(place, ["q8"], tmp_path / f"{place.name}-q8", force=False, quiet=True)
        found.append((tmp_path / f"{place.name}-q8" / "model.onnx").read_bytes())
    assert found[0] == found[1]


def test_which_folders_are_onnx(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "pytorch_model.bin").touch()
    assert is_onnx(str(folder)) and not is_onnx(str(tmp_path))
    (tmp_path / "onnx" / "model.onnx").touch()
    assert is_onnx(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert not is_onnx(str(tmp_path))


@pytest.mark.slow
def test_a_file(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.onnx"
    done = localllm("quantize", str(folder / "model.onnx"), "q8", "-o", str(target))
    assert (done.returncode, done.stdout) == (0, f"{target}\n") and [p.name for p in tmp_path.iterdir()] == [
        "small.onnx"
    ]
    again = localllm("quantize", str(folder / "model.onnx"), "q8", "-o", str(target))
    assert again.returncode == 2 and "--force" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [(["q5"], "the types are q4, q8"), (["q4", "--pure"], "--pure is for GGUF"), (["q4", "--json"], "--json is for GGUF"),
     (["q4", "--tensor", "a=b"], "--tensor is for GGUF"), (["q4", "q8", "-o", "nowhere"], "is not a folder")],
)  # fmt: skip
def test_what_is_refused(words: list[str], message: str, folder: Path) -> None:
    done = localllm("quantize", str(folder), *words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_models_that_are_none(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.onnx", tmp_path / "alone.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    for name, message in (("none", "no such file"), ("alone", "is missing"), ("text", "sound")):
        done = localllm("quantize", str(tmp_path / f"{name}.onnx"), "q4", "-o", str(tmp_path / "out.onnx"))
        assert done.returncode in (1, 3) and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    two = localllm("quantize", str(tmp_path), "q4", "-o", str(tmp_path / "out"))
    assert two.returncode == 1 and "has 2 ONNX models and no model.onnx" in two.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.onnx", "text.onnx"]
