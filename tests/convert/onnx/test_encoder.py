"""A BERT checkpoint's ONNX model computes what transformers computed, and its folder holds what embedding needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from localllm.convert import gguf
from localllm.convert.onnx import export
from localllm.errors import BadModelFile, ModelNotFound, UnknownArchitecture, UsageError
from tests.support import checkpoints, masked
from tests.support.lines import lines


def hidden_states(folder: Path, tokens: list[int]) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    ids = np.array([tokens], np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (found,) = session.run(["last_hidden_state"], feed)
    return np.asarray(found[0])


def exported(checkpoint: Path, quant: str = "auto") -> Path:
    target = checkpoint.parent / "model"
    export.write(export.plan(checkpoint, quant), target, force=True)
    return target


@pytest.mark.parametrize(("quant", "tolerance"), [("f32", 1e-3), ("f16", 5e-3), ("q8", 5e-2)])
def test_hidden_states_are_those_of_transformers(quant: str, tolerance: float, tmp_path: Path) -> None:
    folder = exported(checkpoints.write(tmp_path / "bert", "bert"), quant)
    found, expected = hidden_states(folder, checkpoints.case("bert")["tokens"]), checkpoints.expected("bert")
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() < tolerance


def test_padding_changes_nothing(tmp_path: Path) -> None:
    folder = exported(checkpoints.write(tmp_path / "bert", "bert"))
    tokens = checkpoints.case("bert")["tokens"][:10]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    ids = np.array([[*tokens, 7, 7, 7]], np.int64)
    mask = np.array([[1] * 10 + [0] * 3], np.int64)
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    assert np.abs(found[0, :10] - hidden_states(folder, tokens)).max() < 1e-5


def test_a_gguf_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """It lacks what the tokenizer does to a text, and `run`, the way out for decoders, takes no encoder."""
    path = tmp_path / "bert.gguf"
    gguf.write(gguf.plan(checkpoints.write(tmp_path / "checkpoint", "bert"), "f32"), path)
    with pytest.raises(UnknownArchitecture) as caught:
        export.plan(path)
    assert "localllm embed" in caught.value.hint and "localllm run" not in caught.value.hint


def test_names_of_older_files(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "bert", "bert")
    older = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): values
        for name, values in checkpoints.tensors("bert").items()
    }
    checkpoints.write_safetensors(folder / "model.safetensors", older)
    found = hidden_states(exported(folder), checkpoints.case("bert")["tokens"])
    assert np.abs(found - checkpoints.expected("bert")).max() < 1e-3


def test_a_tokenizer_out_of_vocab_txt(tmp_path: Path) -> None:
    folder = masked.write_checkpoint(tmp_path / "checkpoint")
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = sorted(original.get_vocab().items(), key=lambda row: row[1])
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no tokenizer.json and no vocab.txt"):
        export.plan(folder)
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in tokens) + "\n", encoding="utf-8")
    made = Tokenizer.from_file(str(exported(folder) / "tokenizer.json"))
    texts = [*lines()[:100], "one [MASK] two"]
    assert [e.ids for e in made.encode_batch(texts)] == [e.ids for e in original.encode_batch(texts)]


def test_what_sentence_transformers_notes_comes_along_and_is_replaced(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "bert", "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "modules.json").write_text("[]")
    target = exported(folder)
    assert json.loads((target / "1_Pooling" / "config.json").read_text()) == {"pooling_mode_cls_token": True}
    assert exported(folder) == target and (target / "modules.json").exists()
    (target / "1_Pooling" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds more than an export writes \(1_Pooling/mine.txt\)"):
        exported(folder)
    assert (target / "1_Pooling" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings.position_embeddings.weight": None}, "lacks the tensor 'position_embd.weight'"),
        ({"encoder.layer.1.output.dense.bias": (7,)}, "'blk.1.ffn_down.bias' has the shape"),
        ({"embeddings.position_embeddings.weight": (256, 8)}, "'position_embd.weight' has the shape"),
    ],
)
def test_tensors_that_are_missing_or_misshapen(
    change: dict[str, tuple[int, ...] | None], message: str, tmp_path: Path
) -> None:
    folder = checkpoints.write(tmp_path / "bert", "bert")
    tensors = checkpoints.tensors("bert")
    for name, shape in change.items():
        del tensors[name]
        if shape is not None:
            tensors[name] = np.zeros(shape, np.float32)
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(BadModelFile, match=message):
        export.plan(folder)


def test_a_masked_language_model_without_its_whole_head(tmp_path: Path) -> None:
    folder = masked.write_checkpoint(tmp_path / "checkpoint")
    tensors = {n: checkpoints.weights(n, tuple(s)) for n, s in masked.described()["shapes"].items()}
    del tensors["cls.predictions.bias"]
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(BadModelFile, match=r"lacks the tensor 'output.bias'"):
        export.plan(folder)
