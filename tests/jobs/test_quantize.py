"""Quantization by llama.cpp in a child process: its bytes, its types, and what is left when it is stopped."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from localllm.convert import gguf
from localllm.errors import BadModelFile, EngineError, UsageError
from localllm.formats.gguf import read_header
from localllm.jobs import quantize
from localllm.jobs.imatrix import Imatrix, read_imatrix, write_imatrix
from localllm.jobs.quantize import Choice
from tests.support import checkpoints, real_checkpoints
from tests.support.command import COMMAND, localllm
from tests.support.real_checkpoints import tensor_digest

# What llama-quantize made of the same SmolLM2 in F16 (and with `made_up_imatrix`), by `tensor_digest`.
REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "quantized_tensors.json").read_text())


def made_up_imatrix(model: Path, path: Path) -> Path:
    """An importance matrix that is the same on every machine, and not the same for any two columns."""
    found = Imatrix(datasets=["made up"], chunks=3)
    for tensor in read_header(model).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            draw = np.random.RandomState(zlib.crc32(tensor.name.encode()))
            found.sums[tensor.name] = draw.gamma(0.5, 100.0, (1, tensor.shape[0])).astype(np.float32)
            found.counts[tensor.name] = np.array([1536.0], dtype=np.float32)
    write_imatrix(found, path)
    return path


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    folder = real_checkpoints.smollm2(tmp_path_factory.mktemp("smollm2"), model_path)
    target = folder / "SmolLM2-F16.gguf"
    gguf.write(gguf.plan(folder, "f16"), target)
    return target


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = checkpoints.write(tmp_path / "tiny", "llama-yarn")
    gguf.write(gguf.plan(folder, "f32"), tmp_path / "tiny-F32.gguf")
    return tmp_path / "tiny-F32.gguf"


def make(source: Path, target: Path, kind: str, **choice: Any) -> Path:
    quantize.quantize(source, target, kind, Choice(**choice), lambda done, total: None)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_the_tensors_are_llama_quantizes(name: str, smollm2: Path, tmp_path: Path) -> None:
    kind, _, matrix = name.partition("+")
    chosen = {"imatrix": str(made_up_imatrix(smollm2, tmp_path / "i.gguf"))} if matrix else {}
    target = tmp_path / "q.gguf"
    heard: list[tuple[int, int]] = []
    quantize.quantize(smollm2, target, kind, Choice(**chosen), lambda done, total: heard.append((done, total)))
    assert tensor_digest(target) == REFERENCE[name]
    assert heard == sorted(heard) and heard[-1] == (heard[0][1],) * 2 and len(heard) > 200
    metadata = read_header(target).metadata
    if matrix:
        assert metadata["quantize.imatrix.dataset"] == "made up"
        assert metadata["quantize.imatrix.entries_count"] == 210 and metadata["quantize.imatrix.chunks_count"] == 3
        assert metadata["quantize.imatrix.file"] == chosen["imatrix"][:127]
    else:
        assert not any(key.startswith("quantize.") for key in metadata)


def test_every_type_that_llama_cpp_has_is_known() -> None:
    known = quantize.file_types()
    assert {"F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q2_K", "IQ1_S", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE"} < set(
        known
    )
    assert quantize.find_type("q4_k") == quantize.find_type("Q4_K_M") == "Q4_K_M"
    with pytest.raises(UsageError, match="'Q9' is not a quantization type"):
        quantize.find_type("Q9")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_K_M", "IQ4_NL", "BF16", "F16", "Q5_1"])
def test_the_size_is_known_beforehand(kind: str, tiny: Path, tmp_path: Path) -> None:
    foreseen = quantize.foresee(tiny, kind, Choice())
    made = make(tiny, tmp_path / "q.gguf", kind)
    assert made.stat().st_size == foreseen.size
    assert {t.name: t.type for t in read_header(made).tensors} == foreseen.tensors


def test_types_for_some_tensors(tiny: Path, tmp_path: Path) -> None:
    chosen = Choice(tensors=(r"blk\.0\.ffn_.*=q8_0", "attn_v=f16"))
    quantize.quantize(tiny, tmp_path / "q.gguf", "Q4_0", chosen, lambda done, total: None)
    kinds = {t.name: t.type for t in read_header(tmp_path / "q.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_up.weight"] == "Q4_0" and kinds["blk.1.attn_v.weight"] == "F16"
    for wrong in ("attn_v", "attn_v=", "=q8_0", "attn_v=q99"):
        with pytest.raises(UsageError, match="is not PATTERN=TYPE"):
            quantize.foresee(tiny, "Q4_0", Choice(tensors=(wrong,)))
    with pytest.raises(EngineError, match="could not be quantized"):
        quantize.foresee(tiny, "Q4_0", Choice(tensors=("(((=q8_0",)))


def test_pure_and_keep_output(tiny: Path) -> None:
    mixed, pure = (quantize.foresee(tiny, "Q4_0", Choice(pure=p)).tensors for p in (False, True))
    assert mixed["output.weight"] != "Q4_0" == pure["output.weight"]
    assert quantize.foresee(tiny, "Q4_0", Choice(keep_output=True)).tensors["output.weight"] == "F32"


def test_requantizing_must_be_allowed(tiny: Path, tmp_path: Path) -> None:
    once = make(tiny, tmp_path / "once.gguf", "Q8_0")
    with pytest.raises(BadModelFile, match="is quantized already") as raised:
        make(once, tmp_path / "twice.gguf", "Q4_0")
    assert "--allow-requantize" in raised.value.hint
    assert not (tmp_path / "twice.gguf").exists()
    make(once, tmp_path / "twice.gguf", "Q4_0", requantize=True)


@pytest.mark.slow
def test_some_types_need_an_importance_matrix(tiny: Path, tmp_path: Path, smollm2: Path) -> None:
    with pytest.raises(UsageError, match="IQ2_XXS needs an importance matrix"):
        make(smollm2, tmp_path / "q.gguf", "IQ2_XXS")
    other = made_up_imatrix(smollm2, tmp_path / "other.gguf")
    with pytest.raises(EngineError, match="imatrix size 576 is different from tensor size 64"):
        make(tiny, tmp_path / "q.gguf", "Q4_0", imatrix=str(other))
    assert not list(tmp_path.glob("q.gguf")) and not list(tmp_path.glob(".*.part"))


def test_an_importance_matrix_that_is_none(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="is no importance matrix"):
        make(tiny, tmp_path / "q.gguf", "Q4_0", imatrix=str(tiny))
    whole = made_up_imatrix(tiny, tmp_path / "i.gguf").read_bytes()
    draw = np.random.RandomState(0)
    for _ in range(150):
        data = bytearray(whole)
        if draw.randint(2):
            del data[draw.randint(len(data)) :]
        else:
            data[draw.randint(len(data) if draw.randint(2) else 4000)] = draw.randint(256)
        (tmp_path / "damaged.gguf").write_bytes(data)
        try:
            found = read_imatrix(tmp_path / "damaged.gguf")
        except BadModelFile:
            continue
        assert all(np.isfinite(values).all() for values in found.weights().values())


def test_what_is_written_is_read(tiny: Path, tmp_path: Path) -> None:
    matrix = read_imatrix(made_up_imatrix(tiny, tmp_path / "i.gguf"))
    assert (matrix.datasets, matrix.chunks, matrix.chunk_size) == (["made up"], 3, 512)
    matrix.sums["blk.0.x.weight"] = np.arange(6, dtype=np.float32).reshape(3, 2)
    matrix.counts["blk.0.x.weight"] = np.array([1, 0, 2], dtype=np.float32)
    write_imatrix(matrix, tmp_path / "again.gguf")
    again = read_imatrix(tmp_path / "again.gguf")
    assert all((again.sums[name] == values).all() for name, values in matrix.sums.items())
    assert again.weights()["blk.0.x.weight"].tolist() == [0, 1, 1, 1, 2, 2.5]


def test_hostile_models_are_refused_before_the_native_code(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:-1000])
    for wrong in (tmp_path / "cut.gguf", tmp_path):
        with pytest.raises(BadModelFile):
            make(wrong, tmp_path / "q.gguf", "Q4_0")


# The command


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "quantize", *words], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_command_with_several_types(tiny: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(tiny), "q4_0", "Q8_0", "q4_0", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny-Q4_0.gguf\ntiny-Q8_0.gguf\n", "")
    answer = localllm("run", "-m", str(tmp_path / "tiny-Q4_0.gguf"), "a", "-n", "2", "--ignore-eos")
    assert answer.returncode == 0
    assert run(tmp_path, str(tiny), "Q4_0").returncode == 2
    for words, message in [
        ((str(tiny),), "Missing argument"), ((str(tiny), "Q9"), "is not a quantization type"),
        ((str(tiny), "Q4_0", "Q8_0", "-o", "x.gguf"), "x.gguf is not a folder"),
        ((str(tiny), "Q5_0", "--tensor", "x"), "is not PATTERN=TYPE"),
    ]:  # fmt: skip
        failed = run(tmp_path, *words)
        assert failed.returncode == 2 and message in failed.stderr, failed.stderr


def test_a_checkpoint_is_converted_on_the_way(tiny: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path / "tiny"), "Q8_0", "-q")
    assert (done.returncode, done.stdout) == (0, "tiny-Q8_0.gguf\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny", "tiny-F32.gguf", "tiny-Q8_0.gguf"]


@pytest.mark.slow
def test_sizes_without_doing_it(tiny: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = run(tmp_path, str(tmp_path / "tiny"), "Q4_0", "Q8_0", "--dry-run", "--json")
    rows = json.loads(done.stdout)
    assert [row["type"] for row in rows] == ["Q4_0", "Q8_0"] and rows[0]["size"] < rows[1]["size"]
    table = run(tmp_path, str(tiny), "Q8_0", "--dry-run").stdout
    assert "bits per weight" in table and "Q8_0" in table
    assert sorted(tmp_path.iterdir()) == before


def start(source: Path, target: Path, kind: str, **how: Any) -> subprocess.Popen[bytes]:
    words = [*COMMAND, "quantize", str(source), kind, "-o", str(target)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **how)


def begun(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 20 << 20 for p in folder.glob(".*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle(signal_: int, smollm2: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    process = start(smollm2, target, "Q5_K_M")
    begun(tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal_)
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if signal_ == signal.SIGINT else -signal_), said
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive and gone
    assert list(tmp_path.iterdir()) == [], "neither the target nor what was written of it"


@pytest.mark.slow
def test_the_whole_group_is_killed(smollm2: Path, tmp_path: Path) -> None:
    """Nobody can clean up then; the next run does."""
    target = tmp_path / "q.gguf"
    process = start(smollm2, target, "Q5_K_M")
    begun(tmp_path)
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        each.kill()
    process.communicate(timeout=20)
    assert not target.exists() and len(list(tmp_path.glob(".*.part"))) == 1
    again = start(smollm2, target, "Q8_0")
    assert again.communicate(timeout=60) is not None and again.returncode == 0
    assert list(tmp_path.iterdir()) == [target] and read_header(target).tensors


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1 << 20, 50 << 20])
def test_a_write_that_fails(limit: int, smollm2: Path, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(smollm2, tmp_path / "q.gguf", "Q8_0", preexec_fn=limited)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and said.count(b"\n") == 1, said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk(smollm2: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount namespaces")
    disk = tmp_path / "disk"
    disk.mkdir()
    program = " ".join([*COMMAND, "quantize", str(smollm2), "Q8_0", "-o", f"{disk}/q.gguf"])
    script = f"""
        mount -t tmpfs -o size=100m none {disk}
        {program} && exit 9
        mount -t tmpfs -o size=300m none {disk}
        (while ! ls {disk}/.*.part >/dev/null 2>&1; do sleep 0.01; done
         head -c 290000000 /dev/zero > {disk}/other 2>/dev/null || true) &
        {program} && exit 9
        wait; ls -A {disk}
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-euc", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("localllm: q.gguf needs 138 MiB, and") and "could not be quantized" in second
    assert done.stdout == "other\n"
