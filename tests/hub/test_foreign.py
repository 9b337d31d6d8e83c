"""register and import: models used in place, as Ollama, LM Studio and people keep them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from localllm.hub.foreign import Foreign, Skipped, in_folder, in_ollama
from tests.support.command import COMMAND, localllm
from tests.support.gguf_files import gguf, split

MODEL = gguf() + b"weights" * 100
REGISTRY = "registry.ollama.ai"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path


def ollama_layer(root: Path, content: bytes, kind: str = "model", **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    values = {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}
    return {**values, **changes}


def ollama_model(root: Path, name: str, *layers: dict[str, Any]) -> None:
    path = root / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:" + "0" * 64, "size": 2}
    path.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": list(layers)}))


@pytest.mark.slow
def test_ollama_s_models_are_used_in_place(here: Path, model_path: Path) -> None:
    root = here / "home/.ollama/models"
    real = model_path.read_bytes()
    template = ollama_layer(root, b"{{ .Prompt }}", "template")
    ollama_model(root, f"{REGISTRY}/library/tale/135m", ollama_layer(root, real), template)
    projector = ollama_layer(root, gguf(), "projector")
    ollama_model(root, f"{REGISTRY}/somebody/Tale/latest", ollama_layer(root, MODEL), projector)
    ollama_model(root, f"{REGISTRY}/library/qwen3/4b", ollama_layer(root, MODEL))
    ollama_model(root, "hf.co/owner/Repo-GGUF/Q4_K_M", ollama_layer(root, MODEL))
    rows = {row["name"]: row for row in json.loads(localllm("register", "--ollama", "--json").stdout)}
    # The catalogue knows qwen3:4b, and that name goes on meaning the catalogue's.
    assert set(rows) == {"tale:135m", "somebody-tale:latest", "qwen3-ollama:4b", "owner-repo-gguf:q4_k_m"}
    assert rows["tale:135m"]["path"] == str(root / "blobs" / f"sha256-{hashlib.sha256(real).hexdigest()}")
    assert rows["tale:135m"]["quant"] == "Q4_1"
    ran = localllm("run", "tale:135m", "Say hi", "-n", "3")
    assert (ran.returncode, bool(ran.stdout.strip())) == (0, True), ran.stderr
    again = localllm("register", "--ollama")
    assert again.stderr.count("is registered already") == 4
    assert "ok tale:135m: 1 file" in localllm("verify", "tale:135m").stdout  # the digest is the recorded sha256
    removed = localllm("rm", "-y", "tale:135m")
    assert "is only forgotten, its file stays" in removed.stderr
    assert Path(rows["tale:135m"]["path"]).exists()
    assert "tale:135m" not in localllm("list").stdout


def test_hostile_manifests_of_ollama_are_passed_over(here: Path) -> None:
    root = here / "ollama"
    good = ollama_layer(root, MODEL)
    broken = ollama_layer(root, b"GGUF no more than that")
    cases = {
        "leads-out": {**good, "digest": "sha256:../../../etc/passwd"},
        "no-digest": {**good, "digest": 7},
        "other-hash": {**good, "digest": "md5:" + "0" * 64},
        "gone": {**good, "digest": "sha256:" + "1" * 64},
        "size": {**good, "size": 5},
        "broken": broken,
        "missing": {"mediaType": good["mediaType"]},
    }
    for name, layer in cases.items():
        ollama_model(root, f"{REGISTRY}/library/{name}/latest", layer)
    ollama_model(root, f"{REGISTRY}/library/projector/latest", good, ollama_layer(root, b"p", "projector"))
    ollama_model(root, f"{REGISTRY}/library/split/latest", good, good)
    ollama_model(root, f"{REGISTRY}/library/empty/latest")
    for name, text in (
        ("garbage", b"\xff\xfe"),
        ("list", b"[]"),
        ("nested", b"[" * 100_000),
        ("long", b" " * (2 << 20)),
    ):
        path = root / "manifests" / REGISTRY / "library" / name / "latest"
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
    ollama_model(root, f"{REGISTRY}/library/good/latest", good)
    found = list(in_ollama(root))
    assert [f.name for f in found if isinstance(f, Foreign)] == ["good:latest"]
    skipped = {f.path.parent.name: f.reason for f in found if isinstance(f, Skipped)}
    assert set(skipped) == {*cases, "projector", "split", "empty", "garbage", "list", "nested", "long"}
    assert "which is none" in skipped["leads-out"]
    assert "2 layers of weights" in skipped["split"]


@pytest.mark.slow
def test_lm_studio_s_models_with_shards_and_projector(here: Path, model_path: Path) -> None:
    (here / "moved" / "models").mkdir(parents=True)
    (here / "home").mkdir()
    (here / "home/.lmstudio-home-pointer").write_text(f"{here}/moved\n")
    folder = here / "moved/models/publisher/Tale-4B-GGUF"
    folder.mkdir(parents=True)
    (folder / "Tale-4B-Q4_0.gguf").write_bytes(MODEL)
    (folder / "mmproj-Tale-4B-F16.gguf").write_bytes(gguf())
    split(model_path, folder, "Tale-4B-Q4_1", 2)
    rows = {row["name"]: row for row in json.loads(localllm("register", "--lmstudio", "--json").stdout)}
    assert set(rows) == {"tale-4b:q4_0", "tale-4b:q4_1"}
    assert rows["tale-4b:q4_1"]["path"].endswith("Tale-4B-Q4_1-00001-of-00002.gguf")
    ran = localllm("run", "tale-4b:q4_1", "Say hi", "-n", "3")
    assert ran.returncode == 0, ran.stderr
    listed = {row["name"]: row for row in json.loads(localllm("list", "--json").stdout)}
    assert listed["tale-4b:q4_1"]["parameters"] == 134_515_008
    assert [Path(f).name for f in listed["tale-4b:q4_0"]["files"]] == ["Tale-4B-Q4_0.gguf", "mmproj-Tale-4B-F16.gguf"]


@pytest.mark.slow
def test_a_folder_and_a_name(here: Path) -> None:
    for name in (
        "deep/er/My Model (v2)-Q8_0.gguf",
        "deep/plain.gguf",
        ".hidden/x.gguf",
        "deep/broken.gguf",
        "deep/x.txt",
    ):
        path = here / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF" if "broken" in name else MODEL)
    (here / "own/deep/loop").symlink_to(here / "own")
    done = localllm("register", str(here / "own"), "--json")
    assert {row["name"] for row in json.loads(done.stdout)} == {"my-model-v2:q8_0", "plain"}
    assert "broken.gguf is passed over: " in done.stderr
    one = here / "own/deep/plain.gguf"
    assert localllm("register", str(one), "--name", "Mine:big").returncode == 0
    assert {"mine:big", "plain"} <= {row["name"] for row in json.loads(localllm("list", "--json").stdout)}
    other = here / "other.gguf"
    other.write_bytes(MODEL + b"2")
    taken = localllm("register", str(other), "--name", "mine:big")
    assert (taken.returncode, "mine:big is another model's name already" in taken.stderr) == (2, True)
    (here / "second").mkdir()
    (here / "second/plain.gguf").write_bytes(MODEL + b"2")
    assert json.loads(localllm("register", str(here / "second"), "--json").stdout)[0]["name"] == "plain-2"
    one.unlink()
    gone = localllm("run", "plain", "Hi")
    assert gone.returncode == 1
    assert f"{one}, which plain used in place, has gone (localllm rm plain forgets it)" in gone.stderr
    assert localllm("rm", "-y", "plain").returncode == 0
    for words, said in (
        ([str(here / "none")], "no model was found in"),
        ([], "register takes one of PATH, --ollama and --lmstudio"),
        ([str(here), "--name", "x"], "--name is for one model, and there are"),
        (["--ollama"], "no model was found in"),
    ):
        failed = localllm("register", *words)
        assert failed.returncode in (2, 3)
        assert said in failed.stderr


@pytest.mark.slow
def test_import_by_reference_and_by_copy(here: Path) -> None:
    file = here / "Tale-Q4_0.gguf"
    file.write_bytes(MODEL)
    assert localllm("import", str(file)).stdout == "tale:q4_0\n"
    assert "tale:q4_0 is here already" in localllm("import", str(file)).stderr
    assert "ok tale:q4_0: 1 file" in localllm("verify", "tale:q4_0").stdout
    assert localllm("import", str(file), "--copy", "--name", "copied").stdout == "copied\n"
    file.unlink()
    assert "ok copied: 1 file" in localllm("verify", "copied").stdout
    assert next((here / "data/models/copied").glob("*.gguf")).read_bytes() == MODEL
    replaced = localllm("import", str(file.with_name("other.gguf")), "--name", "copied", "--force")
    assert replaced.returncode == 3, "there is no such file"
    file.write_bytes(MODEL + b"newer")
    assert localllm("import", str(file), "--name", "copied").returncode == 2
    assert localllm("import", str(file), "--name", "copied", "--force").returncode == 0
    assert [p.name for p in (here / "data/models/copied").iterdir()] == ["manifest.json"]
    text = here / "text.gguf"
    text.write_text("no model")
    for words, said, code in (
        ([str(text)], "is not a GGUF file", 1),
        ([str(here / "none.gguf")], "none.gguf does not exist", 3),
        ([str(here / "data")], "holds no GGUF and no ONNX model", 1),
        ([str(here / "data:q4")], "holds no q4", 1),
    ):
        failed = localllm("import", *words)
        assert failed.returncode == code
        assert said in failed.stderr


@pytest.mark.slow
def test_a_killed_copy_leaves_no_model(here: Path) -> None:
    file = here / "big-Q4_0.gguf"
    file.write_bytes(gguf())
    os.truncate(file, 3_000_000_000)  # a hole: it takes no space and a while to copy
    process = subprocess.Popen(
        [*COMMAND, "import", str(file), "--copy"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 20
    while not list((here / "data").glob("models/.import-*/*.gguf")) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert [p.name[:8] for p in (here / "data/models").iterdir()] == [".import-"]
    assert json.loads(localllm("list", "--json").stdout) == []
    assert "interrupted import" in localllm("prune", "-y").stdout
    assert list((here / "data/models").iterdir()) == []


@pytest.mark.slow
def test_a_folder_of_too_many_files_is_refused(here: Path) -> None:
    folder = here / "many"
    folder.mkdir()
    for number in range(10_001):
        (folder / f"{number}").touch()
    done = localllm("register", str(folder))
    assert (done.returncode, "has more than 10,000 files" in done.stderr) == (2, True)
    assert list(in_folder(here / "nothing")) == []
