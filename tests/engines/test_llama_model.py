"""llama.cpp itself: samplers, the KV cache, the abort flag, its log, and files it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from localllm.engines import native, open_engine
from localllm.engines.interrupt import AbortFlag
from localllm.engines.llama_cpp import gpu_layers, is_chat_model
from localllm.engines.llama_model import LlamaModel
from localllm.errors import BadModelFile, EngineError, LocalLLMError, OutOfMemory, UnknownArchitecture, UsageError
from localllm.fit import Need
from localllm.formats.gguf import Header, read_model
from localllm.types import EngineOptions, Limits, Message, Request, Sampling
from tests.support.command import localllm
from tests.support.gguf_files import split

PROMPT = "<|im_start|>user\nWrite about the sea.<|im_end|>\n<|im_start|>assistant\n"


def generate(model: LlamaModel, sampling: Sampling, count: int = 24, *, ignore_eos: bool = False) -> list[int]:
    tokens = model.tokenize(PROMPT, begin=True)
    model.clear()
    model.prefill(tokens)
    drawn = []
    with model.sampler(sampling, ignore_eos=ignore_eos, history=tokens) as sample:
        for _ in range(count):
            drawn.append(sample())
            model.feed(drawn[-1])
    return drawn


def test_tokens(model: LlamaModel) -> None:
    tokens = model.tokenize("<|im_start|>user\nGrüße 🙂", begin=True)
    assert tokens[0] == 1
    assert b"".join(model.piece(t) for t in tokens) == "user\nGrüße 🙂".encode()
    assert model.begin_text == "<|im_start|>"
    assert model.end_text == "<|im_end|>"
    assert "<|im_end|>" in model
    assert "<start_of_turn>" not in model
    assert model.tokenize("", begin=True) == []


DIFFERENT = {
    "temperature": Sampling(temperature=3, top_k=0, top_p=1, min_p=0, seed=1),
    "top_k": Sampling(temperature=3, top_k=2, seed=1),
    "top_p": Sampling(temperature=1, top_k=0, min_p=0, top_p=0.3, seed=1),
    "min_p": Sampling(temperature=3, top_k=0, top_p=1, min_p=0.3, seed=1),
    "typical_p": Sampling(temperature=1, typical_p=0.2, seed=1),
    "top_n_sigma": Sampling(temperature=3, top_k=0, top_p=1, min_p=0, top_n_sigma=1.0, seed=1),
    "xtc": Sampling(temperature=1, xtc_probability=1, xtc_threshold=0.05, seed=1),
    "dry": Sampling(temperature=0, dry_multiplier=5, dry_allowed_length=0, dry_sequence_breaker=()),
    "repeat_penalty": Sampling(temperature=0, repeat_penalty=2.0),
    "presence_penalty": Sampling(temperature=0, presence_penalty=20),
    "frequency_penalty": Sampling(temperature=0, frequency_penalty=20),
    "mirostat 1": Sampling(mirostat=1, seed=1),
    "mirostat 2": Sampling(mirostat=2, seed=1),
    "logit_bias": Sampling(temperature=0, logit_bias=("28=100",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("sampling", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_each_sampler_acts_and_repeats(model: LlamaModel, sampling: Sampling) -> None:
    greedy = generate(model, Sampling(temperature=0), 40)
    once = generate(model, sampling, 40)
    assert once == generate(model, sampling, 40)
    assert once != greedy


@pytest.mark.slow
def test_seeds_differ(model: LlamaModel) -> None:
    one, two = (generate(model, Sampling(temperature=1.5, seed=s)) for s in (1, 2))
    assert one != two


@pytest.mark.slow
def test_no_seed_differs(model: LlamaModel) -> None:
    assert len({tuple(generate(model, Sampling(temperature=2))) for _ in range(4)}) > 1


def test_top_k_of_one_is_greedy(model: LlamaModel) -> None:
    assert generate(model, Sampling(temperature=2, top_k=1, seed=5)) == generate(model, Sampling(temperature=0))


def test_logit_bias_forbids(model: LlamaModel) -> None:
    first = generate(model, Sampling(temperature=0), 1)[0]
    assert first not in generate(model, Sampling(temperature=0, logit_bias=(f"{first}=-inf",)))


@pytest.mark.parametrize("text", ["x", "1", "1=x", "1=nan", "99999999=1", "-1=1"])
def test_a_bad_logit_bias(model: LlamaModel, text: str) -> None:
    with pytest.raises(UsageError, match="--logit-bias"):
        generate(model, Sampling(logit_bias=(text,)), 1)


@pytest.mark.slow
def test_ignore_eos(model: LlamaModel) -> None:
    drawn = generate(model, Sampling(temperature=0, logit_bias=("2=100",)), 3)
    assert model.is_end(drawn[0])
    assert not any(map(model.is_end, generate(model, Sampling(temperature=0.2, seed=1), 300, ignore_eos=True)))


def test_prefix_reuse_changes_nothing(model: LlamaModel) -> None:
    """After other prompts with a common prefix, greedy text is a cold start's."""
    tokens = model.tokenize(PROMPT, begin=True)
    cold = generate(model, Sampling(temperature=0), 20)
    model.clear()
    assert model.prefill(tokens[:-3] + tokens[:5]) == 0
    assert model.prefill(tokens) == len(tokens) - 3
    warm = []
    with model.sampler(Sampling(temperature=0), ignore_eos=False, history=tokens) as sample:
        for _ in range(20):
            warm.append(sample())
            model.feed(warm[-1])
    assert warm == cold
    assert model.prefill(tokens) == len(tokens) - 1


@pytest.mark.slow
def test_a_prompt_longer_than_a_batch(model_path: Path) -> None:
    model = LlamaModel(model_path, EngineOptions(context=4096), gpu_layers=0, threads=2)
    tokens = model.tokenize("The sea is wide. " * 600, begin=True)
    assert len(tokens) > 2048
    assert model.prefill(tokens) == 0
    assert model.prefill(tokens) == len(tokens) - 1
    model.close()


def test_the_flag_aborts_a_decode_at_once(model_path: Path) -> None:
    model = LlamaModel(model_path, EngineOptions(context=8192), gpu_layers=0, threads=2)
    tokens = model.tokenize("The sea is wide. " * 1500, begin=True)
    threading.Timer(0.5, model.abort.put_up).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        model.prefill(tokens)
    assert time.monotonic() - started < 1.5
    model.abort.take_down()
    short = model.tokenize(PROMPT, begin=True)
    assert model.prefill(short) == 0  # what was evaluated before the abort is not trusted
    model.close()


def test_abort_flag() -> None:
    flag = AbortFlag()
    assert not flag.is_up
    flag.put_up()
    assert flag.is_up
    flag.take_down()
    assert not flag.is_up


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "f32", "bf16"])
def test_cache_types(model_path: Path, kind: str) -> None:
    options = EngineOptions(context=256, cache_type_k=kind, cache_type_v=kind)
    model = LlamaModel(model_path, options, gpu_layers=0, threads=2)
    assert len(generate(model, Sampling(temperature=0), 8)) == 8
    model.close()


def test_a_quantized_v_cache_needs_flash_attention(model_path: Path) -> None:
    options = EngineOptions(context=256, cache_type_v="q4_0", flash_attention="off")
    model = LlamaModel(model_path, options, gpu_layers=0, threads=2)
    with pytest.raises(EngineError, match="--cache-type-v q4_0 needs flash attention"):
        model.prefill([1, 2])
    model.close()


@pytest.mark.slow
def test_without_mmap(model_path: Path, model: LlamaModel) -> None:
    read = LlamaModel(model_path, EngineOptions(mmap=False, context=512), gpu_layers=0, threads=2)
    assert generate(read, Sampling(temperature=0)) == generate(model, Sampling(temperature=0))
    read.close()


def patched(model_path: Path, tmp_path: Path, old: bytes, new: bytes) -> Path:
    assert len(old) == len(new)
    path = tmp_path / "patched.gguf"
    data = model_path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


def test_an_unknown_architecture(model_path: Path, tmp_path: Path) -> None:
    data = model_path.read_bytes()
    path = tmp_path / "x.gguf"
    # The architecture's value first, then the prefix of its keys, so that the header stays consistent.
    path.write_bytes(data[:2000].replace(b"llama", b"zzama") + data[2000:])
    with pytest.raises(UnknownArchitecture, match="does not know the architecture 'zzama'") as caught:
        open_engine("llama.cpp", path, EngineOptions())
    assert "newer llama-cpp-python" in caught.value.hint


def test_a_missing_tensor_is_named(model_path: Path, tmp_path: Path) -> None:
    path = patched(model_path, tmp_path, b"blk.7.attn_q.weight", b"blk.7.attn_x.weight")
    with pytest.raises(BadModelFile, match=r"tensor 'blk\.7\.attn_q\.weight' not found"):
        open_engine("llama.cpp", path, EngineOptions())


def test_more_memory_than_there_is(model_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="needs .* GiB for weights and .* GiB for a context of 16777216") as caught:
        open_engine("llama.cpp", model_path, EngineOptions(context=2**24, cache_type_k="f32", cache_type_v="f32"))
    assert "--context" in caught.value.hint


def test_without_a_template_the_text_is_completed(without_template: Path) -> None:
    engine = open_engine("llama.cpp", without_template, EngineOptions(context=256))
    assert engine.notices == ("the model has no chat template; completing the text as it stands",)
    assert engine.prompt((Message("user", "Once upon"),)) == "Once upon"
    engine.close()
    forced = open_engine("llama.cpp", without_template, EngineOptions(context=256, template="chatml"))
    assert forced.notices == ()
    assert forced.prompt((Message("user", "Hi"),)) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    forced.close()


def test_a_template_that_fails_says_so(model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ raise_exception('not today') }}")
    engine = open_engine("llama.cpp", model_path, EngineOptions(context=256, template=str(file)))
    with pytest.raises(LocalLLMError, match="the chat template failed: not today"):
        list(engine.stream(Request((Message("user", "Hi"),), Sampling(), Limits(max_tokens=2))))
    engine.close()


def test_gpu_layers() -> None:
    need = Need(weights=29 << 30, kv_cache=1 << 30, compute=1 << 30, layers=29)
    assert gpu_layers("auto", need, 0) == 0
    assert gpu_layers("auto", need, 64 << 30) == 30
    assert 0 < gpu_layers("auto", need, 16 << 30) < 30
    assert gpu_layers("all", need, 0) == 30
    assert gpu_layers("7", need, 0) == 7
    assert gpu_layers("999", need, 0) == 30
    with pytest.raises(UsageError, match="not auto, all or a number"):
        gpu_layers("-1", need, 0)


@pytest.mark.parametrize(
    ("metadata", "chat"),
    [
        ({"general.name": "Qwen2.5 0.5B Instruct"}, True),
        ({"general.finetune": "it"}, True),
        ({"general.name": "Gemma 3 270m"}, False),
        ({"general.name": "bitnet"}, False),
        ({}, False),
    ],
)
def test_is_chat_model(metadata: dict, chat: bool) -> None:
    assert is_chat_model(Header(Path("x"), 0, {"general.architecture": "x", **metadata}, ())) is chat


def test_devices() -> None:
    assert [d.kind for d in native.devices()].count("cpu") == 1
    assert native.cpu_features()


def test_the_native_library_is_silent(model_path: Path) -> None:
    """Whatever C writes to the process's own stdout and stderr, not Python's, is caught here."""
    code = (
        "from localllm.engines import open_engine; from localllm.types import *; from pathlib import Path; import sys\n"
        "e = open_engine('llama.cpp', Path(sys.argv[1]), EngineOptions(context=128))\n"
        "list(e.stream(Request((Message('user', 'Hi'),), Sampling(), Limits(max_tokens=3)))); e.close()\n"
        "import llama_cpp; assert hasattr(llama_cpp, 'Llama'), 'the whole package can still be imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, model_path], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.slow
def test_damaged_headers_never_kill_the_process(model_path: Path, tmp_path: Path) -> None:
    """200 damaged copies of the real file, each loaded in a process of its own: refused or run, never a crash."""
    code = Path(__file__).with_name("load_damaged.py")
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(
        [sys.executable, code, model_path, tmp_path, "200"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counts = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", done.stdout)}
    assert counts["crashed"] == 0, done.stdout
    assert counts["refused"] > 50
    assert counts["ran"] > 5


@pytest.mark.slow
def test_a_model_in_shards_answers_as_the_whole(model_path: Path, tmp_path: Path) -> None:
    first, second, third = split(model_path, tmp_path, "m", 3)
    whole = localllm("run", "-m", str(model_path), "The capital of France is", "-n", "8", "--temperature", "0")
    parts = localllm("run", "-m", str(first), "The capital of France is", "-n", "8", "--temperature", "0")
    assert (parts.returncode, parts.stdout) == (0, whole.stdout), parts.stderr
    assert read_model(first).parameters == read_model(model_path).parameters
    middle = localllm("run", "-m", str(second), "Hi")
    assert (middle.returncode, middle.stderr) == (
        1,
        f"localllm: {second} is not the first shard of its model (name the first, -00001-of-...)\n",
    )
    os.truncate(third, third.stat().st_size - 1)
    cut = localllm("run", "-m", str(first), "Hi")
    assert cut.returncode == 1
    assert "it is truncated" in cut.stderr
    third.unlink()
    gone = localllm("run", "-m", str(first), "Hi")
    assert (gone.returncode, len(gone.stderr.splitlines())) == (3, 1)
    assert str(third) in gone.stderr


@pytest.mark.slow
def test_an_answer_runs_on_past_the_context(model_path: Path) -> None:
    """By llama.cpp's context shift; the next prompt is computed anew, so it finds no trace of it."""
    messages = (Message("system", "You count."), Message("user", "Count."))
    plain = Request(messages, Sampling(temperature=0), Limits(max_tokens=8))
    engine = open_engine("llama.cpp", model_path, EngineOptions(context=64, threads=1))
    before = [c.token for c in engine.stream(plain)]
    limits = Limits(max_tokens=150, ignore_eos=True, on_overflow="shift")
    chunks = list(engine.stream(Request(messages, Sampling(temperature=0), limits)))
    assert len([c for c in chunks if c.token is not None]) == 150 and chunks[-1].finish == "length"
    last = list(engine.stream(plain))
    assert last[-1].usage is not None and 0 < last[-1].usage.reused_tokens < 20
    engine.model.clear()
    assert [c.token for c in engine.stream(plain)] == before
    stopped = list(engine.stream(Request(messages, Sampling(temperature=0), Limits(ignore_eos=True))))
    assert stopped[-1].usage is not None and stopped[-1].usage.completion_tokens < 64
    engine.close()
