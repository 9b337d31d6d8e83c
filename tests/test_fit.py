"""How much memory a model needs, and what is done with what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from localllm.commands.doctor import advice
from localllm.errors import BadModelFile, OutOfMemory
from localllm.fit import (
    DECODE_EFFICIENCY,
    GPU_RESERVE,
    Need,
    Verdict,
    estimate,
    estimate_checkpoint,
    layers_on_gpu,
    require_memory,
    row_bytes,
    tokens_per_second,
    verdict,
)
from localllm.formats.gguf import read_header
from localllm.hardware import Gpu, Memory, gpus, memory, physical_cores
from tests.support.random_models import Model, write

GIB = 1 << 30


MEASURE = """
import re, sys
from pathlib import Path
from localllm import fit, hardware
from localllm.engines import native
from localllm.engines.llama_model import LlamaModel
from localllm.formats.gguf import read_header
from localllm.types import EngineOptions

native.log.verbose = True
header = read_header(Path(sys.argv[1]))
for case in sys.argv[2:]:
    context, types, flash = case.split()
    options = EngineOptions(context=int(context), cache_type_k=types, cache_type_v=types, flash_attention=flash)
    model = LlamaModel(header.path, options, gpu_layers=0, threads=1)
    model.open_context(int(context))
    model.close()
    need = fit.estimate(
        header, int(context), types, types, flash_attention=flash != "off", repacked_types=hardware.repacked_types()
    )
    print("estimate", need.weights + need.repacked, need.kv_cache, need.compute, flush=True)
"""


def measured(path: Path, *cases: str) -> list[tuple[list[int], dict[str, float]]]:
    """What is estimated, and the sizes of the buffers that llama.cpp says it allocated, in bytes, for every case."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), *cases], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr[-500:]
    estimates = [[int(n) for n in line.split()[1:]] for line in done.stdout.splitlines() if line.startswith("estimate")]
    found = []
    # A model is loaded anew for every case, and says so.
    for log, estimated in zip(done.stderr.split("llama_model_loader: loaded meta data")[1:], estimates, strict=True):
        actual: dict[str, float] = {"model": 0, "KV": 0, "compute": 0, "RS": 0, "output": 0}
        for kind, size in re.findall(r"(model|KV|compute|RS|output)\s+buffer size\s*=\s*([\d.]+) MiB", log):
            actual[kind] += float(size) * (1 << 20)
        found.append((estimated, actual))
    return found


CASES = ("512 f16 auto", "2048 f16 auto", "8192 f16 auto", "8192 q8_0 auto", "8192 f16 off", "32768 q4_0 auto")
MODELS = (
    Model("llama", width=576, heads=9, kv=3, weights="Q4_0"),
    Model("llama", width=1024, feed_forward=1024, heads=16, tied=True),
    Model("llama", experts=8),
    Model("qwen2", kv=8),
    Model("qwen3", head=128, feed_forward=3072),
    Model("qwen3moe", experts=32, feed_forward=256),
    Model("gemma2", window=1024, tied=True, vocabulary=32768),
    Model("gemma3", window=512, tied=True, head=128),
    Model("phi3", kv=8),
)


def check(path: Path, *cases: str) -> None:
    for case, (estimated, actual) in zip(cases, measured(path, *cases), strict=True):
        assert actual["model"] > 0
        assert actual["KV"] > 0
        assert sum(estimated) == pytest.approx(sum(actual.values()), rel=0.1), (case, estimated, actual)
        assert estimated[0] == pytest.approx(actual["model"], rel=0.1), (case, estimated, actual)
        assert estimated[1] == pytest.approx(actual["KV"], rel=0.02), (case, estimated, actual)
        assert estimated[2] == pytest.approx(actual["compute"] + actual["output"], rel=0.15), (case, estimated, actual)


def test_the_real_model_takes_what_was_estimated(model_path: Path) -> None:
    check(model_path, *CASES)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_family_takes_what_was_estimated(model: Model, tmp_path: Path) -> None:
    check(write(tmp_path / "m.gguf", model), *CASES[1:5])


def test_the_process_takes_what_was_estimated(model_path: Path) -> None:
    """Real memory: the process's growth from before the load to after a prompt that fills the micro-batch."""
    code = (
        "import psutil, sys; from pathlib import Path; from localllm import fit, hardware\n"
        "from localllm.engines.llama_model import LlamaModel; from localllm.formats.gguf import read_header\n"
        "from localllm.types import EngineOptions\n"
        "header = read_header(Path(sys.argv[1])); process = psutil.Process(); import localllm.engines.native as n; n.llama()\n"
        "before = process.memory_info().rss; model = LlamaModel(header.path, EngineOptions(context=8192), gpu_layers=0, threads=2)\n"
        "model.open_context(8192); [None for _ in [model.prefill([1] * 600)]]\n"
        "print(process.memory_info().rss - before, fit.estimate(header, 8192, 'f16', 'f16', "
        "repacked_types=hardware.repacked_types()).total)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    actual, estimated = map(int, done.stdout.split())
    assert estimated == pytest.approx(actual, rel=0.1)


def test_what_one_token_reads(tmp_path: Path) -> None:
    """Two of eight experts, and no embedding but the row that is looked up; with half of the cache it sets the pace."""
    header = read_header(write(tmp_path / "m.gguf", Model("llama", experts=8)))
    need = estimate(header, 8192, "f16", "f16")
    sizes = {t.name: t.size for t in header.tensors}
    experts = sum(size for name, size in sizes.items() if "_exps." in name)
    assert need.active == need.weights - experts * 3 // 4 - sizes["token_embd.weight"]
    assert tokens_per_second(need, 1e9) == pytest.approx(DECODE_EFFICIENCY * 1e9 / (need.active + need.kv_cache / 2))


def test_row_bytes() -> None:
    assert [row_bytes(t, 64) for t in ("f32", "f16", "q8_0", "q4_0")] == [256, 128, 68, 36]


def test_layers_on_gpu() -> None:
    need = Need(weights=29 * GIB, kv_cache=GIB, compute=GIB, layers=29)
    assert layers_on_gpu(need, 0) == 0
    assert layers_on_gpu(need, GIB + GPU_RESERVE) == 0
    assert layers_on_gpu(need, 11 * GIB + GPU_RESERVE) == 10
    assert layers_on_gpu(need, 31 * GIB + GPU_RESERVE) == 30
    assert layers_on_gpu(need, 300 * GIB) == 30


@pytest.mark.parametrize(
    ("on_gpu", "have", "expected"),
    [
        (0, Memory(64 * GIB, 40 * GIB), Verdict.FITS),
        (0, Memory(32 * GIB, 30 * GIB), Verdict.TIGHT),
        (0, Memory(32 * GIB, 3 * GIB), Verdict.TIGHT),  # mapped weights push the page cache out
        (0, Memory(32 * GIB, 1 * GIB), Verdict.NO),
        (0, Memory(16 * GIB, 16 * GIB), Verdict.NO),
        (30, Memory(16 * GIB, 2 * GIB), Verdict.FITS),
        (15, Memory(20 * GIB, 2 * GIB), Verdict.TIGHT),
    ],
)
def test_verdict(on_gpu: int, have: Memory, expected: Verdict) -> None:
    """The engine refuses what the verdict calls NO, and nothing else."""
    need = Need(weights=29 * GIB, kv_cache=GIB, compute=GIB, layers=29)
    assert verdict(need, have, on_gpu) is expected
    if expected is not Verdict.NO:
        require_memory("x.gguf", lambda *_: need, 8192, ("f16", "f16"), on_gpu, have)
        return
    with pytest.raises(OutOfMemory, match=r"x\.gguf needs .* GiB for weights"):
        require_memory("x.gguf", lambda *_: need, 8192, ("f16", "f16"), on_gpu, have)


def test_copies_in_another_order_are_memory_that_cannot_be_dropped() -> None:
    need = Need(weights=10 * GIB, kv_cache=0, compute=0, layers=9, repacked=8 * GIB)
    assert verdict(need, Memory(32 * GIB, 7 * GIB)) is Verdict.NO
    assert verdict(need, Memory(11 * GIB, 9 * GIB)) is Verdict.TIGHT


@pytest.mark.parametrize(
    ("types", "free", "hint"),
    [
        (("f16", "f16"), 6, "--cache-type-k q8_0 --cache-type-v q8_0 would fit"),
        (("f16", "f16"), 4, "--context 12288 would fit"),
        (("q8_0", "q8_0"), 3, "--context 15360 would fit"),
        (("f16", "f16"), 0, "take a smaller quantization, or a smaller model"),
    ],
)
def test_the_way_out_fits(types: tuple[str, str], free: int, hint: str) -> None:
    """The hint names an option with which the same check passes."""

    def need_at(context: int, type_k: str, type_v: str) -> Need:
        return Need(GIB, context * (row_bytes(type_k, 65536) + row_bytes(type_v, 65536)), GIB, 29)

    have = Memory(64 * GIB, free * GIB)
    with pytest.raises(OutOfMemory) as caught:
        require_memory("x.gguf", need_at, 32768, types, 0, have)
    assert caught.value.hint == hint
    if hint.startswith("--context"):
        context = int(hint.split()[1])
        assert verdict(need_at(context, *types), have) is not Verdict.NO
        assert verdict(need_at(context + 256, *types), have) is Verdict.NO


CONFIG = {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
CONFIG |= {"intermediate_size": 1536, "vocab_size": 49152}


def test_a_checkpoint_needs_what_its_gguf_will(model_path: Path) -> None:
    converted = estimate(read_header(model_path), 8192, "f16", "f16")
    for config in (CONFIG, {"model_type": "x", "text_config": CONFIG}):
        need = estimate_checkpoint(config, 134_515_008, "Q4_K_M", 8192, "f16", "f16")
        assert (need.kv_cache, need.compute, need.layers) == (converted.kv_cache, converted.compute, 30)
        assert need.weights == pytest.approx(134_515_008 * 4.9 / 8, rel=0.01)


@pytest.mark.parametrize(
    "change", [{"hidden_size": None}, {"num_hidden_layers": 10**9}, {"vocab_size": "many"}, {"head_dim": -1}, {"num_attention_heads": True}]
)  # fmt: skip
def test_a_config_of_nonsense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadModelFile, match=r"config\.json has"):
        estimate_checkpoint({**CONFIG, **change}, 1, "F16", 512, "f16", "f16")


def test_this_machine() -> None:
    assert 0 < memory().available <= memory().total
    assert physical_cores() >= 1


def bus(tmp_path: Path, *devices: tuple[str, str, str, str]) -> Path:
    for address, kind, vendor, driver in devices:
        folder = tmp_path / "devices" / address
        folder.mkdir(parents=True)
        (folder / "class").write_text(kind + "\n")
        (folder / "vendor").write_text(vendor + "\n")
        if driver:
            (tmp_path / "drivers" / driver).mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(tmp_path / "drivers" / driver)
    return tmp_path / "devices"


def test_gpus_on_the_bus(tmp_path: Path) -> None:
    found = gpus(
        bus(
            tmp_path,
            ("0000:00:02.0", "0x030000", "0x8086", "i915"),
            ("0000:01:00.0", "0x030200", "0x10de", ""),
            ("0000:02:00.0", "0x020000", "0x10de", "mlx5"),
            ("0000:03:00.0", "0x030000", "0x1234", "bochs"),
        )
    )
    assert found == [
        Gpu("Intel", "0000:00:02.0", "i915"),
        Gpu("NVIDIA", "0000:01:00.0", ""),
        Gpu("other", "0000:03:00.0", "bochs"),
    ]
    assert gpus(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("gpu", "kinds", "offload", "words"),
    [
        (Gpu("NVIDIA", "a", "nvidia"), ["cpu"], False, "built for the CPU alone.*GGML_CUDA"),
        (Gpu("AMD", "a", "amdgpu"), ["cpu"], False, "GGML_HIP"),
        (Gpu("Intel", "a", "xe"), ["cpu"], False, "GGML_SYCL.*GGML_VULKAN"),
        (Gpu("NVIDIA", "a", ""), ["cpu"], False, "no driver.*install the driver nvidia"),
        (Gpu("NVIDIA", "a", "nouveau"), ["cpu"], True, "driver nouveau.*install the driver nvidia"),
        (Gpu("NVIDIA", "a", "nvidia"), ["cpu"], True, "does not see it"),
        (Gpu("other", "a", "x"), ["cpu"], False, "no backend for it"),
        (Gpu("NVIDIA", "a", "nvidia"), ["cpu", "gpu"], True, ""),
    ],
)
def test_advice(gpu: Gpu, kinds: list[str], offload: bool, words: str) -> None:
    import re

    lines = advice([gpu], kinds, offload)
    assert len(lines) == bool(words)
    if words:
        assert re.search(words, lines[0])
