"""A converted adapter does to a converted base what its matrices, added to the base's weights, do."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.engines.scorer import Scorer
from localllm.errors import BadModelFile, LocalLLMError
from localllm.types import EngineOptions
from tests.support import checkpoints
from tests.support.command import localllm

EXACT: dict[str, Any] = {"context": 128, "cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off"}
PARTS = {"llama-tied-linear": ("q_proj", "k_proj", "v_proj", "down_proj"), "phi3": ("qkv_proj", "gate_up_proj"),
         "gptneox": ("query_key_value", "dense"), "falcon-40b": ("query_key_value",), "qwen3": ("q_proj", "o_proj")}  # fmt: skip


def adapt(folder: Path, name: str, settings: dict[str, Any], ranks: dict[str, int]) -> dict[str, np.ndarray]:
    """Write an adapter of a case's base; returns what it adds to each weight, by PEFT's rule."""
    tensors, added = {}, {}
    for weight, shape in checkpoints.case(name)["shapes"].items():
        if not any(f".{part}.weight" in weight for part in PARTS[name]):
            continue
        module = weight.removesuffix(".weight")
        rank = next((r for pattern, r in ranks.items() if module.endswith(pattern)), settings["r"])
        a = checkpoints.weights(f"{module}.A", (rank, shape[1]))
        b = checkpoints.weights(f"{module}.B", (shape[0], rank)) * 0.3
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        alpha = next(
            (v for p, v in settings.get("alpha_pattern", {}).items() if module.endswith(p)), settings["lora_alpha"]
        )
        added[weight] = b @ a * (alpha / (np.sqrt(rank) if settings.get("use_rslora") else rank))
    folder.mkdir()
    checkpoints.write_safetensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    return added


def logits(path: Path, tokens: list[int], *adapters: str) -> np.ndarray:
    options = EngineOptions(**EXACT, lora=adapters)
    with closing(Scorer(path, options, gpu_layers=0, threads=1)) as model:
        model.open_scoring(64, 0)
        return model.score([tokens])[0].copy()


@pytest.mark.parametrize("name", PARTS)
def test_an_adapter_adds_its_product(name: str, tmp_path: Path) -> None:
    base = checkpoints.write(tmp_path / "base", name)
    added = adapt(tmp_path / "adapter", name, {"r": 4, "lora_alpha": 8}, {})
    assert added
    _check(base, tmp_path / "adapter", name, added, tmp_path)


def test_ranks_alphas_and_rank_stabilization(tmp_path: Path) -> None:
    name = "llama-tied-linear"
    base = checkpoints.write(tmp_path / "base", name)
    settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"v_proj": 3}, "use_rslora": True}
    added = adapt(tmp_path / "adapter", name, settings, {"k_proj": 2})
    _check(base, tmp_path / "adapter", name, added, tmp_path)


def _check(base: Path, adapter: Path, name: str, added: dict[str, np.ndarray], folder: Path) -> None:
    tokens = checkpoints.case(name)["tokens"]
    gguf.write(gguf.plan(base, "f32"), folder / "base.gguf")
    gguf.write(gguf.plan_lora(adapter, base, "auto"), folder / "adapter.gguf")
    tensors = {
        n: checkpoints.weights(n, tuple(shape)) + added.get(n, 0)
        for n, shape in checkpoints.case(name)["shapes"].items()
    }
    checkpoints.write_safetensors(base / "model.safetensors", {n: t.astype(np.float32) for n, t in tensors.items()})
    gguf.write(gguf.plan(base, "f32"), folder / "merged.gguf")
    plain, merged = logits(folder / "base.gguf", tokens), logits(folder / "merged.gguf", tokens)
    adapted = logits(folder / "base.gguf", tokens, str(folder / "adapter.gguf"))
    assert np.abs(merged - plain).max() > 0.05, "an adapter that does nothing proves nothing"
    assert np.abs(adapted - merged).max() < 1e-3
    half = logits(folder / "base.gguf", tokens, f"{folder / 'adapter.gguf'}:0.5")
    assert 0.01 < np.abs(half - plain).max() < np.abs(merged - plain).max()
    none = logits(folder / "base.gguf", tokens, f"{folder / 'adapter.gguf'}:0")
    assert np.abs(none - plain).max() < 1e-6


@pytest.mark.slow
def test_the_command_and_run(tmp_path: Path) -> None:
    name = "llama-tied-linear"
    base = checkpoints.write(tmp_path / "base", name)
    adapt(tmp_path / "adapter", name, {"r": 4, "lora_alpha": 80, "base_model_name_or_path": str(base)}, {})
    made = localllm("convert", str(tmp_path / "adapter"), "--lora", "-o", str(tmp_path / "a.gguf"))
    assert (made.returncode, made.stdout) == (0, f"{tmp_path / 'a.gguf'}\n")
    assert localllm("convert", str(base), "-o", str(tmp_path / "b.gguf")).returncode == 0
    greedy = ("run", "-m", str(tmp_path / "b.gguf"), "abc", "-n", "12", "--temperature", "0", "--ignore-eos")
    plain = localllm(*greedy)
    adapted = localllm(*greedy, "--lora", str(tmp_path / "a.gguf"))
    assert plain.returncode == adapted.returncode == 0
    assert plain.stdout != adapted.stdout
    for wrong in (tmp_path / "b.gguf", tmp_path / "missing.gguf"):
        failed = localllm(*greedy, "--lora", str(wrong))
        assert failed.returncode in (1, 3) and str(wrong) in failed.stderr and failed.stderr.count("\n") == 1


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = checkpoints.write(tmp_path / "base", "qwen3")
    other = checkpoints.write(tmp_path / "other", "llama-tied-linear")
    adapt(tmp_path / "adapter", "qwen3", {"r": 4, "lora_alpha": 8}, {})
    gguf.write(gguf.plan_lora(tmp_path / "adapter", base, "f16"), tmp_path / "a.gguf")
    gguf.write(gguf.plan(other, "f16"), tmp_path / "other.gguf")
    with pytest.raises(LocalLLMError, match="arch mismatch"):
        logits(tmp_path / "other.gguf", [1] * 64, str(tmp_path / "a.gguf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_alpha": "high"}, "lora_alpha is 'high'"),
    ],
)
def test_other_adapters_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = checkpoints.write(tmp_path / "base", "qwen3")
    adapt(tmp_path / "adapter", "qwen3", {"r": 4, "lora_alpha": 8} | change, {}) if "lora_alpha" not in change else None
    if "lora_alpha" in change:
        adapt(tmp_path / "adapter", "qwen3", {"r": 4, "lora_alpha": 8}, {})
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **change}))
    with pytest.raises(BadModelFile, match=message):
        gguf.plan_lora(tmp_path / "adapter", base, "auto")


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    base = checkpoints.write(tmp_path / "base", "qwen3")
    adapt(tmp_path / "adapter", "qwen3", {"r": 4, "lora_alpha": 8}, {})
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(BadModelFile, match="pickle"):
        gguf.plan_lora(tmp_path / "adapter", base, "auto")
