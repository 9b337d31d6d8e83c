"""ONNX models through the commands: files, folders and the Hub, chosen by their format and quantization."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny_onnx
from tests.support.command import COMMAND, Terminal, localllm
from tests.support.hub_environment import environment
from tests.support.hub_server import Hub, serve

ASK = ("--temperature", "0", "-n", "12", "-c", "512")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What transformers.js finds: several quantizations in onnx/, one of them with its data beside it."""
    folder = tmp_path / "tiny"
    plain = tiny_onnx.write(folder, "optimum")
    shutil.copy(plain, plain.with_name("model_quantized.onnx"))
    tiny_onnx.write(folder, "optimum", name="model_q4.onnx", kind="f16", data=True)
    return folder


@pytest.mark.slow
def test_a_folder_a_quantization_and_a_file(repository: Path) -> None:
    file = repository / "onnx" / "model_quantized.onnx"
    said = {}
    for name in (str(repository), f"{repository}:int8", f"{repository}:q8", str(file), f"{repository}:q4"):
        done = localllm("run", "-m", name, "Hi", *ASK)
        assert (done.returncode, done.stderr) == (0, ""), name
        said[name] = done.stdout
    assert len(said[str(repository)]) == 13
    assert said[str(repository)] == said[f"{repository}:int8"] == said[f"{repository}:q8"] == said[str(file)]
    assert localllm("run", str(repository), "Hi", *ASK).stdout == said[str(repository)]
    done = localllm("run", "-m", f"{repository}:q5", "Hi")
    assert done.returncode != 0 and "has no q5 (it has f32, int8, q4)" in done.stderr


@pytest.mark.slow
def test_from_the_hub_by_quantization(hub: Hub, repository: Path, tmp_path: Path) -> None:
    files = {p.relative_to(repository).as_posix(): p for p in repository.rglob("*") if p.is_file()}
    hub.add("owner/Tiny-ONNX", files)
    variables = environment(hub, tmp_path)
    done = localllm("run", "-m", "owner/Tiny-ONNX:q4", "Hi", "--yes", *ASK, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == localllm("run", "-m", f"{repository}:q4", "Hi", *ASK).stdout
    again = localllm("--offline", "run", "-m", "owner/Tiny-ONNX:q4", "Hi", *ASK, **variables)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    listed = json.loads(localllm("list", "--json", **variables).stdout)
    assert [(m["name"], m["engine"], m["format"]) for m in listed] == [("owner/Tiny-ONNX:q4", "onnx", "onnx")]


@pytest.mark.slow
def test_show(tmp_path: Path) -> None:
    tiny_onnx.write(tmp_path, "own")
    done = localllm("show", str(tmp_path), "--json")
    found = json.loads(done.stdout)
    assert (found["architecture"], found["context"], found["layers"]) == ("llama", 1024, 2)
    assert [Path(f["path"]).name for f in found["files"]] == ["model.onnx", "model.onnx.data"]
    assert found["metadata"]["onnx.opsets"] == "ai.onnx 17, com.microsoft 1"
    assert found["parameters"] == found["metadata"]["onnx.parameters"] > 20_000
    assert "input_ids i64 (batch, sequence)" in localllm("show", str(tmp_path)).stdout
    assert localllm("show", str(tmp_path), "--template").stdout == tiny_onnx.TEMPLATE + "\n"


def test_bench_counts_and_names(tmp_path: Path) -> None:
    tiny_onnx.write(tmp_path, "genai")
    done = localllm("bench", str(tmp_path), "-p", "32", "-n", "4", "-r", "1", "--json")
    rows = json.loads(done.stdout)
    assert [(r["n_prompt"], r["n_gen"]) for r in rows] == [(32, 0), (0, 4)], done.stderr
    assert rows[0]["backends"] == "CPU" and rows[0]["model_type"] == "llama f32 ONNX"


@pytest.mark.slow
def test_evaluate_and_explain_read_every_position(tmp_path: Path) -> None:
    tiny_onnx.write(tmp_path / "a", "own")
    tiny_onnx.write(tmp_path / "b", "own", kind="f16")
    text = tmp_path / "text"
    text.write_text("Letters follow letters. " * 40, encoding="utf-8")
    words = (str(tmp_path / "a"), "--against", str(tmp_path / "b"), "--text", str(text), "--ctx", "64", "--json")
    done = localllm("evaluate", *words)
    found = json.loads(done.stdout)
    assert 1 < found["perplexity"] < 10_000 and found["chunks"] == 15, done.stderr
    assert 0 <= found["mean_kld"] < 0.01 and found["same_top"] > 0.95
    done = localllm("explain", "-m", str(tmp_path / "a"), "abc", "--json")
    assert len(json.loads(done.stdout)["tokens"]) == 3, done.stderr


@pytest.mark.slow
def test_a_form_is_kept(tmp_path: Path) -> None:
    tiny_onnx.write(tmp_path, "own")
    for more in (("--temperature", "0"), ("--seed", "3")):
        done = localllm("run", "-m", str(tmp_path), "Hi", "-c", "512", "--choice", "yes,no", *more)
        assert (done.returncode, done.stdout.strip() in ("yes", "no")) == (0, True), done.stderr
    done = localllm("run", "-m", str(tmp_path), "Hi", "-c", "512", "-n", "2", "--logprobs", "2", "--json")
    assert done.returncode == 0, done.stderr


def test_tokenize_reads_no_weights(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    path.with_name("model.onnx.data").unlink()
    done = localllm("tokenize", "-m", str(tmp_path), "ab<|im_end|>", "--count")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_a_prompt_within_a_second(tmp_path: Path) -> None:
    tiny_onnx.write(tmp_path, "optimum")
    words = ("run", "-m", str(tmp_path), "-c", "1000", "--ignore-eos", "--on-overflow", "shift", "x" * 800)
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in error
    assert time.monotonic() - started < 20  # a second where the machine has time for it


def test_chat(tmp_path: Path) -> None:
    tiny_onnx.write(tmp_path, "own")
    home = {"LOCALLLM_HOME": str(tmp_path / "home")}
    with Terminal("chat", "-m", str(tmp_path), "-n", "5", "-c", "512", "--temperature", "0", **home) as terminal:
        terminal.wait(lambda text: text.endswith("\n>"))
        terminal.send("Hi\r")
        terminal.wait(lambda text: "> Hi" in text and text.endswith("\n>"))


@pytest.mark.parametrize("name", ["nothing.onnx", "./nothing/model.onnx"])
def test_what_is_not_there(name: str) -> None:
    done = localllm("run", "-m", name, "Hi")
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "no such file" in done.stderr


def test_an_encoder_gets_the_way_out(tmp_path: Path) -> None:
    import onnx

    path = tiny_onnx.write(tmp_path, "optimum")
    model = onnx.load(path)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "last_hidden_state"
    onnx.save(model, path)
    done = localllm("run", "-m", str(tmp_path), "Hi")
    assert done.returncode != 0 and "is an encoder" in done.stderr and "localllm embed" in done.stderr
