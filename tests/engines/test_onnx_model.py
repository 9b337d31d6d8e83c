"""ONNX models step by step compute what the whole graph computes at once, and bad ones are one line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers

from localllm.engines import onnx as engine
from localllm.engines.onnx_folder import read_folder
from localllm.engines.onnx_graph import interface
from localllm.engines.onnx_model import OnnxModel
from localllm.errors import BadModelFile, LocalLLMError, OutOfMemory, UsageError
from localllm.formats.onnx import read_model
from localllm.types import EngineOptions, Sampling
from tests.support import tiny_onnx
from tests.support.tiny_onnx import Layout

LAYOUTS: tuple[Layout, ...] = ("optimum", "genai", "own")
PROMPT = list(np.random.RandomState(3).randint(0, 256, 700))


def opened(path: Path, **options: object) -> OnnxModel:
    return engine.load(read_folder(path), EngineOptions(**{"context": 900, "threads": 1, **options}))[0]


def whole(path: Path, tokens: list[int]) -> np.ndarray:
    """The logits after the last token, by the file as it is, in one run."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.array([tokens], np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(len(tokens))[None]}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            kind = np.float16 if "float16" in value.type else np.float32
            feed[value.name] = np.zeros((1, tiny_onnx.KV_HEADS, 0, tiny_onnx.HEAD), kind)
    found = session.run(["logits"], {v.name: feed[v.name] for v in session.get_inputs()})[0]
    return np.asarray(found[0, -1], np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("positions", [False, True])
def test_chunks_and_steps_equal_the_whole(tmp_path: Path, layout: Layout, positions: bool) -> None:
    path = tiny_onnx.write(tmp_path, layout, positions=positions)
    model = opened(path)
    assert model.prefill(PROMPT) == 0
    np.testing.assert_allclose(model.logits(), whole(path, PROMPT), atol=2e-4)
    more = [65, 66, 67]
    for token in more:
        model.feed(token)
    np.testing.assert_allclose(model.logits(), whole(path, PROMPT + more), atol=2e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_evaluated_is_reused_and_what_differs_is_not(tmp_path: Path, layout: Layout) -> None:
    path = tiny_onnx.write(tmp_path, layout)
    model = opened(path)
    model.prefill(PROMPT)
    other = [*PROMPT[:300], *PROMPT[:50]]
    assert model.prefill(other) == 300
    np.testing.assert_allclose(model.logits(), whole(path, other), atol=2e-4)
    assert model.prefill(other) == len(other) - 1
    model.clear()
    assert model.prefill(PROMPT[5:20]) == 0
    np.testing.assert_allclose(model.logits(), whole(path, PROMPT[5:20]), atol=2e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision(tmp_path: Path, layout: Layout) -> None:
    path = tiny_onnx.write(tmp_path, layout, kind="f16")
    model = opened(path)
    model.prefill(PROMPT[:40])
    assert model.logits().dtype == np.float32
    np.testing.assert_allclose(model.logits(), whole(path, PROMPT[:40]), atol=2e-2)


def test_weights_inside_and_beside_are_the_same_model(tmp_path: Path) -> None:
    found = []
    for data in (False, True):
        folder = tmp_path / str(data)
        model = opened(tiny_onnx.write(folder, "own", data=data))
        model.prefill(PROMPT[:9])
        found.append(model.logits().copy())
        model.close()
    assert (found[0] == found[1]).all()


def without_caches(folder: Path) -> Path:
    path = tiny_onnx.write(folder, "optimum", positions=True)
    model = onnx.load(path)
    for kept, word in ((model.graph.input, "past"), (model.graph.output, "present")):
        for value in [v for v in kept if v.name.startswith(word)]:
            kept.remove(value)
    for node in model.graph.node:
        if node.op_type == "Concat":
            node.op_type, node.input[:] = "Identity", [node.input[1]]
            node.ClearField("attribute")
    onnx.save(model, path)
    return path


def test_a_graph_without_a_cache_runs(tmp_path: Path) -> None:
    path = without_caches(tmp_path)
    ours = opened(path)
    assert not ours._interface.caches
    for tokens in (PROMPT[:20], PROMPT[:22]):
        ours.prefill(tokens)
        np.testing.assert_allclose(ours.logits(), whole(path, tokens), atol=2e-4)
    ours.feed(70)
    np.testing.assert_allclose(ours.logits(), whole(path, [*PROMPT[:22], 70]), atol=2e-4)


def test_a_graph_without_a_cache_takes_a_prompt_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, steps = without_caches(tmp_path), list[int]()
    ours = opened(path)
    evaluate = ours._evaluate
    monkeypatch.setattr(ours, "_evaluate", lambda tokens: (steps.append(len(tokens)), evaluate(tokens)))
    ours.prefill(PROMPT)
    np.testing.assert_allclose(ours.logits(), whole(path, PROMPT), atol=2e-4)
    assert steps == [len(PROMPT)]


def in_two_branches(path: Path) -> Path:
    """The model with `use_cache_branch`: one branch goes on from the caches, the other does not look at them."""
    model = onnx.load(path)
    graph = model.graph
    outputs = [value.name for value in graph.output]
    pasts = [value.name for value in graph.input if value.name.startswith("past")]
    empty = np.zeros((1, tiny_onnx.KV_HEADS, 0, tiny_onnx.HEAD), np.float32)
    graph.initializer.extend(onnx.numpy_helper.from_array(empty, f"no {name}") for name in pasts)
    branches = []
    for branch in ("then", "else"):
        names = {name: f"no {name}" for name in pasts} if branch == "else" else {}
        names |= {name: f"{branch} {name}" for node in graph.node for name in node.output}
        made = onnx.GraphProto(name=branch, node=graph.node, output=graph.output)
        for node in made.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names[name] for name in node.output]
        for value in made.output:
            value.name = names[value.name]
        branches.append(made)
    del graph.node[:]
    node = onnx.helper.make_node("If", ["flag"], outputs, then_branch=branches[0], else_branch=branches[1])
    graph.node.extend([onnx.helper.make_node("Squeeze", ["use_cache_branch"], ["flag"]), node])
    graph.input.append(onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1]))
    merged = path.with_name("decoder_model_merged.onnx")
    onnx.save(model, merged)
    path.unlink()
    return merged


def test_a_graph_with_a_branch_for_prompts_and_one_for_tokens(tmp_path: Path) -> None:
    plain = tiny_onnx.write(tmp_path / "plain", "optimum", positions=True)
    merged = in_two_branches(tiny_onnx.write(tmp_path / "merged", "optimum", positions=True))
    assert read_folder(tmp_path / "merged").model == merged
    ours = opened(tmp_path / "merged")
    for tokens in (PROMPT[:300], PROMPT[:310], [*PROMPT[:305], 70, 71], PROMPT[5:30]):
        ours.prefill(tokens)
        np.testing.assert_allclose(ours.logits(), whole(plain, tokens), atol=2e-4)
        ours.feed(72)
        np.testing.assert_allclose(ours.logits(), whole(plain, [*tokens, 72]), atol=2e-4)


def test_logits_are_computed_for_one_position(tmp_path: Path) -> None:
    model = opened(tiny_onnx.write(tmp_path, "genai"))
    model.prefill(PROMPT[:30])
    assert model._running._rows.shape == (1, 1, tiny_onnx.VOCABULARY)


def test_dry_and_bias_reach_the_sampler(tmp_path: Path) -> None:
    model = opened(tiny_onnx.write(tmp_path, "own"))
    model.prefill(PROMPT[:10])
    with model.sampler(
        Sampling(temperature=0, logit_bias=("3=100",), dry_multiplier=1.0), ignore_eos=True, history=[]
    ) as draw:
        assert draw() == 3
    with (
        pytest.raises(UsageError, match="the vocabulary ends at"),
        model.sampler(Sampling(logit_bias=("9999=1",)), ignore_eos=False, history=[]),
    ):
        pass


def test_an_interrupt_ends_a_long_prompt(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "optimum")
    model = opened(path)
    model.open_context()
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), model.interruptible():
        timer.start()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            model.clear()
            model.prefill(PROMPT)
    timer.join()
    assert signal.getsignal(signal.SIGINT) is before
    model.prefill(PROMPT[:30])
    np.testing.assert_allclose(model.logits(), whole(path, PROMPT[:30]), atol=2e-4)


# Tokens


def test_bytes_of_tokens(tmp_path: Path) -> None:
    model = opened(tiny_onnx.write(tmp_path, "own"))
    text = "Grüße 🙂\n\ttabs"
    tokens = model.tokenize(text + "<|im_end|>", begin=True)
    assert b"".join(model.piece(t) for t in tokens).decode() == text
    assert b"".join(model.spelled(t) for t in tokens).decode() == text + "<|im_end|>"
    assert len(model.tokenize("<|im_end|>", begin=False, special=False)) == len("<|im_end|>")
    assert model.is_special(tokens[-1]) and model.is_end(tokens[-1]) and not model.is_end(tokens[0])
    assert (model.begin_text, model.end_text) == ("<|im_start|>", "<|im_end|>")
    assert model.tokenize("\ud800", begin=False)  # a lone surrogate


def test_a_tokenizer_that_cuts_and_pads_is_not_believed(tmp_path: Path) -> None:
    """As a tokenizer is saved that was trained with: a long prompt must not lose its end, a short one gets no noise."""
    path = tiny_onnx.write(tmp_path, "own")
    trained = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    trained.enable_truncation(8)
    trained.enable_padding(length=8)
    trained.save(str(tmp_path / "tokenizer.json"))
    model = opened(path)
    assert [len(model.tokenize("x" * n, begin=False)) for n in (3, 20)] == [3, 20]


# What cannot run


def broken(folder: Path, how: str) -> Path:
    path = tiny_onnx.write(folder, "own", opset=9999 if how == "opset" else 17)
    data = path.with_name("model.onnx.data")
    if how == "no data":
        data.unlink()
    elif how == "short data":
        data.write_bytes(data.read_bytes()[:-100])
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(np.random.RandomState(1).bytes(5000))
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "bad tokenizer":
        (folder / "tokenizer.json").write_text('{"model": {"type": "none"}}', encoding="utf-8")
    elif how == "huge tokenizer":
        with (folder / "tokenizer.json").open("r+b") as file:
            file.truncate(1 << 30)
    elif how == "config is a list":
        (folder / "config.json").write_text("[1]", encoding="utf-8")
    elif how in ("shape", "scalar table", "huge vocabulary", "no logits", "masked", "embeds", "encoder"):
        _edit(path, how)
    return path


def _edit(path: Path, how: str) -> None:
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    names = {"no logits": "scores", "encoder": "last_hidden_state"}
    if how == "shape":
        tensor = next(t for t in graph.initializer if list(t.dims) == [32, 32])
        tensor.dims[:] = [16, 64]
    elif how == "scalar table":
        node = next(n for n in graph.node if n.op_type == "GroupQueryAttention")
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "table"))
        node.input[7] = "table"
    elif how == "huge vocabulary":
        graph.output[0].type.tensor_type.shape.dim[2].dim_value = 1 << 45
    elif how in names:
        graph.output[0].name = graph.node[-1].output[0] = names[how]
    elif how == "masked":
        kept = [v for v in graph.input if not v.name.startswith("past")]
        del graph.input[:]
        graph.input.extend(kept)
        graph.input.add().CopyFrom(kept[0])
        graph.input[-1].name = "token_type_ids"
    else:
        graph.input.add().CopyFrom(graph.input[0])
        graph.input[-1].name = "inputs_embeds"
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no data", "model.onnx.data, which holds data of model.onnx, is missing"),
        ("short data", "not a sound ONNX file: the tensor"),
        ("truncated", "not a sound ONNX file"),
        ("empty", "it is empty"),
        ("noise", "not a sound ONNX file"),
        ("opset", "newer than this ONNX Runtime: ONNX Runtime .*Opset 9999 is"),
        ("huge vocabulary", "its logits are of 35,184,372,088,832 tokens"),
        ("shape", "cannot be loaded|could not evaluate"),
        ("scalar table", "its table 'table' of rotary embeddings has not two dimensions"),
        ("no tokenizer", "has no tokenizer.json"),
        ("bad tokenizer", "is no tokenizer"),
        ("huge tokenizer", "more than any tokenizer"),
        ("config is a list", "holds no JSON object"),
        ("no logits", "is no decoder of text"),
        ("encoder", "is an encoder"),
        ("masked", "is a masked language model"),
        ("embeds", "one part of a model in several"),
    ],
)
def test_what_cannot_run_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, message: str) -> None:
    path = broken(tmp_path, how)
    with pytest.raises(LocalLLMError, match=message) as caught:
        opened(path).prefill([1, 2, 3])
    assert "\n" not in str(caught.value) and caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_folders_and_files(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "optimum")
    assert read_folder(tmp_path).model == path == read_folder(path).model
    assert read_folder(path).tokenizer == tmp_path / "tokenizer.json"
    shutil.copy(path, path.with_name("model_q4.onnx"))
    assert read_folder(tmp_path).model == path
    assert read_folder(path.with_name("model_q4.onnx")).model.name == "model_q4.onnx"
    path.unlink()
    assert read_folder(tmp_path).model.name == "model_q4.onnx"
    shutil.copy(tmp_path / "onnx" / "model_q4.onnx", tmp_path / "onnx" / "model_fp16.onnx")
    with pytest.raises(BadModelFile, match="with 2 .onnx files"):
        read_folder(tmp_path)


def test_a_folder_of_genai_names_its_model(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "genai", name="decoder.onnx")
    config = json.loads((tmp_path / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"]["filename"] = "decoder.onnx"
    (tmp_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    tiny_onnx.write(tmp_path, "genai", name="other.onnx")
    (tmp_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    folder = read_folder(tmp_path)
    assert folder.model == path and folder.trained == tiny_onnx.CONTEXT
    assert set(folder.ends) == {tiny_onnx.VOCABULARY - 1, tiny_onnx.VOCABULARY - 3}
    config["model"]["decoder"]["filename"] = "../other/decoder.onnx"
    (tmp_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BadModelFile, match="with 2 .onnx files"):
        read_folder(tmp_path)


def test_a_context_beyond_the_tables_is_refused(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    with pytest.raises(UsageError, match=f"end at {tiny_onnx.CONTEXT}"):
        opened(path, context=tiny_onnx.CONTEXT + 1)


def test_what_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = read_model(tiny_onnx.write(tmp_path, "own"))
    face = interface(model, {}, {})
    engine._require_memory(model, face, 1024)
    with pytest.raises(OutOfMemory, match="needs .* MiB for a context of 1073741824; .* are free") as caught:
        engine._require_memory(model, face, 1 << 30)
    assert re.fullmatch(r"--context \d+ would fit", caught.value.hint)


def test_options_that_an_onnx_model_has_not(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    _, notices = engine.load(read_folder(path), EngineOptions(context=64, cache_type_k="q8_0"))
    assert notices == ("--cache-type-k: not for ONNX models, whose graph decides that",)
    with pytest.raises(UsageError, match="--lora is for GGUF"):
        opened(path, lora=("x",))
    with pytest.raises(UsageError, match="there is no such provider"):
        opened(path, provider="abacus")
