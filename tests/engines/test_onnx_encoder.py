"""Encoders as others export them: what their graphs take and give is read, never assumed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from localllm.convert import gguf
from localllm.engines import open_embedder
from localllm.engines.onnx_encoder import pool
from localllm.errors import BadModelFile, ModelNotFound
from localllm.hub.reference import parse
from localllm.hub.store import find
from localllm.jobs.embed import embed
from localllm.types import EngineOptions
from tests.support import checkpoints, onnx_encoders, tiny_onnx
from tests.support.command import COMMAND

OPTIONS = EngineOptions(threads=1)
ALL = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def vectors(ids: list[int], *, placed: bool = False) -> np.ndarray:
    found = onnx_encoders.table()[ids]
    return found + 100 * np.arange(len(ids))[:, None] if placed else found


@pytest.mark.parametrize("inputs", [ALL[:1], ALL[:2], ALL[:3], ALL, ("input_ids", "position_ids")])
@pytest.mark.parametrize("integers", [TensorProto.INT64, TensorProto.INT32])
def test_every_set_of_inputs(inputs: tuple[str, ...], integers: int, tmp_path: Path) -> None:
    onnx_encoders.write(onnx_encoders.beside(tmp_path) / "model.onnx", inputs, "last_hidden_state", integers=integers)
    with closing(open_embedder(tmp_path, OPTIONS)) as embedder:
        texts = ["the cat sat", "a", "in the house of the"]
        tokens = embedder.tokenize_all(texts)
        found = embedder.encode(tokens)
    for ids, vector in zip(tokens, found, strict=True):
        assert np.allclose(vector, vectors(ids, placed="position_ids" in inputs).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx", "onnx/model_quantized.onnx"])
def test_the_layouts_people_have(place: str, tmp_path: Path) -> None:
    onnx_encoders.beside(tmp_path, **{"1_Pooling/config": {"pooling_mode_cls_token": True}})
    path = onnx_encoders.write(tmp_path / place, ALL[:2], "token_embeddings")
    for named in (tmp_path, path):
        with closing(open_embedder(named, OPTIONS)) as embedder:
            (ids,) = embedder.tokenize_all(["the cat"])
            assert np.allclose(embedder.encode([ids])[0], vectors(ids)[0], atol=1e-6) and not embedder.notices


def test_a_file_that_is_named_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer lies in the folder above, and the name of `.` is not `onnx`."""
    onnx_encoders.write(onnx_encoders.beside(tmp_path) / "onnx" / "model.onnx", ALL[:2], "last_hidden_state")
    monkeypatch.chdir(tmp_path / "onnx")
    found = find(parse("model.onnx"))
    assert found is not None and (found.name, found.folder) == ("model.onnx", tmp_path)
    with closing(open_embedder(Path("model.onnx"), OPTIONS)) as embedder:
        assert embedder.notices == (f"{tmp_path.name} notes no pooling: the mean is taken (--pooling)",)


def test_options_that_a_graph_decides(tmp_path: Path) -> None:
    onnx_encoders.write(onnx_encoders.beside(tmp_path) / "model.onnx", ALL[:2], "last_hidden_state")
    options = EngineOptions(threads=1, flash_attention="on", mmap=False, cache_type_k="q8_0")
    with closing(open_embedder(tmp_path, options, "mean")) as embedder:
        assert embedder.notices == ("--flash-attention, --no-mmap: not for ONNX models, whose graph decides that",)


def test_vectors_that_are_pooled_already(tmp_path: Path) -> None:
    """Steps that are not known here are inside of the graph then."""
    steps = [{"type": f"sentence_transformers.models.{name}", "path": name} for name in ("Transformer", "Dense")]
    onnx_encoders.write(
        onnx_encoders.beside(tmp_path, modules=steps) / "model.onnx", ALL[:2], "sentence_embedding", pooled=True
    )
    with closing(open_embedder(tmp_path, OPTIONS)) as embedder:
        (ids,) = embedder.tokenize_all(["the cat"])
        assert np.allclose(embedder.encode([ids])[0], vectors(ids)[0], atol=1e-6) and not embedder.notices
    onnx_encoders.write(tmp_path / "model.onnx", ALL[:2], "token_embeddings")
    with pytest.raises(BadModelFile, match="makes its vectors with Dense besides"):
        open_embedder(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 1 << 30),
        ({"tokenizer_config": {"model_max_length": 1e30}, "config": {"max_position_embeddings": 64}}, 64),
        ({"tokenizer_config": {"model_max_length": 48}, "config": {"max_position_embeddings": 64}}, 48),
        ({"sentence_bert_config": {"max_seq_length": 32}, "config": {"max_position_embeddings": 64}}, 32),
        ({"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": "many"}}, 1 << 30),
    ],
)
def test_the_smallest_limit_counts(files: dict[str, object], limit: int, tmp_path: Path) -> None:
    onnx_encoders.write(onnx_encoders.beside(tmp_path, **files) / "model.onnx", ALL[:2], "last_hidden_state")
    with closing(open_embedder(tmp_path, OPTIONS)) as embedder:
        assert embedder.limit == limit
    with closing(open_embedder(tmp_path, EngineOptions(context=16))) as embedder:
        assert embedder.limit == 16


def test_a_prompt_that_goes_before_every_text(tmp_path: Path) -> None:
    notes = {"prompts": {"query": "Q: ", "all": "A: "}, "default_prompt_name": "all"}
    folder = onnx_encoders.beside(tmp_path, config_sentence_transformers=notes)
    onnx_encoders.write(folder / "model.onnx", ALL[:2], "last_hidden_state")
    with closing(open_embedder(tmp_path, OPTIONS)) as embedder:
        assert embedder.prompts == {"query": "Q: ", "all": "A: ", "": "A: "}


def test_pooling() -> None:
    hidden = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    assert np.allclose(pool(hidden, mask, "mean"), [hidden[0, :2].mean(axis=0), hidden[1].mean(axis=0)])
    assert np.array_equal(pool(hidden, mask, "cls"), hidden[:, 0])
    assert np.array_equal(pool(hidden, mask, "last"), [hidden[0, 1], hidden[1, 2]])
    assert np.array_equal(pool(-hidden, mask, "max"), -hidden[:, 0])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1_Pooling/config": {"pooling_mode_weightedmean_tokens": True}}, "pools in a way that is not known"),
        ({"1_Pooling/config": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "mean, cls"),
        ({"modules": {"not": "a list"}}, "is not what its name says"),
        ({"modules": [{"type": "Pooling", "path": "../../etc"}, 7]}, None),
    ],
)
def test_notes_that_make_no_sense(files: dict[str, object], message: str | None, tmp_path: Path) -> None:
    onnx_encoders.write(onnx_encoders.beside(tmp_path, **files) / "model.onnx", ALL[:2], "last_hidden_state")
    if message is None:
        open_embedder(tmp_path, OPTIONS).close()
    else:
        with pytest.raises(BadModelFile, match=message):
            open_embedder(tmp_path, OPTIONS)


@pytest.mark.parametrize("layout", ["optimum", "genai"])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_a_decoder_that_makes_embeddings(layout: tiny_onnx.Layout, kind: str, tmp_path: Path) -> None:
    """Its caches are empty; what stands behind a shorter text in a batch changes nothing."""
    path = tiny_onnx.write(tmp_path, layout, kind=kind, positions=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    model = onnx.load(path)
    hidden = next(n.input[0] for n in model.graph.node if n.output[0] == model.graph.node[-1].input[0])
    del model.graph.node[-2:]
    model.graph.output[0].name = "last_hidden_state"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = tiny_onnx.WIDTH
    model.graph.node.add(op_type="Identity", input=[hidden], output=["last_hidden_state"])
    path.write_bytes(model.SerializeToString())
    with closing(open_embedder(tmp_path, OPTIONS)) as embedder:
        tokens = embedder.tokenize_all(["a longer text than", "this", "and that"])
        together, alone = embedder.encode(tokens), [embedder.encode([ids])[0] for ids in tokens]
    assert together.shape == (3, tiny_onnx.WIDTH) and np.ptp(together, axis=0).min() > 0
    assert np.allclose(together, alone, atol=1e-5 if kind == "f32" else 2e-2)


def test_caches_that_an_encoder_gives_are_left_alone(tmp_path: Path) -> None:
    path = onnx_encoders.write(onnx_encoders.beside(tmp_path) / "model.onnx", ALL[:2], "last_hidden_state")
    model = onnx.load(path)
    present = onnx.helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, ["batch", "sequence", 8])
    model.graph.output.append(present)
    model.graph.node.add(op_type="Identity", input=["vectors"], output=["present.0.key"])
    path.write_bytes(model.SerializeToString())
    with closing(open_embedder(path, OPTIONS)) as embedder:
        assert embedder.encode(embedder.tokenize_all(["a"])).shape == (1, onnx_encoders.WIDTH)


def test_models_that_are_no_encoders(tmp_path: Path) -> None:
    folder = onnx_encoders.beside(tmp_path)
    onnx_encoders.write(folder / "model.onnx", ("input_ids", "pixel_values"), "last_hidden_state")
    with pytest.raises(BadModelFile, match="no encoder: it wants pixel_values"):
        open_embedder(tmp_path, OPTIONS)
    onnx_encoders.write(folder / "model.onnx", ALL[:2], "last_hidden_state", integers=TensorProto.FLOAT)
    with pytest.raises(BadModelFile, match="not two-dimensional, of whole numbers"):
        open_embedder(tmp_path, OPTIONS)
    path = onnx_encoders.write(folder / "model.onnx", ALL[:2], "last_hidden_state")
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadModelFile, match="does not say how long its vectors are"):
        open_embedder(tmp_path, OPTIONS)
    path.unlink()
    with pytest.raises(BadModelFile, match="a folder with no .onnx files"):
        open_embedder(tmp_path, OPTIONS)
    with pytest.raises(ModelNotFound, match="no such file"):
        open_embedder(tmp_path / "nowhere", OPTIONS)


def test_data_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder = onnx_encoders.beside(tmp_path / "model")
    path = onnx_encoders.write(folder / "model.onnx", ALL[:2], "last_hidden_state")
    (tmp_path / "secret").write_bytes(onnx_encoders.table().tobytes())
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "table")
    onnx.external_data_helper.set_external_data(tensor, "../secret")
    tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadModelFile, match="takes data from '../secret'"):
        open_embedder(folder, OPTIONS)


def test_an_id_beyond_the_embeddings_is_an_error_of_one_line(tmp_path: Path) -> None:
    onnx_encoders.write(onnx_encoders.beside(tmp_path) / "model.onnx", ALL[:2], "last_hidden_state")
    with (
        closing(open_embedder(tmp_path, OPTIONS)) as embedder,
        pytest.raises(Exception, match="could not evaluate") as caught,
    ):
        embedder.encode([[onnx_encoders.VOCABULARY + 5]])
    assert "\n" not in str(caught.value)


def test_lone_surrogates(tmp_path: Path) -> None:
    """Words of a command line may hold them: bytes that are no UTF-8."""
    onnx_encoders.write(onnx_encoders.beside(tmp_path) / "model.onnx", ALL[:2], "last_hidden_state")
    with closing(open_embedder(tmp_path, OPTIONS)) as embedder:
        assert embed(embedder, ["a \udcff b"]).shape == (1, onnx_encoders.WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_ctrl_c_ends_it_at_once(kind: str, tmp_path: Path) -> None:
    from localllm.convert.onnx import export

    folder = checkpoints.write(tmp_path / "bert", "bert")
    path = tmp_path / ("m.gguf" if kind == "gguf" else "m")
    gguf.write(gguf.plan(folder, "f32"), path) if kind == "gguf" else export.write(export.plan(folder), path)
    (tmp_path / "texts").write_text("the house in the woods and the lake\n" * 200_000)
    target = tmp_path / "v.jsonl"
    command = [*COMMAND, "embed", "-m", str(path), "-f", str(tmp_path / "texts"), "-o", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    while not list(tmp_path.glob(".v.jsonl*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors
    assert not list(tmp_path.glob("*v.jsonl*"))
