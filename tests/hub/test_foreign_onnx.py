"""register and import of ONNX folders: the layouts that people have, used by name as a GGUF is; hostile ones refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from localllm.hub.foreign import Foreign, Skipped, in_folder
from tests.support import onnx_encoders, tiny_onnx
from tests.support.command import localllm


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def two_types(here: Path) -> Path:
    """A repository as Optimum and transformers.js lay it out, with two types of one model."""
    folder = here / "Tiny-ONNX"
    tiny_onnx.write(folder, "optimum")
    tiny_onnx.write(folder, "optimum", kind="f16", name="model_q4f16.onnx", data=True)
    return folder


def rows(*words: str) -> list[dict[str, object]]:
    shown = localllm(*words, "--json")
    assert shown.returncode == 0, shown.stderr
    found: list[dict[str, object]] = json.loads(shown.stdout)
    return found


def names() -> list[object]:
    return [row["name"] for row in rows("list")]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["own", "genai"])
def test_a_folder_is_used_by_its_name(here: Path, layout: tiny_onnx.Layout) -> None:
    folder = here / "Tiny Tale"
    path = tiny_onnx.write(folder, layout, data=True)
    (row,) = rows("register", str(folder))
    assert (row["name"], row["quant"], row["path"]) == ("tiny-tale", "f32", str(path))
    ran = localllm("run", "tiny-tale", "Say hi", "-n", "3", "--temperature", "0", "--json")
    direct = localllm("run", "-m", str(folder), "Say hi", "-n", "3", "--temperature", "0", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["text"] == json.loads(direct.stdout)["text"]
    (listed,) = rows("list")
    assert (listed["format"], listed["engine"], listed["place"]) == ("onnx", "onnx", "in place")
    assert listed["size"] == path.stat().st_size + path.with_name("model.onnx.data").stat().st_size
    shown = json.loads(localllm("show", "tiny-tale", "--json").stdout)
    assert (shown["name"], shown["path"]) == ("tiny-tale", str(path))
    assert "is registered already" in localllm("register", str(folder)).stderr
    assert localllm("rm", "-y", "tiny-tale").returncode == 0
    assert (names(), path.exists()) == ([], True)


@pytest.mark.slow
def test_of_several_types_one_is_chosen(here: Path) -> None:
    folder = two_types(here)
    assert {row["name"] for row in rows("register", str(folder))} == {"tiny-onnx:f32", "tiny-onnx:q4f16"}
    (row,) = rows("register", f"{folder}:q4f16", "--name", "small")
    assert (row["name"], row["path"]) == ("small", str(folder / "onnx/model_q4f16.onnx"))
    missing = localllm("register", f"{folder}:int8")
    assert (missing.returncode, "no int8 was found in" in missing.stderr) == (3, True)
    several = localllm("import", str(folder))
    assert several.returncode == 2
    assert "holds 2 models" in several.stderr
    assert ":QUANT imports one of" in several.stderr


@pytest.mark.slow
def test_a_copy_needs_its_source_no_longer(here: Path) -> None:
    folder = two_types(here)
    assert localllm("import", f"{folder}:q4f16", "--copy", "--name", "mine").stdout == "mine\n"
    shutil.rmtree(folder)
    copied = here / "data/models/mine"
    inside = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert inside == {
        "manifest.json", "onnx/model_q4f16.onnx", "onnx/model_q4f16.onnx.data", "config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    ran = localllm("run", "mine", "Say hi", "-n", "3", "--temperature", "0")
    assert ran.returncode == 0, ran.stderr
    assert "ok mine: 5 files" in localllm("verify", "mine").stdout
    assert localllm("export", "mine", str(here / "mine.tar")).returncode == 0
    assert localllm("rm", "-y", "mine").returncode == 0
    assert not copied.exists(), "no empty folder keeps the name"
    assert localllm("import", str(here / "mine.tar")).stdout == "mine\n"
    assert localllm("run", "mine", "Say hi", "-n", "3", "--temperature", "0").stdout == ran.stdout


@pytest.mark.slow
def test_encoders_are_used_by_their_names(here: Path) -> None:
    folder = here / "vectors"
    onnx_encoders.write(folder / "model.onnx", ["input_ids", "attention_mask"], "last_hidden_state")
    onnx_encoders.beside(folder)
    assert localllm("import", str(folder / "model.onnx"), "--copy").stdout == "vectors\n"
    made = localllm("embed", "-m", "vectors", "a b")
    assert made.returncode == 0, made.stderr


def leads_out(model: Path) -> None:
    data = model.with_name("model.onnx.data")
    data.rename(model.parent.parent / "elsewhere")
    data.symlink_to(model.parent.parent / "elsewhere")


def names_another_folder(model: Path) -> None:
    content = model.read_bytes()
    assert content.count(b"model.onnx.data")
    model.write_bytes(content.replace(b"model.onnx.data", b"../secret/12345"))


def has_a_hard_link(model: Path) -> None:
    os.link(model.with_name("model.onnx.data"), model.parent.parent / "same")


def lacks_its_data(model: Path) -> None:
    model.with_name("model.onnx.data").unlink()


def takes_a_secret_for_its_tokenizer(model: Path) -> None:
    secret = model.parent.parent / "secret.json"
    secret.write_text("{}")
    model.with_name("tokenizer.json").unlink()
    model.with_name("tokenizer.json").symlink_to(secret)


def is_a_link_itself(model: Path) -> None:
    model.rename(model.parent.parent / "model.onnx")
    model.symlink_to(model.parent.parent / "model.onnx")


def is_cut(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:500])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (leads_out, "a symbolic link"),
        (names_another_folder, "is not in its folder"),
        (has_a_hard_link, "is a hard link"),
        (lacks_its_data, "is missing"),
        (takes_a_secret_for_its_tokenizer, "is a link out of the model's folder"),
        (is_a_link_itself, "is a link out of the model's folder"),
        (is_cut, "not a sound ONNX file"),
    ],
)
def test_hostile_folders_are_refused(here: Path, harm: Callable[[Path], None], said: str) -> None:
    folder = here / "bad"
    harm(tiny_onnx.write(folder, "own"))
    (skipped,) = in_folder(folder)
    assert isinstance(skipped, Skipped)
    assert said in skipped.reason


def test_a_hostile_folder_costs_one_line(here: Path) -> None:
    folder = here / "bad"
    takes_a_secret_for_its_tokenizer(tiny_onnx.write(folder, "own"))
    failed = localllm("import", str(folder), "--copy")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "tokenizer.json is a link out of the model's folder" in failed.stderr
    assert not (here / "data/models").exists()
    passed_over = localllm("register", str(folder))
    assert passed_over.returncode == 3
    assert "is passed over: " in passed_over.stderr


def test_the_hub_s_cache_links_to_its_own_blobs_only(here: Path) -> None:
    home = here / "models--owner--repo/snapshots" / ("0" * 40)
    path = tiny_onnx.write(home, "own", data=False)
    blobs = home.parent.parent / "blobs"
    blobs.mkdir()
    path.rename(blobs / "1")
    path.symlink_to(blobs / "1")
    (found,) = in_folder(home)
    assert isinstance(found, Foreign)
    blobs.rename(here / "elsewhere")
    blobs.symlink_to(here / "elsewhere")
    assert path.is_file()
    (skipped,) = in_folder(home)
    assert isinstance(skipped, Skipped)


def test_names_that_would_be_read_as_files_are_not_given(here: Path) -> None:
    folder = here / "tale.onnx"
    tiny_onnx.write(folder, "own")
    assert [row["name"] for row in rows("register", str(folder))] == ["tale"]
    refused = localllm("register", str(folder), "--name", "other.onnx")
    assert (refused.returncode, "would always be read as a file" in refused.stderr) == (2, True)
