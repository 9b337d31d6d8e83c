"""The folder appears whole or not at all, deletes nobody's files, and says in a line what it cannot be made of."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.convert.onnx import beside, export
from localllm.errors import BadModelFile, UsageError
from tests.support import checkpoints
from tests.support.command import COMMAND, localllm, on_a_full_disk
from tests.support.onnx_models import Runner


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("tiny"), "llama-tied-linear")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    path = checkpoint.with_name("tiny-F32.gguf")
    gguf.write(gguf.plan(checkpoint, "f32", "tiny"), path)
    return path


@pytest.mark.slow
def test_the_command_prints_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    target = tmp_path / "out"
    done = localllm("convert", str(checkpoint), "--to", "onnx", "--quant", "Q8", "-o", str(target))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{target}\n", "")
    copied = ("tokenizer.json", "config.json", "chat_template.jinja")
    made = {"model.onnx", "model.onnx.data", "tokenizer_config.json", "genai_config.json"}
    assert {p.name for p in target.iterdir()} == {*copied, *made} < beside.NAMES
    for name in copied:
        assert (target / name).read_bytes() == (checkpoint / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_names_without_one_given(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    words = [([str(checkpoint)], f"{checkpoint.name}-f32-onnx"), ([str(model)], "tiny-F32-onnx"),
             ([str(model), "--quant", "q4"], "tiny-q4-onnx")]  # fmt: skip
    for source, name in words:
        done = subprocess.run(
            [*COMMAND, "convert", *source, "--to", "onnx"], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(export.__file__).parents[3])},
        )  # fmt: skip
        assert done.stdout == f"{name}\n"


def test_the_settings_of_onnxruntime_genai(model: Path, tmp_path: Path) -> None:
    export.write(export.plan(model), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    decoder = settings["model"]["decoder"]
    session = Runner(tmp_path / "out").session
    names = [decoder["inputs"][n] for n in ("input_ids", "attention_mask")]
    parts = [decoder["inputs"][f"past_{part}_names"] for part in ("key", "value")]
    assert [i.name for i in session.get_inputs()] == names + [p % layer for layer in (0, 1) for p in parts]
    parts = [decoder["outputs"][f"present_{part}_names"] for part in ("key", "value")]
    assert [o.name for o in session.get_outputs()] == ["logits"] + [p % layer for layer in (0, 1) for p in parts]
    assert decoder["num_hidden_layers"] == 2 and decoder["head_size"] == 32
    assert (settings["model"]["bos_token_id"], settings["model"]["eos_token_id"]) == (261, 260)


def test_tied_embeddings_are_stored_once(checkpoint: Path, model: Path) -> None:
    both = 288 * 64
    for plan, size in ((export.plan(checkpoint, "f32"), 4 * both), (export.plan(model, "q8"), both)):
        regions = [v for v in plan.graph.graph.initializers.values() if v.const_value.nbytes == size]
        assert len({v.const_value.offset for v in regions}) == 1


@pytest.mark.parametrize(("quant", "kind"), [("q4", "Q4_0"), ("q8", "Q8_0")])
def test_quantized_as_a_gguf_of_the_type(quant: str, kind: str, checkpoint: Path, tmp_path: Path) -> None:
    """And the same from whichever source."""
    from gguf import GGMLQuantizationType, quants

    plan = export.plan(checkpoint, quant, export.EXACT)
    export.write(plan, tmp_path / "out")
    tensors = checkpoints.tensors("llama-tied-linear")
    for name, values in tensors.items():
        if values.ndim > 1:
            wider = "Q8_0" if "embed" in name else kind
            rows = quants.quantize(values, GGMLQuantizationType[wider])
            tensors[name] = quants.dequantize(rows, GGMLQuantizationType[wider]).reshape(values.shape)
    exact = checkpoints.write(tmp_path / "exact", "llama-tied-linear")
    checkpoints.write_safetensors(exact / "model.safetensors", tensors)
    export.write(export.plan(exact), tmp_path / "f32")
    tokens = checkpoints.case("llama-tied-linear")["tokens"]
    found, expected = Runner(tmp_path / "out").run(tokens), Runner(tmp_path / "f32").run(tokens)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(found - checkpoints.expected("llama-tied-linear")).max() > 1e-3


def test_force_replaces_an_export_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    export.write(export.plan(checkpoint), target)
    with pytest.raises(UsageError, match="out exists") as caught:
        export.write(export.plan(checkpoint), target)
    assert caught.value.hint == "--force replaces it"
    (target / "special_tokens_map.json").write_text("{}")
    export.write(export.plan(checkpoint, "q8"), target, force=True)
    assert not (target / "special_tokens_map.json").exists()
    for name in ("thesis.txt", "model.onnx.data.bak"):
        (target / name).write_text("mine")
        before = sorted(p.name for p in target.iterdir())
        with pytest.raises(UsageError, match=f"more than an export writes \\({name}\\)"):
            export.write(export.plan(checkpoint), target, force=True)
        assert sorted(p.name for p in target.iterdir()) == before
        (target / name).unlink()
    (target / "config.json").unlink()
    (target / "config.json").mkdir()
    with pytest.raises(UsageError, match="more than an export writes"):
        export.write(export.plan(checkpoint), target, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_places_that_are_none(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for target, message in (("file", "is not a folder"), ("link", "is not a folder"), ("no/out", "there is no folder")):
        done = localllm("convert", str(checkpoint), "--to", "onnx", "--force", "-o", str(tmp_path / target))
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_failed_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    huge = checkpoints.tensors("llama-tied-linear")
    huge["model.layers.1.mlp.down_proj.weight"][3, 3] = 1e6
    folder = checkpoints.write(tmp_path / "huge", "llama-tied-linear")
    checkpoints.write_safetensors(folder / "model.safetensors", huge)
    with pytest.raises(BadModelFile, match="too large for float16"):
        export.write(export.plan(folder, "f16"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["huge"]


@pytest.mark.slow
def test_a_disk_that_is_full(checkpoint: Path, tmp_path: Path) -> None:
    """The error names the folder that was wanted, not the one beside it."""
    done = on_a_full_disk("convert", str(checkpoint), "--to", "onnx", "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (1, f"localllm: File too large: {tmp_path}/out\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_it_leaves_no_folder_and_no_litter(checkpoint: Path, tmp_path: Path) -> None:
    words = [*COMMAND, "convert", str(checkpoint), "--to", "onnx", "-o", str(tmp_path / "out")]
    started = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    whole = time.monotonic() - started
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    for part in (0.5, 0.8, 0.9, 0.95):
        process = subprocess.Popen([*words, "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(part * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
            Runner(tmp_path / "out").run([1, 2, 3])
    subprocess.run([*words, "--force"], check=True, capture_output=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onnx", "--quant", "q5"], "the types are auto, q4, q8, f16, f32"),
        (["--to", "onnx", "--dtype", "f16"], "are for --to gguf"),
        (["--to", "onnx", "--lora"], "are for --to gguf"),
        (["--to", "onnx", "--accuracy", "3"], "it is 0 or 4"),
        (["--to", "gguf", "--quant", "q4"], "are for --to onnx"),
        (["--to", "tflite"], "the formats are gguf and onnx"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str, checkpoint: Path) -> None:
    done = localllm("convert", str(checkpoint), *words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_nothing_is_quantized_twice(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model-Q8_0.gguf"
    gguf.write(gguf.plan(checkpoint, "q8_0"), path)
    with pytest.raises(UsageError, match=r"is quantized already \(Q8_0\), and --quant q4") as caught:
        export.plan(path, "q4")
    assert "carried over" in caught.value.hint
    export.write(export.plan(path, "q8", export.EXACT), tmp_path / "q8")
    export.write(export.plan(path, "f32"), tmp_path / "f32")
    tokens = checkpoints.case("llama-tied-linear")["tokens"]
    found, expected = Runner(tmp_path / "q8").run(tokens), Runner(tmp_path / "f32").run(tokens)
    assert np.abs(found - expected).max() <= 1e-4


def broken(model: Path, target: Path, old: bytes, new: bytes) -> Path:
    data = model.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    target.write_bytes(data.replace(old, new))
    return target


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight", "lacks the tensor 'blk.1.ffn_up.weight'"),
        (b"blk.1.ffn_norm.weight", b"blk.9.ffn_norm.weight", "lacks the tensor 'blk.1.ffn_norm.weight'"),
        (b"llama.rope.scaling.type\x08\0\0\0\x06\0\0\0\0\0\0\0linear", b"llama.rope.scaling.type\x08\0\0\0\x06\0\0\0\0\0\0\0cubist",
         "rope.scaling.type is 'cubist'"),
        (b"llama.attention.head_count\x04\0\0\0\x04", b"llama.attention.head_count\x04\0\0\0\x08", "has the shape"),
        (b"llama.attention.head_count_kv\x04\0\0\0\x02", b"llama.attention.head_count_kv\x04\0\0\0\x03",
         "4 heads cannot share 3"),
        (b"llama.attention.head_count_kv\x04\0\0\0\x02", b"llama.attention.head_count_kv\x04\0\0\0\x00",
         "head_count_kv is 0"),
        (b"llama.embedding_length\x04\0\0\0\x40", b"llama.embedding_length\x04\0\0\0\x20", "has the shape"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenX", "has no vocabulary"),
    ],
)  # fmt: skip
def test_damaged_ggufs_are_one_line(old: bytes, new: bytes, message: str, model: Path, tmp_path: Path) -> None:
    path = broken(model, tmp_path / "model.gguf", old, new)
    with pytest.raises(BadModelFile, match=re.escape(message)) as caught:
        export.plan(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_truncated_one_and_none(model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(model.read_bytes()[:-100])
    for name, message in (("short.gguf", "truncated"), ("none.gguf", "no such file"), (".", "no checkpoint")):
        done = localllm("convert", str(tmp_path / name), "--to", "onnx", "-o", str(tmp_path / "out"))
        assert done.returncode in (1, 3) and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_heads_that_the_attention_does_not_take(tmp_path: Path) -> None:
    """ONNX Runtime opens such a graph, and says so at the first token."""
    config = {**checkpoints.case("llama-tied-linear")["config"], "head_dim": 20}
    with pytest.raises(
        BadModelFile, match="its heads have 20 elements, and ONNX Runtime's attention takes multiples of 8"
    ):
        export.plan(checkpoints.write(tmp_path, "llama-tied-linear", config=config))


def test_types_that_no_block_holds(tmp_path: Path) -> None:
    from tests.support.gguf_files import STRING, U32, pair, tensor
    from tests.support.gguf_files import gguf as content

    numbers: dict[str, Any] = {"block_count": 1, "context_length": 64, "embedding_length": 256,
                               "attention.head_count": 4, "feed_forward_length": 256}  # fmt: skip
    metadata = [pair(f"llama.{key}", U32, value) for key, value in numbers.items()]
    path = tmp_path / "model.gguf"
    rows = [tensor("token_embd.weight", (256, 4), 16, 0)]
    path.write_bytes(content([pair("general.architecture", STRING, "llama"), *metadata], rows, data=4 * 66))
    for quant in ("auto", "q4"):
        with pytest.raises(
            BadModelFile, match="is of the type IQ2_XXS, which ONNX Runtime's blocks cannot hold"
        ) as caught:
            export.plan(path, quant)
        assert "--quant f32" in caught.value.hint
    with pytest.raises(BadModelFile, match="lacks the tensor"):  # it is the others that are missing
        export.plan(path, "f32")


def test_a_model_in_shards(model: Path, tmp_path: Path) -> None:
    from tests.support.gguf_files import split

    (tmp_path / "shards").mkdir()
    shards = split(model, tmp_path / "shards", "tiny", 3)
    export.write(export.plan(shards[0]), tmp_path / "out")
    export.write(export.plan(model), tmp_path / "whole")
    for name in ("model.onnx.data", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
