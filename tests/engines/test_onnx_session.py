"""Loading a model on ONNX Runtime, and a Ctrl-C while that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from localllm.engines.onnx_session import open_session
from localllm.formats.onnx import read_model
from tests.support import tiny_onnx
from tests.support.command import COMMAND

WIDTH, LAYERS = 4096, 24


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A decoder of 200 MB of weights, which are a hole in a file, so that packing them takes a while."""
    path = tiny_onnx.write(tmp_path, "own")
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    size = WIDTH * WIDTH // 2
    start = path.with_name("model.onnx.data").stat().st_size
    shape = (WIDTH, WIDTH // 32, 16)
    graph.initializer.append(_outside("scales", TensorProto.FLOAT, shape[:2], start, WIDTH * WIDTH // 32 * 4))
    start += WIDTH * WIDTH // 32 * 4
    graph.input.append(helper.make_tensor_value_info("past.9.key", TensorProto.FLOAT, [1, WIDTH]))
    last = "past.9.key"
    for layer in range(LAYERS):
        made = f"h{layer}" if layer < LAYERS - 1 else "present.9.key"
        graph.initializer.append(_outside(f"w{layer}", TensorProto.UINT8, shape, start + layer * size, size))
        graph.node.append(
            helper.make_node(
                "MatMulNBits", [last, f"w{layer}", "scales"], [made], domain="com.microsoft", K=WIDTH, N=WIDTH,
                bits=4, block_size=32, accuracy_level=4,
            )
        )  # fmt: skip
        last = made
    graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, WIDTH]))
    os.truncate(path.with_name("model.onnx.data"), start + LAYERS * size)
    path.write_bytes(model.SerializeToString())
    return path


def _outside(name: str, kind: int, shape: tuple[int, ...], offset: int, size: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "model.onnx.data", "offset": offset, "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _wait_until_loading(pid: int | str) -> None:
    """Until a process has mapped the weights: ONNX Runtime does so when it begins to pack them."""
    end = time.monotonic() + 60
    while "model.onnx.data" not in Path(f"/proc/{pid}/maps").read_text() and time.monotonic() < end:
        time.sleep(0.002)


@pytest.mark.slow
def test_ctrl_c_stops_a_load(large: Path) -> None:
    def interrupt() -> None:
        _wait_until_loading("self")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        open_session(read_model(large), None, ["cpu"], 1)
    thread.join()
    reasons, error = [], caught.value.__context__
    while error is not None:
        reasons.append(str(error))
        error = error.__context__
    assert any("canceled" in reason for reason in reasons), "the load itself has ended, and not gone on to its end"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_ctrl_c_during_a_load_is_exit_code_130(large: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "-m", str(large), "hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _wait_until_loading(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err


def test_ctrl_c_during_the_import_is_no_broken_installation(tmp_path: Path) -> None:
    """The package's C++ turns it into an ImportError; this stands in for it, because the moment is hard to hit."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.1)\n"
        "except KeyboardInterrupt as error:\n    raise ImportError('initialization failed') from error\n"
    )
    code = (
        "from localllm.engines.onnx_session import runtime\ntry: runtime()\nexcept KeyboardInterrupt: print('stopped')"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (done.stdout, done.stderr) == ("stopped\n", "")
