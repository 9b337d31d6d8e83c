"""`fit`: what a model would need, from the Hub by ranges of bytes, and from what is here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localllm import hardware
from localllm.fit import estimate
from localllm.formats.gguf import read_header
from tests.support.command import localllm
from tests.support.gguf_files import split
from tests.support.hub_environment import environment, tree
from tests.support.hub_server import Hub, serve


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


def fit(hub: Hub, folder: Path, *words: str) -> Any:
    done = localllm("fit", *words, "--json", **environment(hub, folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_numbers_of_a_remote_model_are_those_of_the_local_one(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    hub.add("owner/repo", {"m-Q4_1.gguf": model_path})
    there = fit(hub, tmp_path, "owner/repo:Q4_1")
    assert hub.sent("m-Q4_1.gguf") < 5_000_000
    assert tree(tmp_path / "hub") == {}
    here = fit(hub, tmp_path, str(model_path))
    keys = ("context", "weights", "kv_cache", "compute", "total", "verdict", "layers")
    assert [[row[k] for k in keys] for row in there["rows"]] == [[row[k] for k in keys] for row in here["rows"]]
    assert [row["context"] for row in here["rows"]] == [4096, 8192]
    need = estimate(read_header(model_path), 8192, "f16", "f16", repacked_types=hardware.repacked_types())
    assert here["rows"][1]["total"] == need.total
    assert here["rows"][1]["verdict"] == "fits"


@pytest.mark.slow
def test_every_quantization_by_one_header(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    """The others' weights are known by their size in the listing; nothing of them is read."""
    larger = model_path.read_bytes() + bytes(50_000_000)
    hub.add("owner/repo", {"m-Q4_1.gguf": model_path, "m-Q8_0.gguf": larger})
    rows = fit(hub, tmp_path, "owner/repo", "-c", "1000")["rows"]
    assert [(row["quant"], row["context"]) for row in rows] == [("Q4_1", 1000), ("Q8_0", 1000)]
    assert rows[1]["weights"] - rows[0]["weights"] == 50_000_000
    assert rows[0]["kv_cache"] == rows[1]["kv_cache"] == 30 * 2 * 3 * 64 * 2 * 1024
    assert hub.sent("m-Q8_0.gguf") == 0


@pytest.mark.slow
def test_shards_count_together(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    parts = split(model_path, tmp_path, "m-Q4_1", 3)
    hub.add("owner/repo", {path.name: path for path in parts})
    rows = fit(hub, tmp_path, "owner/repo:Q4_1", "-c", "512")["rows"]
    whole = fit(hub, tmp_path, str(model_path), "-c", "512")["rows"]
    assert rows[0]["total"] == whole[0]["total"]


@pytest.mark.slow
def test_the_types_of_the_cache(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    f16, q8 = (
        fit(hub, tmp_path, str(model_path), "-c", "8192", "--cache-type-k", t, "--cache-type-v", t)["rows"][0]
        for t in ("f16", "q8_0")
    )
    assert q8["kv_cache"] == f16["kv_cache"] * 34 // 64
    wrong = localllm("fit", str(model_path), "--cache-type-k", "q9")
    assert (wrong.returncode, "--cache-type-k q9 is no type" in wrong.stderr) == (2, True)


@pytest.mark.slow
def test_a_checkpoint_by_its_configuration(hub: Hub, tmp_path: Path) -> None:
    config = {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    config |= {
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 2048,
        "torch_dtype": "bfloat16",
    }
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": bytes(2_000_000)}
    hub.add("owner/repo", files)
    rows = fit(hub, tmp_path, "owner/repo")["rows"]
    assert [row["quant"] for row in rows] == ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
    assert rows[0]["weights"] == 2_000_000
    assert {row["context"] for row in rows} == {2048}
    assert hub.sent("model.safetensors") == 0


@pytest.mark.slow
@pytest.mark.parametrize("config", [b"no json", b"[]", b"{}", b'{"num_hidden_layers": 1e9}', b"[" * 100_000])
def test_a_hostile_configuration_is_an_error(hub: Hub, tmp_path: Path, config: bytes) -> None:
    hub.add("owner/repo", {"config.json": config, "model.safetensors": b"x"})
    done = localllm("fit", "owner/repo", **environment(hub, tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "config.json" in done.stderr


@pytest.mark.slow
def test_the_table_says_no_where_run_refuses(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    """The context at which `fit` turns to no is the one at which `run` does."""
    context = 16_000_000
    assert fit(hub, tmp_path, str(model_path), "-c", str(context))["rows"][0]["verdict"] == "no"
    refused = localllm("run", "-m", str(model_path), "Hi", "-c", str(context), "-n", "1")
    assert refused.returncode == 1
    option = refused.stderr.partition("(")[2].split(" would fit")[0].split()
    assert option[0] == "--context"
    # A little less: what is free changes from one moment to the next.
    context = int(option[1]) * 9 // 10
    assert fit(hub, tmp_path, str(model_path), "-c", str(context))["rows"][0]["verdict"] != "no"


@pytest.mark.slow
def test_the_table_in_80_columns(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    done = localllm("fit", str(model_path))
    head = next(line for line in done.stdout.splitlines() if line.startswith("quant"))
    assert head.split() == [
        "quant", "context", "file", "weights", "KV", "cache", "compute", "total", "verdict", "on", "GPU", "tokens/s"
    ]  # fmt: skip
    assert all(len(line) <= 100 for line in done.stdout.splitlines()[2:])
    assert os.linesep not in head


def test_what_cannot_be_estimated(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/repo", {"onnx/model_q4.onnx": b"x", "config.json": b"{}"})
    done = localllm("fit", "owner/repo", **environment(hub, tmp_path))
    assert done.returncode == 3
    assert "owner/repo has neither GGUF nor safetensors" in done.stderr
