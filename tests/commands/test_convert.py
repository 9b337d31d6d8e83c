"""`convert` and `quantize` of what is on the Hub: fetched once, whole, and used again without a network."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.formats.gguf import read_header
from tests.support import checkpoints
from tests.support.command import COMMAND, localllm
from tests.support.gguf_files import gguf
from tests.support.hub_environment import environment
from tests.support.hub_server import Hub, serve


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


def files(folder: Path) -> dict[str, Path | bytes]:
    checkpoints.write(folder, "llama-yarn", dtype="BF16")
    found: dict[str, Path | bytes] = {p.name: p for p in folder.iterdir()}
    return found | {"README.md": b"---\nlicense: mit\n---\n", "modeling.py": b"1/0", "pytorch_model.bin": b"x" * 1000}


@pytest.mark.slow
def test_a_repository_is_fetched_and_converted(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/Tiny-Model", files(tmp_path / "checkpoint") | {"tiny-Q4_0.gguf": gguf() + b"0" * 5000})
    variables = environment(hub, tmp_path)
    target = tmp_path / "tiny.gguf"
    done = localllm("convert", "owner/Tiny-Model", "--yes", "-o", str(target), **variables)
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    metadata = read_header(target).metadata
    assert metadata["general.name"] == "Tiny Model" and metadata["general.license"] == "mit"
    assert not hub.sent("tiny-Q4_0.gguf") and not hub.sent("modeling.py") and not hub.sent("pytorch_model.bin")
    again = localllm("--offline", "quantize", "owner/Tiny-Model", "Q8_0", "-o", str(tmp_path / "q.gguf"), **variables)
    assert again.returncode == 0, again.stderr
    assert {t.type for t in read_header(tmp_path / "q.gguf").tensors} == {"F32", "Q8_0"}
    local = localllm(
        "--offline", "convert", str(tmp_path / "adapter"), "--lora", "--base", "owner/Tiny-Model", **variables
    )
    assert local.returncode == 3 and "adapter" in local.stderr  # the base is found, the adapter is not


def test_a_repository_without_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/only-gguf", {"tiny-Q4_0.gguf": gguf() + b"0" * 5000})
    done = localllm("convert", "owner/only-gguf", "--yes", **environment(hub, tmp_path))
    assert done.returncode == 3 and "safetensors" in done.stderr and done.stderr.count("\n") == 1


def test_nothing_is_fetched_without_consent(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/Tiny-Model", files(tmp_path / "checkpoint"))
    done = localllm("convert", "owner/Tiny-Model", **environment(hub, tmp_path))
    assert done.returncode == 3 and "--yes" in done.stderr
    assert not hub.sent("model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("evaluate", "{m}", "--against", "{m}", "--chunks", "60"), ("imatrix", "{m}", "-o", "{f}/i.gguf"),
              ("tune", "{m}", "{m}", "--chunks", "60", "-o", "{f}")],
)  # fmt: skip
def test_ctrl_c_ends_it_within_a_second(words: tuple[str, ...], model_path: Path, tmp_path: Path) -> None:
    command = [*COMMAND, *(word.format(m=model_path, f=tmp_path) for word in words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(6)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - started < 2, error
    assert (out, error) == (b"", b"") and not list(tmp_path.iterdir())
