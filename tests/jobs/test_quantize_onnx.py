"""Quantized ONNX models compute nearly the same, appear whole, and say what they cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from localllm.errors import BadModelFile, OutOfMemory
from localllm.jobs import quantize_onnx
from localllm.jobs.quantize_onnx import data_of, quantize

INPUTS, INSIDE, OUTPUTS = 96, 128, 64


def matrix(rows: int, columns: int, name: str, dtype: type = np.float32) -> TensorProto:
    values = np.random.RandomState(len(name)).standard_normal((rows, columns)) / np.sqrt(rows)
    return numpy_helper.from_array(values.astype(dtype), name)


def write(path: Path, *, branch: bool = False) -> Path:
    """x @ first @ second; with `branch` the second product is inside of an If."""
    first, second = matrix(INPUTS, INSIDE, "first"), matrix(INSIDE, OUTPUTS, "second matrix")
    nodes = [helper.make_node("MatMul", ["x", "first"], ["middle"], "/first")]
    product = helper.make_node("MatMul", ["middle", "second matrix"], ["y"], "/second")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, OUTPUTS])
    if branch:
        taken = helper.make_graph([product], "taken", [], [out], [second])
        other = helper.make_node("Slice", ["middle", "zero", "outputs", "one"], ["y"])
        ends = [numpy_helper.from_array(np.array([n], np.int64), name) for name, n in _SLICE.items()]
        left = helper.make_graph([other], "left", [], [out], ends)
        nodes.append(helper.make_node("If", ["flag"], ["y"], "/if", then_branch=taken, else_branch=left))
    else:
        nodes.append(product)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, INPUTS])]
    inputs += [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])] if branch else []
    graph = helper.make_graph(nodes, "g", inputs, [out], [first] if branch else [first, second])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


_SLICE = {"zero": 0, "outputs": OUTPUTS, "one": 1}


def run(path: Path, x: np.ndarray, **more: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x, **more})[0])


def make(path: Path, target: Path, kind: str, **more: int) -> quantize_onnx.Quantized:
    return quantize(path, path.stat().st_size, target, kind, lambda done, total: None, **more)


@pytest.mark.parametrize(("kind", "error"), [("q4", 0.12), ("q8", 0.015)])
@pytest.mark.parametrize("branch", [False, True])
def test_it_computes_nearly_the_same(tmp_path: Path, kind: str, error: float, branch: bool) -> None:
    path = write(tmp_path / "model.onnx", branch=branch)
    target = tmp_path / f"model_{kind}.onnx"
    done = make(path, target, kind)
    assert done.matrices == 2
    assert done.after == target.stat().st_size < done.before == path.stat().st_size
    x = np.random.RandomState(1).standard_normal((5, INPUTS)).astype(np.float32)
    more = {"flag": np.array(True)} if branch else {}
    wanted, found = run(path, x, **more), run(target, x, **more)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < error
    assert np.abs(found - wanted).max() > 0  # or nothing was quantized


def test_products_with_a_transpose_are_quantized_too(tmp_path: Path) -> None:
    weight = matrix(OUTPUTS, INPUTS, "tied")
    nodes = [
        helper.make_node("FusedMatMul", ["x", "tied"], ["middle"], "/head", domain="com.microsoft", transB=1),
        helper.make_node("Gather", ["tied", "ids"], ["row"], "/embed"),
        helper.make_node("Concat", ["middle", "row"], ["y"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, INPUTS])]
    inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [1]))
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, OUTPUTS + INPUTS])]
    graph = helper.make_graph(nodes, "g", inputs, out, [weight])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path, target = tmp_path / "model.onnx", tmp_path / "q.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    assert make(path, target, "q8").matrices == 1
    x = np.random.RandomState(1).standard_normal((1, INPUTS)).astype(np.float32)
    wanted, found = (run(p, x, ids=np.array([3])) for p in (path, target))
    assert (wanted[:, OUTPUTS:] == found[:, OUTPUTS:]).all()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.015


def test_what_is_too_large_for_one_file_has_its_data_beside_it(tmp_path: Path) -> None:
    path, one, two = write(tmp_path / "model.onnx"), tmp_path / "one.onnx", tmp_path / "two.onnx"
    make(path, one, "q4")
    done = make(path, two, "q4", largest=1000)
    assert done.after == two.stat().st_size + data_of(two).stat().st_size
    assert two.stat().st_size < one.stat().st_size < data_of(two).stat().st_size + two.stat().st_size
    x = np.ones((1, INPUTS), np.float32)
    assert (run(one, x) == run(two, x)).all()
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "one.onnx", "two.onnx", "two.onnx_data"}


def test_the_data_alone_decide_whether_they_go_beside_it(tmp_path: Path) -> None:
    """Of what is beyond 2 GiB protobuf cannot tell a size; what is not in tensors is not counted."""
    path, target = write(tmp_path / "model.onnx"), tmp_path / "q.onnx"
    make(path, target, "q4")
    data = sum(len(tensor.raw_data) for tensor in onnx.load(target).graph.initializer)
    for largest, beside in ((data, False), (data - 1, True)):
        make(path, target, "q4", largest=largest)
        assert data_of(target).exists() == beside


def test_progress_counts_the_products(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    path = write(tmp_path / "model.onnx", branch=True)
    quantize(path, 1, tmp_path / "q.onnx", "q8", lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2)]


def test_quantizing_twice_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "q.onnx"
    make(write(tmp_path / "model.onnx"), target, "q4")
    with pytest.raises(BadModelFile, match="no matrices that could be quantized"):
        make(target, tmp_path / "again.onnx", "q4")
    assert not (tmp_path / "again.onnx").exists()


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadModelFile, match="cannot be read"):
        make(path, tmp_path / "q.onnx", "q4")


def outside(path: Path, location: str) -> Path:
    """The same model with its matrices in a file, which its tensors then say is somewhere else."""
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=64)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../weights", "link", "hard"])
def test_data_that_lead_out_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "model").mkdir()
    path = outside(write(tmp_path / "model" / "model.onnx"), location)
    data = path.with_name("weights").rename(tmp_path / "weights")
    path.with_name("link").symlink_to(data)
    os.link(data, path.with_name("hard"))
    for read in (lambda: quantize_onnx.size_of(path), lambda: make(path, tmp_path / "q.onnx", "q4")):
        with pytest.raises(BadModelFile, match="takes data from"):
            read()
    assert not (tmp_path / "q.onnx").exists()


def test_data_beside_a_model_are_read(tmp_path: Path) -> None:
    inside, beside = write(tmp_path / "inside.onnx"), outside(write(tmp_path / "beside.onnx"), "weights")
    one, two = (path.with_name(f"q-{path.name}") for path in (inside, beside))
    make(inside, one, "q4")
    make(beside, two, "q4")
    assert one.read_bytes() == two.read_bytes()


def test_a_shape_that_its_data_do_not_fill_is_refused(tmp_path: Path) -> None:
    """The quantizer itself would read on, and write numbers that are none of the model's."""
    path = write(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 1 << 40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadModelFile, match="the tensor 'first' has"):
        quantize_onnx.size_of(path)


def test_matrices_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", branch=True)
    model = onnx.load(path)
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[3, 4] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "first"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadModelFile, match="the matrix 'first' has elements that are no numbers"):
        make(path, tmp_path / "q.onnx", "q8")


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx")
    with pytest.raises(OutOfMemory, match="takes twice that"):
        quantize(path, 1 << 60, tmp_path / "q.onnx", "q4", lambda done, total: None)


def test_importing_the_quantizer_sets_up_no_logging(tmp_path: Path) -> None:
    code = (
        "import logging; from localllm.jobs.quantize_onnx import _quantizers; _quantizers();"
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", str(30)] and not done.stderr


@pytest.mark.slow
def test_killed_at_any_time_the_target_is_absent_or_whole(tmp_path: Path) -> None:
    path, target = write(tmp_path / "model.onnx"), tmp_path / "q.onnx"
    code = (
        "import sys; from pathlib import Path; from localllm.jobs.quantize_onnx import quantize\n"
        "print('ready', flush=True)\n"
        "while True: quantize(Path(sys.argv[1]), 1, Path(sys.argv[2]), 'q4', lambda d, t: None, largest=1000)"
    )
    x, whole = np.ones((1, INPUTS), np.float32), 0
    for delay in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, str(path), str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        end = time.monotonic() + 30
        while not target.exists() and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(0.003 * delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if target.exists():
            assert np.isfinite(run(target, x)).all()
            whole += 1
            target.unlink()
    assert whole
