"""How much memory a model needs, and what is done with what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
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
    largest_context,
    layers_on_gpu,
    require_memory,
    tokens_per_second,
    verdict,
)
from localllm.formats.gguf import Header, read_header
from localllm.formats.gguf_metadata import Array
from localllm.hardware import Gpu, Memory, gpus, memory, physical_cores
from localllm.shape import row_bytes
from tests.support.random_models import Model, write

GIB = 1 << 30


MEASURE = """
import re, sys
from pathlib import Path
from localllm import fit, hardware
from localllm.engines import native
from localllm.engines.llama_model import LlamaModel
from localllm.formats.gguf import Header, read_header
from localllm.formats.gguf_metadata import Array
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
    compute = need.compute - fit.vocabulary_tables(header)  # which llama.cpp does not report
    print("estimate", need.weights + need.repacked, need.kv_cache, compute, flush=True)
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
    Model("llama", experts=8, weights="Q4_0"),
    Model("qwen2", kv=8),
    Model("qwen3", head=128, feed_forward=3072),
    Model("qwen3moe", experts=32, feed_forward=256),
    Model("gemma2", window=1024, tied=True, vocabulary=32768),
    Model("gemma3", window=512, tied=True, head=128),
    Model("phi3", kv=8),
    Model("llama", window=1024),  # as a Mistral, whose window llama.cpp does not use
    Model("llama", weights="Q8_0", tied=True),
    Model("qwen3moe", experts=64, used=8, width=1024, feed_forward=384, head=128, kv=4),
    Model("qwen3moe", experts=16, used=8, width=1024, feed_forward=128),
    Model("gpt-oss", experts=8, used=4, feed_forward=512, window=128),
    Model("deepseek2", experts=16, used=4, feed_forward=512, head=128),
    Model("gemma4", window=512, tied=True, head=128),
    Model("lfm2", layers=12, tied=True),
    Model("mamba2", layers=12),
    Model("granitehybrid", layers=12),
    Model("qwen3next", layers=12, experts=16, used=4, feed_forward=256, head=128),
)


def check(path: Path, *cases: str) -> None:
    for case, (estimated, actual) in zip(cases, measured(path, *cases), strict=True):
        assert actual["model"] > 0
        assert actual["KV"] + actual["RS"] > 0
        assert sum(estimated) == pytest.approx(sum(actual.values()), rel=0.1), (case, estimated, actual)
        assert estimated[0] == pytest.approx(actual["model"], rel=0.1), (case, estimated, actual)
        # The log rounds to hundredths of a MiB.
        assert estimated[1] == pytest.approx(actual["KV"] + actual["RS"], rel=0.002, abs=25_000), (
            case,
            estimated,
            actual,
        )
        assert estimated[2] == pytest.approx(actual["compute"] + actual["output"], rel=0.1), (case, estimated, actual)


@pytest.mark.slow
def test_the_real_model_takes_what_was_estimated(model_path: Path) -> None:
    check(model_path, *CASES)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_family_takes_what_was_estimated(model: Model, tmp_path: Path) -> None:
    check(write(tmp_path / "m.gguf", model), CASES[1], CASES[3], CASES[4])


GROWTH = """
import sys
from pathlib import Path
import psutil
from localllm import fit, hardware
from localllm.engines import native
from localllm.engines.llama_model import LlamaModel
from localllm.formats.gguf import read_header
from localllm.types import EngineOptions

header, context = read_header(Path(sys.argv[1])), int(sys.argv[2])
native.llama()
before = psutil.Process().memory_info().rss
model = LlamaModel(header.path, EngineOptions(context=context), gpu_layers=0, threads=2)
model.open_context(context)
model.prefill([1] * 512)
need = fit.estimate(header, context, "f16", "f16", repacked_types=hardware.repacked_types())
print(psutil.Process().memory_info().rss - before, need.total)
"""


@pytest.mark.slow
@pytest.mark.parametrize("context", [2048, 8192])
def test_the_process_takes_what_was_estimated(context: int, model_path: Path) -> None:
    """Real memory: the process's growth from before the load to after a prompt that fills the micro-batch."""
    done = subprocess.run([sys.executable, "-c", GROWTH, str(model_path), str(context)], capture_output=True, text=True)
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


def test_weights_that_are_not_mapped_cannot_be_dropped(model_path: Path) -> None:
    header = read_header(model_path)
    mapped, read = (
        estimate(header, 512, "f16", "f16", mmap=mmap, repacked_types=frozenset(("Q4_1",))) for mmap in (True, False)
    )
    assert mapped.total - read.total == mapped.repacked > 50_000_000
    big = Need(weights=10 * GIB, kv_cache=0, compute=0, layers=9, mapped=False)
    assert verdict(big, Memory(32 * GIB, 9 * GIB)) is Verdict.NO
    assert verdict(big, Memory(32 * GIB, 11 * GIB)) is Verdict.FITS


@pytest.mark.parametrize(
    ("types", "free", "hint"),
    [
        (("f16", "f16"), 6, "--context 20480 or --cache-type-k q8_0 --cache-type-v q8_0 would fit"),
        (("f16", "f16"), 4, "--context 12288 would fit"),
        (("q8_0", "q8_0"), 3, "--context 15360 would fit"),
        (("f16", "f16"), 0, "take a smaller quantization, or a smaller model"),
    ],
)
def test_the_way_out_fits(types: tuple[str, str], free: int, hint: str) -> None:
    """The hint names options with which the same check passes."""

    def need_at(context: int, type_k: str, type_v: str) -> Need:
        return Need(GIB, context * (row_bytes(type_k, 65536) + row_bytes(type_v, 65536)), GIB, 29)

    have = Memory(64 * GIB, free * GIB)
    with pytest.raises(OutOfMemory) as caught:
        require_memory("x.gguf", need_at, 32768, types, 0, have)
    assert caught.value.hint == hint
    most = largest_context(need_at, 32768, types, have)
    assert (f"--context {most} " in hint) == (most > 0)
    assert most == 0 or verdict(need_at(most, *types), have) is not Verdict.NO
    assert verdict(need_at(most + 256, *types), have) is Verdict.NO
    if "q8_0 would" in hint:
        assert verdict(need_at(32768, "q8_0", "q8_0"), have) is not Verdict.NO


def test_the_largest_context_is_never_more_than_was_asked_for() -> None:
    small = Need(GIB, GIB, GIB, 29)
    assert largest_context(lambda *_: small, 1000, ("f16", "f16"), Memory(64 * GIB, 60 * GIB)) == 768


def with_metadata(header: Header, **changes: object) -> Header:
    new = {f"{header.architecture}.{key.replace('__', '.')}": value for key, value in changes.items()}
    return replace(header, metadata=header.metadata | new)


def test_layers_that_predict_ahead_are_not_loaded(model_path: Path) -> None:
    header = read_header(model_path)
    whole = estimate(header, 512, "f16", "f16")
    need = estimate(with_metadata(header, nextn_predict_layers=1), 512, "f16", "f16")
    assert need.layers == 29
    assert need.kv_cache == whole.kv_cache * 29 // 30
    last = sum(t.size for t in header.tensors if t.name.startswith("blk.29."))
    assert whole.weights - need.weights == whole.active - need.active == last > 0


@pytest.mark.parametrize("value", ["4", -1, 1 << 40, 2.5, (1, "2"), None, Array(4, 5000, 0)])
def test_numbers_that_are_none_are_refused(value: object, model_path: Path) -> None:
    header = read_header(model_path)
    for key in (
        "attention__head_count_kv",
        "full_attention_interval",
        "attention__shared_kv_layers",
        "ssm__inner_size",
    ):
        with pytest.raises(BadModelFile, match="which cannot be"):
            estimate(with_metadata(header, **{key: value}), 512, "f16", "f16")


CONFIG = {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
CONFIG |= {"intermediate_size": 1536, "vocab_size": 49152}


def test_a_checkpoint_needs_what_its_gguf_will(model_path: Path) -> None:
    converted = estimate(read_header(model_path), 8192, "f16", "f16")
    for config in (CONFIG, {"model_type": "x", "text_config": CONFIG}):
        need = estimate_checkpoint(config, 134_515_008, "Q4_K_M", 8192, "f16", "f16")
        assert (need.kv_cache, need.layers) == (converted.kv_cache, 30)
        assert need.compute == pytest.approx(converted.compute, rel=0.01)
        assert need.weights == pytest.approx(134_515_008 * 4.9 / 8, rel=0.01)


# Of every family that can be written here: what its GGUF says, in a configuration's words.
CONFIGS = (
    (Model("llama", window=1024), {"model_type": "mistral", "sliding_window": 1024}),
    (Model("gemma2", window=1024), {"model_type": "gemma2", "sliding_window": 1024}),
    (
        Model("gemma3", window=512),
        {"model_type": "gemma3_text", "sliding_window": 512, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2},
    ),
    (
        Model("qwen3moe", experts=64, used=8, feed_forward=384),
        {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 384},
    ),
    (
        Model("deepseek2", experts=16, used=4, feed_forward=512, head=128),
        {
            "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 512, "kv_lora_rank": 256,
            "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
        },
    ),
    (
        Model("lfm2", layers=12),
        {"model_type": "lfm2", "conv_L_cache": 3, "layer_types": ["conv", "conv", "conv", "full_attention"] * 3},
    ),
    (
        Model("qwen3next", layers=12, experts=16, used=4, feed_forward=256),
        {
            "model_type": "qwen3_next", "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256,
            "linear_num_value_heads": 16, "linear_value_head_dim": 64, "linear_num_key_heads": 2,
            "linear_key_head_dim": 64, "linear_conv_kernel_dim": 4,
        },
    ),
)  # fmt: skip


@pytest.mark.parametrize(("model", "config"), CONFIGS, ids=str)
def test_every_family_s_checkpoint_needs_what_its_gguf_does(
    model: Model, config: dict[str, object], tmp_path: Path
) -> None:
    header = read_header(write(tmp_path / "m.gguf", model))
    base = {
        "num_hidden_layers": model.layers, "hidden_size": model.width, "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv, "head_dim": model.head, "intermediate_size": model.feed_forward,
        "vocab_size": model.vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip
    want = estimate(header, 8192, "q8_0", "q8_0")
    need = estimate_checkpoint(base | config, header.parameters, "F16", 8192, "q8_0", "q8_0")
    assert need.kv_cache == want.kv_cache
    assert need.compute == pytest.approx(want.compute, rel=0.1)
    assert need.weights == pytest.approx(want.weights, rel=0.01)
    assert need.active == pytest.approx(want.active, rel=0.02)


def test_a_converted_checkpoint_is_repacked_too() -> None:
    need = estimate_checkpoint(CONFIG, 10**9, "Q4_K_M", 512, "f16", "f16", repacked_types=frozenset(("Q4_K",)))
    assert 0.6 * need.weights < need.repacked < 0.8 * need.weights
    assert estimate_checkpoint(CONFIG, 10**9, "Q4_K_M", 512, "f16", "f16").repacked == 0


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None}, {"hidden_size": 0}, {"num_hidden_layers": 10**9}, {"vocab_size": "many"}, {"head_dim": -1},
        {"num_attention_heads": True}, {"sliding_window": "x"}, {"kv_lora_rank": 1 << 60}, {"num_experts": [8]},
    ],
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
