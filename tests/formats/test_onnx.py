"""ONNX headers: what is read, and what is refused before native code sees it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.onnx import Model, read_model
from localllm.formats.onnx_edit import edited
from localllm.formats.protobuf import encoded, encoded_varint, fields, varint
from tests.support import tiny_onnx


def test_it_says_what_the_onnx_package_says(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    ours, theirs = read_model(path), onnx.load(path, load_external_data=False)
    assert ours.ir_version == theirs.ir_version and ours.producer == "tests"
    assert ours.opsets == {"": 17, "com.microsoft": 1}
    assert [v.name for v in ours.inputs] == [v.name for v in theirs.graph.input]
    assert [(n.operator, n.domain, n.inputs, n.outputs) for n in ours.nodes] == [
        (n.op_type, n.domain, tuple(n.input), tuple(n.output)) for n in theirs.graph.node
    ]
    assert {n: t.shape for n, t in ours.tensors.items()} == {t.name: tuple(t.dims) for t in theirs.graph.initializer}
    ids, past = ours.inputs[0], ours.inputs[2]
    assert (ids.type, ids.shape) == ("i64", ("batch", "sequence"))
    assert (past.type, past.shape) == ("f32", ("batch", 1, "past_sequence", 16))
    attention = next(n for n in ours.nodes if n.operator == "GroupQueryAttention")
    assert attention.attributes == {"num_heads": 2, "kv_num_heads": 1, "do_rotary": 1}
    assert ours.external == (path.with_name("model.onnx.data"),)
    assert ours.total_size == path.stat().st_size + path.with_name("model.onnx.data").stat().st_size


def test_tensors_lie_where_it_says(tmp_path: Path) -> None:
    for data in (False, True):
        path = tiny_onnx.write(tmp_path / str(data), "own", data=data)
        whole = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for tensor in read_model(path).tensors.values():
            assert tensor.file is not None
            found = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.size]
            assert found == whole[tensor.name].tobytes()


def test_parameters_are_counted_once(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    weights = [t for t in onnx.load(path).graph.initializer if t.name.startswith("weight")]
    bias = tiny_onnx.VOCABULARY
    assert read_model(path).parameters == sum(int(np.prod(t.dims)) for t in weights) + bias
    # A matrix in blocks of 4 bits that the embedding looks up as well: its numbers, without scales.
    packed = numpy_helper.from_array(np.zeros((64, 1, 16), np.uint8), "packed")
    scales = numpy_helper.from_array(np.ones((64,), np.float32), "scales")
    node = helper.make_node(
        "MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft", K=32, N=64, bits=4, block_size=32
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", 1, [1, 32])], [value("y", 1, [1, 64])], [packed, scales])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert read_model(path).parameters == 32 * 64


# External data


def outside(folder: Path, location: str, *, inner: bool = False) -> Path:
    """A model that takes a tensor from `location`; with `inner` from inside of a branch."""
    path = folder / "model.onnx"
    tensor = TensorProto(name="t", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    info = helper.make_tensor_value_info("y", 1, [4])
    nodes, constants = [helper.make_node("Identity", ["t"], ["y"])], [tensor]
    inputs = []
    if inner:
        branch = helper.make_graph(nodes, "branch", [], [info], constants)
        nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
        constants, inputs = [], [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "g", inputs, [info], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/hostname", "sub/../../secret", "C:\\secret", "\\\\host\\share\\x", "..\\secret", "", "a\0b"],
)
def test_data_that_lead_out_of_the_folder_are_refused(tmp_path: Path, location: str, inner: bool) -> None:
    (tmp_path / "secret").write_bytes(b"0" * 16)
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(BadModelFile, match="not in its folder"):
        read_model(outside(folder, location, inner=inner))


def test_links_are_refused(tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(b"0" * 16)
    (folder / "symbolic").symlink_to(secret)
    os.link(secret, folder / "hard")
    (folder / "behind").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    for location, reason in (
        ("symbolic", "a symbolic link"), ("hard", "a hard link"), ("behind/secret", "behind a symbolic link"),
        ("pipe", "no regular file"), (".", "not in its folder|no regular file"), ("none", "is missing"),
    ):  # fmt: skip
        with pytest.raises(BadModelFile, match=reason):
            read_model(outside(folder, location))


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    made = tiny_onnx.write(tmp_path / "made", "own")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("model.onnx", "model.onnx.data"):
        made.with_name(name).rename(blobs / f"blob-of-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"blob-of-{name}")
    assert read_model(snapshot / "model.onnx").external == (snapshot / "model.onnx.data",)
    (tmp_path / "elsewhere").mkdir()
    (blobs / "blob-of-model.onnx.data").rename(tmp_path / "elsewhere" / "data")
    (snapshot / "model.onnx.data").unlink()
    (snapshot / "model.onnx.data").symlink_to(tmp_path / "elsewhere" / "data")
    with pytest.raises(BadModelFile, match="a symbolic link"):
        read_model(snapshot / "model.onnx")


def test_data_in_a_folder_below_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights.bin").write_bytes(b"0" * 16)
    assert read_model(outside(tmp_path, "data/weights.bin")).external == (tmp_path / "data" / "weights.bin",)


def test_sizes_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"0" * 16)
    path = outside(tmp_path, "weights")
    for key, value in (("offset", "8"), ("offset", "-4"), ("length", "12"), ("offset", "x"), ("length", "9" * 5000)):
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].external_data.add(key=key, value=value)
        other = tmp_path / "other.onnx"
        other.write_bytes(model.SerializeToString())
        with pytest.raises(BadModelFile, match="not a sound ONNX file"):
            read_model(other)
    for shape in ([5], [-4], [1 << 50], [2] * 65):
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].dims[:] = shape
        other.write_bytes(model.SerializeToString())
        with pytest.raises(BadModelFile, match="not a sound ONNX file"):
            read_model(other)


# Files that are none


def test_no_prefix_of_a_model_is_a_model(tmp_path: Path) -> None:
    whole = tiny_onnx.write(tmp_path, "own").read_bytes()
    path = tmp_path / "cut.onnx"
    # The operators' versions come last: without them, and with anything cut, it is not whole.
    for size in [*range(0, len(whole) - 30, 211), len(whole) - 30]:
        path.write_bytes(whole[:size])
        with pytest.raises(BadModelFile):
            read_model(path)


def test_damage_is_an_error_or_harmless(tmp_path: Path) -> None:
    whole, draw = tiny_onnx.write(tmp_path, "own").read_bytes(), random.Random(5)
    path = tmp_path / "damaged.onnx"
    (tmp_path / "damaged.onnx.data").write_bytes(b"")
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 5)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_model(path)
        except BadModelFile as error:
            assert "\n" not in str(error)


def test_nesting_has_an_end(tmp_path: Path) -> None:
    graph = b""
    for _ in range(40):
        graph = encoded(1, encoded(5, encoded(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(encoded(1, 8) + encoded(7, graph) + encoded(8, encoded(2, 17)))
    with pytest.raises(BadModelFile, match="nested more than 16 deep"):
        read_model(path)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "message"),
    [
        ("MatMul", ["input_ids"], {}, "a node MatMul has 1 inputs"),
        ("Gather", [], {}, "a node Gather has 0 inputs"),
        ("MatMulNBits", ["input_ids"], {}, "a node MatMulNBits has 1 inputs"),
        ("MatMulNBits", ["input_ids", "weight_0"], {"N": "many"}, "text where its sizes belong"),
    ],
)
def test_nodes_that_lack_what_is_read(
    tmp_path: Path, operator: str, inputs: list[str], attributes: dict[str, str], message: str
) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node(operator, inputs, ["more"], **attributes))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadModelFile, match=message):
        read_model(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(BadModelFile, match="cannot be read"):
        read_model(tmp_path)


def test_numbers_survive_writing_and_reading() -> None:
    for value in (0, 1, 127, 128, 300, 2**32, 2**63, 2**64 - 1):
        assert varint(encoded_varint(value), 0, 10**6)[0] == value
    assert [(f.number, f.value) for f in fields(encoded(3, 5), 0, 2)] == [(3, 5)]
    for noise in (b"\xff" * 11, b"\x0a\x05ab", b"\x0b", b"\x00\x00", b"\x80"):
        with pytest.raises(ValueError):
            list(fields(noise, 0, len(noise)))


# Logits of the last position


@pytest.mark.parametrize("layout", ["optimum", "genai", "own"])
def test_a_trimmed_model_gives_the_last_logits(tmp_path: Path, layout: tiny_onnx.Layout) -> None:
    path = tiny_onnx.write(tmp_path, layout)
    made = edited(read_model(path), "logits")
    assert made is not None and made.last_only and made.folder == path.parent
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    ids = np.array([[7, 8, 9, 10]], np.int64)
    empty = np.zeros((1, 1, 0, 16), np.float32)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feed |= {f"past_key_values.{n}.{part}": empty for n in range(2) for part in ("key", "value")}
    found = []
    for source in (str(path), made.data):
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        found.append(session.run(["logits", "present.0.key"], feed))
    (whole, keys), (last, last_keys) = found
    assert last.shape == (1, 1, tiny_onnx.VOCABULARY)
    picked = [n.input[0] for n in onnx.load_from_string(made.data).graph.node if n.name.startswith("localllm/last/")]
    assert len(picked) == 2, "what comes out of the last attention, and what goes past it"
    np.testing.assert_allclose(last[0, 0], whole[0, -1], atol=1e-5)
    assert (keys == last_keys).all()


@pytest.mark.parametrize("operator", ["Softmax", "CumSum", "Identity"])
def test_a_graph_that_mixes_positions_is_left_alone(tmp_path: Path, operator: str) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "scores"
    more = {"Softmax": (["scores"], {"axis": 1}), "CumSum": (["scores", "axis"], {}), "Identity": (["scores"], {})}
    inputs, attributes = more[operator]
    model.graph.node.append(helper.make_node(operator, inputs, ["logits"], **attributes))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "axis"))
    onnx.save(model, path)
    assert (edited(read_model(path), "logits") is not None) == (operator == "Identity")


def test_a_graph_that_goes_in_a_circle_ends(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    model = onnx.load(path)
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Identity", ["a"], ["logits", "a"]))
    path.write_bytes(model.SerializeToString())
    assert edited(read_model(path), "logits") is None


def test_weights_are_counted_once_for_any_number_of_lookups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_onnx.write(tmp_path, "own")
    model = onnx.load(path)
    table = next(node.input[0] for node in model.graph.node if node.op_type == "Gather")
    model.graph.node.extend(helper.make_node("Gather", [table, "input_ids"], [f"row_{n}"]) for n in range(50))
    path.write_bytes(model.SerializeToString())
    counted, weights = [], Model.weights.fget
    monkeypatch.setattr(Model, "weights", property(lambda self: counted.append(1) or weights(self)))
    read_model(path).twice()
    assert len(counted) == 1
