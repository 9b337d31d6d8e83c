"""The real SmolLM2, fetched once into the user's own store, and an environment of its own for every command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.engines.llama_model import LlamaModel
from localllm.hub import catalogue, store
from localllm.hub.pull import fetch_entry
from localllm.types import EngineOptions
from tests.support import real_checkpoints

# What a developer has set must not change what is tested.
for name in [n for n in os.environ if n.startswith("LOCALLLM_") and n != "LOCALLLM_HOME"]:
    del os.environ[name]
os.environ["LOCALLLM_CONFIG"] = os.devnull
os.environ["LOCALLLM_NO_CACHE"] = "1"  # what one test has evaluated would spare another the work it measures


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1, fetched by the product's own code where it is not here."""
    entry = catalogue.get(catalogue.DEFAULT_MODEL)
    failures: list[str] = []
    return store.installed(entry) or fetch_entry(entry, lambda _: None, lambda e: failures.append(str(e)))


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of all-MiniLM-L6-v2, with its tokenizer and what sentence-transformers notes."""
    return real_checkpoints.minilm(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="session")
def model(model_path: Path) -> Iterator[LlamaModel]:
    """One loaded model for the tests that do not mind what another left in its KV cache."""
    opened = LlamaModel(model_path, EngineOptions(context=2048), gpu_layers=0, threads=2)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def precise_path(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """SmolLM2 as a GGUF in float32, of the checkpoint whose values transformers gave."""
    from localllm.convert import gguf
    from tests.support.real_checkpoints import smollm2

    folder = tmp_path_factory.mktemp("precise")
    gguf.write(gguf.plan(smollm2(folder / "checkpoint", model_path), "f32"), folder / "SmolLM2-F32.gguf")
    return folder / "SmolLM2-F32.gguf"


@pytest.fixture
def home(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory that holds the default model by a link, and an empty Hub cache."""
    data = tmp_path / "data"
    entry = catalogue.get(catalogue.DEFAULT_MODEL)
    monkeypatch.setenv("LOCALLLM_HOME", str(data))
    target = store.source_path(entry.sources[-1])
    target.parent.mkdir(parents=True)
    target.symlink_to(model_path.resolve())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return data


@pytest.fixture
def without_template(tmp_path: Path, model_path: Path) -> Path:
    """SmolLM2 with its chat template's key renamed, as a base model has none."""
    path = tmp_path / "base.gguf"
    shutil.copyfile(model_path, path)
    with path.open("r+b") as file:
        header = file.read(2 << 20)
        file.seek(header.index(b"tokenizer.chat_template"))
        file.write(b"tokenizer.chat_templatX")
    return path
