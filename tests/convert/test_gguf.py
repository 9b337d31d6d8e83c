"""Conversion of real and of broken checkpoints: byte-identical, streamed, whole or not at all, never executed."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.convert.architectures import known
from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound, UnknownArchitecture
from localllm.formats.gguf import Header, read_header
from tests.support import checkpoints, real_checkpoints
from tests.support.command import COMMAND, localllm
from tests.support.lines import lines
from tests.support.real_checkpoints import tensor_digest
from tests.support.vocabulary_only import opened

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "reference_tensors.json").read_text())
TOKENS = json.loads((DATA / "tokenizers" / "expected.json").read_text())


def convert(folder: Path, dtype: str = "auto", name: str = "model.gguf") -> Path:
    gguf.write(gguf.plan(folder, dtype), folder / name)
    return folder / name


def values(path: Path, name: str) -> np.ndarray:
    """A tensor of float32."""
    tensor = next(t for t in read_header(path).tensors if t.name == name)
    assert tensor.type == "F32"
    return np.fromfile(path, "<f4", tensor.parameters, offset=tensor.offset).reshape(tensor.shape[::-1])


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    return real_checkpoints.smollm2(tmp_path_factory.mktemp("smollm2"), model_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_smollm2_has_the_tensors_of_llama_cpps_converter(dtype: str, smollm2: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    gguf.write(gguf.plan(smollm2, dtype), target)
    assert tensor_digest(target) == REFERENCE[f"smollm2-{dtype}"]


@pytest.mark.slow
def test_smollm2_tokenizes_a_thousand_lines_alike(smollm2: Path, tmp_path: Path) -> None:
    gguf.write(gguf.plan(smollm2, "f16"), tmp_path / "m.gguf", hollow=True)
    with opened(tmp_path / "m.gguf") as vocabulary:
        assert [zlib.crc32(repr(vocabulary.ids(line)).encode()) for line in lines()] == TOKENS["smollm2"]


@pytest.mark.slow
def test_minilm_has_the_tensors_of_llama_cpps_converter(minilm: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    for dtype in ("bf16", "f16"):
        gguf.write(gguf.plan(minilm, dtype), target)
        assert tensor_digest(target) == REFERENCE[f"minilm-{dtype}"]
    assert read_header(target).metadata["bert.pooling_type"] == 1


@pytest.mark.slow
def test_minilm_tokenizes_a_thousand_lines_alike(minilm: Path, tmp_path: Path) -> None:
    gguf.write(gguf.plan(minilm, "f16"), tmp_path / "m.gguf", hollow=True)
    with opened(tmp_path / "m.gguf") as vocabulary:
        assert [zlib.crc32(repr(vocabulary.ids(line)).encode()) for line in lines()] == TOKENS["minilm"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(smollm2: Path, tmp_path: Path) -> None:
    """The largest tensor has 57 MB in bfloat16; the model 269 MB."""
    code = (
        "from pathlib import Path; from localllm.convert import gguf\n"
        f"gguf.write(gguf.plan(Path({str(smollm2)!r}), 'f32'), Path({str(tmp_path / 'm.gguf')!r}))\n"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[1]) / 1024 < 300 + 1.5 * 57


def test_shards_and_one_file_are_the_same(tmp_path: Path) -> None:
    whole = convert(checkpoints.write(tmp_path / "whole", "qwen3-moe"))
    folder = checkpoints.write(tmp_path / "shards", "qwen3-moe")
    (folder / "model.safetensors").unlink()
    tensors = list(checkpoints.tensors("qwen3-moe").items())
    shards = {f"model-0000{i + 1}-of-00003.safetensors": dict(tensors[i::3]) for i in range(3)}
    for name, part in shards.items():
        checkpoints.write_safetensors(folder / name, part)
    index = {"metadata": {}, "weight_map": {t: name for name, part in shards.items() for t in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert tensor_digest(convert(folder)) == tensor_digest(whole)
    index["weight_map"]["model.more"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModelFile, match=r"a file lacks 'model.more'"):
        gguf.plan(folder, "auto")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="model-00002-of-00003"):
        gguf.plan(folder, "auto")


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("wanted", ["f32", "f16", "bf16", "q8_0", "auto"])
def test_types(stored: str, wanted: str, tmp_path: Path) -> None:
    import gguf as package

    path = convert(checkpoints.write(tmp_path, "llama-yarn", dtype=stored), wanted)
    header = read_header(path)
    found = {t.name: t.type for t in header.tensors}
    kind = {"auto": "BF16" if stored == "BF16" else "F16"}.get(wanted, wanted.upper())
    assert found["blk.0.ffn_up.weight"] == kind and found["blk.0.attn_norm.weight"] == "F32"
    original = checkpoints._as(checkpoints.tensors("llama-yarn")["model.layers.0.mlp.up_proj.weight"], stored)
    exact = (original.astype(np.uint32) << 16).view(np.float32) if stored == "BF16" else original.astype(np.float32)
    expected = package.quants.quantize(exact, package.GGMLQuantizationType[kind])
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_up.weight")
    assert path.read_bytes()[tensor.offset : tensor.offset + tensor.size] == expected.tobytes()


def test_what_is_no_number_cannot_be_quantized(tmp_path: Path) -> None:
    """Blocks share a scale: numpy would warn, and write what looks like weights."""
    folder = checkpoints.write(tmp_path, "llama-yarn")
    tensors = checkpoints.tensors("llama-yarn")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(BadModelFile, match="blk.0.ffn_up.weight has elements that are no numbers"):
        convert(folder, "q8_0")
    assert not (folder / "model.gguf").exists()


def test_numbers_that_float16_cannot_hold_are_an_error(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path, "llama-yarn")
    tensors = checkpoints.tensors("llama-yarn")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = 1e6
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(BadModelFile, match="blk.0.ffn_up.weight has numbers that are too large for float16"):
        convert(folder, "f16")
    assert not (folder / "model.gguf").exists()
    convert(folder, "bf16")


def test_an_output_that_is_tied_is_left_out(tmp_path: Path) -> None:
    """Some savers write lm_head.weight all the same; transformers does not look at it."""
    folder = checkpoints.write(tmp_path, "llama-tied-linear")
    tensors = checkpoints.tensors("llama-tied-linear")
    checkpoints.write_safetensors(
        folder / "model.safetensors", tensors | {"lm_head.weight": np.ones((288, 64), dtype=np.float32)}
    )
    assert "output.weight" not in [t.name for t in read_header(convert(folder)).tensors]


def older(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4 writes for a configuration of version 5."""
    found = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    found["torch_dtype"] = config["dtype"]
    rope = dict(config["rope_parameters"])
    if "full_attention" in rope:
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    found["rope_theta"] = rope.pop("rope_theta")
    if (partial := rope.pop("partial_rotary_factor", None)) is not None:
        found["rotary_pct" if config["model_type"] == "gpt_neox" else "partial_rotary_factor"] = partial
    if rope.pop("rope_type") != "default":
        found["rope_scaling"] = {"type" if "factor" in rope else "rope_type": config_type(config), **rope}
    return found


def config_type(config: dict[str, Any]) -> str:
    rope = config["rope_parameters"]
    return str(rope.get("full_attention", rope)["rope_type"])


@pytest.mark.parametrize("name", [n for n in checkpoints.NAMES if "rope_parameters" in checkpoints.case(n)["config"]])
def test_both_versions_of_transformers_convert_alike(name: str, tmp_path: Path) -> None:
    new = convert(checkpoints.write(tmp_path / "new", name))
    config = older(checkpoints.case(name)["config"])
    old = convert(checkpoints.write(tmp_path / "old", name, config=config))
    assert tensor_digest(old) == tensor_digest(new)
    assert described(read_header(old)) == described(read_header(new))


def described(header: Header) -> dict[str, Any]:
    return {key: value for key, value in header.metadata.items() if not key.startswith("general.")}


def test_nomics_own_configuration_converts_alike(tmp_path: Path) -> None:
    config = {
        "architectures": ["NomicBertModel"], "auto_map": {"AutoModel": "x--modeling.NomicBertModel"},
        "activation_function": "swiglu", "causal": False, "n_embd": 64, "n_head": 4, "n_inner": 96, "n_layer": 2,
        "n_positions": 8192, "max_trained_positions": 2048, "layer_norm_epsilon": 1e-12, "prenorm": False,
        "qkv_proj_bias": False, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
        "type_vocab_size": 2, "model_type": "nomic_bert",
    }  # fmt: skip
    new = convert(checkpoints.write(tmp_path / "new", "nomic-bert"))
    old = convert(checkpoints.write(tmp_path / "old", "nomic-bert", config=config))
    assert tensor_digest(old) == tensor_digest(new)
    differ = {k for k, v in described(read_header(old)).items() if v != read_header(new).metadata.get(k)}
    assert differ == {"nomic-bert.context_length"}
    assert read_header(old).metadata["nomic-bert.context_length"] == 2048


def test_a_model_in_a_larger_one(tmp_path: Path) -> None:
    """Gemma 3 with its vision part: half of the configuration is silent, the tensors have another prefix."""
    case = checkpoints.case("gemma3")
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": case["config"], "vision_config": {}}
    folder = checkpoints.write(tmp_path / "larger", "gemma3", config=config)
    tensors = {n.replace("model.", "language_model.model."): t for n, t in checkpoints.tensors("gemma3").items()}
    tensors |= {"vision_tower.x.weight": np.ones((4, 4), np.float32), "multi_modal_projector.y": np.ones(4, np.float32)}
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    plan = gguf.plan(folder, "f32")
    assert plan.notices == ("its vision part is left out",)
    gguf.write(plan, folder / "m.gguf")
    assert tensor_digest(folder / "m.gguf") == tensor_digest(
        convert(checkpoints.write(tmp_path / "a", "gemma3"), "f32")
    )


def test_the_card_and_the_licence_travel(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "cache" / "0123abcd", "llama-yarn")
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- no\nbase_model: owner/base-7B\ntags: [chat]\n---\n# Hello\n"
    )
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "top_p": "high"}')
    gguf.write(gguf.plan(folder, "f16", "owner/Thing-Instruct"), folder / "m.gguf")
    metadata = read_header(folder / "m.gguf").metadata
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.languages"] == ("en", "no")
    assert metadata["general.name"] == "Thing Instruct"
    assert metadata["general.finetune"] == "Instruct"
    assert metadata["general.base_model.0.repo_url"].endswith("owner/base-7B")
    assert metadata["general.sampling.top_k"] == 20 and abs(metadata["general.sampling.temp"] - 0.6) < 1e-6
    assert "0123abcd" not in repr(metadata)


@pytest.mark.parametrize(
    "card", ["---\n[:\n---\n", "---\nlicense: {a: [1]}\nbase_model: [[]]\n---\n", "\0", "---\nlanguage: 5\n"]
)
def test_a_card_that_makes_no_sense_is_passed_over(card: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "Thing", "llama-yarn")
    (folder / "README.md").write_text(card)
    assert read_header(convert(folder)).metadata["general.name"]


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path, "llama-yarn")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadModelFile, match="only in pickles") as raised:
        gguf.plan(folder, "auto")
    assert "safetensors" in raised.value.hint


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    config = {
        **checkpoints.case("llama-yarn")["config"],
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    folder = checkpoints.write(tmp_path / "own", "llama-yarn", config=config)
    (folder / "modeling_own.py").write_text(f"open({str(witness)!r}, 'w')")
    with pytest.raises(UnknownArchitecture, match=r"Python code in the checkpoint \(auto_map\): it is never run"):
        gguf.plan(folder, "auto")
    config["architectures"] = ["LlamaForCausalLM"]  # one that is known needs none of it
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder)
    assert not witness.exists()


def test_an_architecture_that_is_not_converted_is_named(tmp_path: Path) -> None:
    for name, message in {
        "MambaForCausalLM": "llama.cpp runs the architecture MambaForCausalLM, but this version does not convert it",
        "CLIPVisionModelX": "the architecture CLIPVisionModelX is not converted, and llama.cpp is not known to run it",
    }.items():
        config = {**checkpoints.case("llama-yarn")["config"], "architectures": [name]}
        with pytest.raises(UnknownArchitecture, match=message):
            gguf.plan(checkpoints.write(tmp_path, "llama-yarn", config=config), "auto")
    assert "LlamaForCausalLM" in known() and "MambaForCausalLM" not in known()


REFUSED = {
    "llama-yarn": [{"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "dynamic"}}, {"num_hidden_layers": 3},
                   {"num_attention_heads": 7}, {"num_attention_heads": 0}, {"hidden_size": "64"}, {"head_dim": -1},
                   {"rms_norm_eps": None, "hidden_size": 1 << 40}, {"rope_parameters": [1]}, {"architectures": []},
                   {"quantization_config": {"quant_method": "gptq"}}, {"num_hidden_layers": 1 << 30},
                   {"rope_parameters": {"rope_type": "llama3", "factor": 0, "low_freq_factor": 1, "high_freq_factor": 4}}],
    "smollm3": [{"no_rope_layers": [1, 1, 1, 1]}, {"use_sliding_window": True}],
    "qwen3-moe": [{"norm_topk_prob": False}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}],
    "gemma2": [{"query_pre_attn_scalar": 224}, {"layer_types": ["full_attention"] * 4}],
    "gemma3": [{"attn_logit_softcapping": 50.0}, {"use_bidirectional_attention": True}],
    "qwen2": [{"is_causal": False}],
    "gpt2": [{"scale_attn_by_inverse_layer_idx": True}],
    "falcon-7b": [{"alibi": True}, {"parallel_attn": False}],
    "phi4-mini-long": [{"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}],
    "bert": [{"position_embedding_type": "relative_key"}],
    "nomic-bert": [{"prenorm": True}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, changes in REFUSED.items() for c in changes])
def test_what_llama_cpp_would_compute_otherwise_is_refused(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    config = {**checkpoints.case(name)["config"], **change}
    with pytest.raises((BadModelFile, UnknownArchitecture)):
        convert(checkpoints.write(tmp_path, name, config=config))
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.embed_tokens.weight"), "no token embeddings"),
        (lambda t: t.pop("model.layers.0.mlp.experts.1.up_proj.weight"), "some number is missing"),
        (lambda t: t.update({"model.layers.0.mlp.experts.1.up_proj.weight": np.ones((2, 2), "f4")}), "differ in shape"),
        (lambda t: t.update({"model.layers.0.mlp.surprise.weight": np.ones((2, 2), "f4")}), "has no place in a GGUF"),
        (lambda t: t.update({"layers.0.input_layernorm.weight": np.ones(64, "f4")}), "two tensors"),
    ],
)
def test_tensors_that_do_not_belong_together(change: Any, message: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path, "qwen3-moe")
    tensors = checkpoints.tensors("qwen3-moe")
    change(tensors)
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(BadModelFile, match=message):
        gguf.plan(folder, "auto")


@pytest.mark.slow
def test_damaged_checkpoints_become_errors(tmp_path: Path) -> None:
    """Cut or overwritten anywhere: an error, or a file of which nobody can tell."""
    whole = checkpoints.write(tmp_path / "whole", "llama-yarn")
    draw = np.random.RandomState(0)
    for number in range(200):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        victim = folder / draw.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
        data = bytearray(victim.read_bytes())
        where = draw.randint(0, min(len(data), 6000))
        if draw.randint(2):
            del data[where:]
        else:
            data[where] = draw.randint(256)
        victim.write_bytes(data)
        try:
            read_header(convert(folder))
        except LocalLLMError:
            assert not list(folder.glob("*.gguf")) and not list(folder.glob(".*.part"))
        shutil.rmtree(folder)


# The command


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "tiny-model", "llama-yarn", dtype="BF16")
    done = subprocess.run([*COMMAND, "convert", str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny-model-BF16.gguf\n", "")
    again = subprocess.run([*COMMAND, "convert", str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and "tiny-model-BF16.gguf exists (--force replaces it" in again.stderr
    before = (tmp_path / "tiny-model-BF16.gguf").stat().st_ino
    forced = subprocess.run([*COMMAND, "convert", str(folder), "--force"], cwd=tmp_path, capture_output=True, text=True)
    assert forced.returncode == 0 and (tmp_path / "tiny-model-BF16.gguf").stat().st_ino != before
    answer = localllm("run", "-m", str(tmp_path / "tiny-model-BF16.gguf"), "a", "-n", "3", "--ignore-eos")
    assert answer.returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("missing",), 3, "the catalogue has no missing"),
        (("./missing",), 3, "no such folder: missing"),
        (("{gguf}",), 1, "is a GGUF, not a checkpoint"),
        (("{folder}", "--dtype", "q4_0"), 2, "--dtype q4_0: the types are f32, f16, bf16, q8_0 and auto"),
        (("{folder}", "--to", "safetensors"), 2, "--to safetensors"),
        (("{folder}", "-o", "{folder}"), 2, "is not a regular file"),
        (("{folder}", "-o", "{folder}/no/such/x.gguf"), 2, "there is no folder"),
        (("{empty}",), 3, "it has no config.json"),
    ],
)
def test_wrong_words(words: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "folder", "llama-yarn")
    (tmp_path / "empty").mkdir()
    places = {"folder": folder, "empty": tmp_path / "empty", "gguf": folder / "x.gguf"}
    (folder / "x.gguf").write_bytes(b"GGUF")
    done = localllm("--offline", "convert", *(word.format(**places) for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def start(folder: Path, target: Path, **how: Any) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "convert", str(folder), "--dtype", "f32", "-o", str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def begun(target: Path) -> None:
    """Wait until something is being written beside a target."""
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 1 << 20 for p in target.parent.glob(".*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_conversion_leaves_no_half_file(signal_: int, smollm2: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    process = start(smollm2, target)
    begun(target)
    process.send_signal(signal_)
    _, said = process.communicate()
    assert process.returncode == (130 if signal_ == signal.SIGINT else -signal_), said
    assert not target.exists()
    left = list(tmp_path.glob(".*.part"))
    assert bool(left) == (signal_ == signal.SIGKILL)
    again = start(smollm2, target)
    assert again.communicate()[1] == b"" and again.returncode == 0
    assert read_header(target).parameters > 134_000_000
    assert not list(tmp_path.glob(".*.part")), "what the killed one left is gone"


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1000, 1 << 20, 100 << 20])
def test_a_write_that_fails_leaves_nothing(limit: int, smollm2: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails the write that passes it, as a full disk does."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(smollm2, tmp_path / "model.gguf", preexec_fn=limited)
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.decode().startswith(f"localllm: File too large: {tmp_path}/model.gguf") and said.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full(smollm2: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount namespaces")
    program = " ".join([*COMMAND, "convert", str(smollm2), "--dtype", "f32", "-o", f"{disk}/m.gguf"])
    script = f"""
        mount -t tmpfs -o size=100m none {disk}
        {program} && exit 9
        mount -t tmpfs -o size=600m none {disk}
        (while ! ls {disk}/.*.part >/dev/null 2>&1; do sleep 0.01; done
         head -c 500000000 /dev/zero > {disk}/other 2>/dev/null || true) &
        {program} && exit 9
        wait; ls -A {disk}
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-euc", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("localllm: m.gguf needs 513 MiB, and") and "100 MiB left" in first
    assert second == f"localllm: No space left on device: {disk}/m.gguf"
    assert done.stdout == "other\n"
