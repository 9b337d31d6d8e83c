"""Perplexity, KL divergence and importance matrices against what llama.cpp's own programs printed for the same input."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.engines.llama_cpp import open_scorer
from localllm.engines.scorer import Scorer
from localllm.errors import UsageError
from localllm.jobs import calibration, evaluate, imatrix, quantize
from localllm.types import EngineOptions
from tests.support import checkpoints
from tests.support.command import COMMAND, localllm
from tests.support.lines import lines

SUMS = json.loads((Path(__file__).parents[1] / "data" / "imatrix_sums.json").read_text())
# llama-perplexity -c 128 --chunks 8 on the lines, SmolLM2 Q4_0 (made of the Q4_1) against the Q4_1 it was made of.
PERPLEXITY, STDERR, BASE = 43.897388, 6.290298, 32.9213
DIVERGENCE, DIVERGENCE_STDERR, DIVERGENCE_P99, SAME, SAME_STDERR = 0.370678, 0.019694, 2.343455, 0.63095, 0.02152
RATIO, RATIO_STDERR = 1.341924, 0.052631


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_bytes("\n".join(lines()).encode())
    return path


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    target = tmp_path_factory.mktemp("worse") / "SmolLM2-Q4_0.gguf"
    quantize.quantize(model_path, target, "Q4_0", quantize.Choice(requantize=True), lambda done, total: None)
    return target


@pytest.mark.slow
def test_against_a_reference(worse: Path, model_path: Path, text: Path) -> None:
    done = localllm("evaluate", str(worse), "--against", str(model_path), "--text", str(text), "--ctx", "128",
                    "--chunks", "8", "--json")  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    expected = {
        "perplexity": PERPLEXITY, "perplexity_stderr": STDERR, "mean_kld": DIVERGENCE, "same_top": SAME,
        "mean_kld_stderr": DIVERGENCE_STDERR, "kld_p99": DIVERGENCE_P99, "same_top_stderr": SAME_STDERR,
        "reference_perplexity": BASE,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.005), name
    # Its base is rounded to 16 bits, and cut off at -16, which its perplexity of the base shows (32.71 for 32.92).
    assert found["ppl_ratio"] == pytest.approx(RATIO * 32.712282 / BASE, rel=0.005)
    assert found["ppl_ratio_stderr"] == pytest.approx(RATIO_STDERR, rel=0.02)
    assert (found["chunks"], found["context"], found["tokens"]) == (8, 128, 8 * 63)


@pytest.mark.slow
def test_a_model_against_itself(model_path: Path, text: Path) -> None:
    done = localllm("evaluate", str(model_path), "--against", str(model_path), "--text", str(text), "--ctx", "64",
                    "--chunks", "2", "--json")  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["mean_kld"], found["same_top"], found["ppl_ratio"]) == (0, 1, 1)


@pytest.mark.slow
def test_the_table_and_the_built_in_text(model_path: Path) -> None:
    done = localllm("evaluate", str(model_path), "--ctx", "64", "--chunks", "2")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "62 tokens in 2 chunks of 64"
    assert "perplexity" in done.stdout and "KL" not in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--ctx", "9000"), 2, "a context of 9000 tokens: the model was trained for 2 to 8192"),
        (("--text", "{short}"), 2, "one chunk takes 512"),
        (("--text", "missing.txt"), 2, "--text missing.txt cannot be read"),
        (("--against", "{tiny}", "--chunks", "1"), 2, "the vocabularies differ: 49152 tokens and 288"),
    ],
)
def test_wrong_words(words: tuple[str, ...], code: int, message: str, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    tiny = checkpoints.write(tmp_path / "tiny", "llama-yarn")
    gguf.write(gguf.plan(tiny, "f16"), tmp_path / "tiny.gguf")
    places = {"short": tmp_path / "short.txt", "tiny": tmp_path / "tiny.gguf"}
    done = localllm("evaluate", str(model_path), *(word.format(**places) for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_what_is_measured_was_not_calibrated_with() -> None:
    paragraphs = [set(t().split("\n\n")) for t in (calibration.calibration_text, calibration.evaluation_text)]
    shared = {p for p in paragraphs[0] & paragraphs[1] if len(p) > 200}
    assert not shared and min(map(len, paragraphs)) > 500


@pytest.mark.slow
def test_the_importance_matrix_is_llama_imatrixs(model_path: Path, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "i.gguf"
    done = localllm("imatrix", str(model_path), "--text", str(text), "--chunks", "2", "-o", str(target))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{target}\n", "")
    found = imatrix.read_imatrix(target)
    assert (found.datasets, found.chunks, found.chunk_size) == (["lines.txt"], 2, 512)
    assert found.sums.keys() == SUMS.keys()
    for name, (total, count) in SUMS.items():
        assert found.counts[name].tolist() == [count]
        assert found.sums[name].sum(dtype=np.float64) == pytest.approx(total, rel=1e-3), name


def test_the_importance_of_experts(tmp_path: Path) -> None:
    """A token goes to two of four experts, whose input is what the router sees."""
    folder = checkpoints.write(tmp_path / "moe", "qwen3-moe")
    gguf.write(gguf.plan(folder, "f32"), tmp_path / "moe.gguf")
    tokens = checkpoints.case("qwen3-moe")["tokens"] * 8
    with closing(Scorer(tmp_path / "moe.gguf", EngineOptions(), gpu_layers=0, threads=1)) as model:
        found = imatrix.compute(model, tokens, "x", report=lambda done, total: None)
    for layer in range(2):
        router, gate, down = (f"blk.{layer}.ffn_{n}.weight" for n in ("gate_inp", "gate_exps", "down_exps"))
        assert found.counts[router].tolist() == [512]
        assert found.counts[gate].sum() == found.counts[down].sum() == 1024
        assert found.sums[gate].shape == (4, 64) and found.sums[down].shape == (4, 48)
        assert np.allclose(found.sums[gate].sum(axis=0), 2 * found.sums[router][0], rtol=1e-4)
        assert (found.sums[gate] == found.sums[f"blk.{layer}.ffn_up_exps.weight"]).all()


def test_divergence_is_its_definition() -> None:
    draw = np.random.RandomState(0)
    p, q = (evaluate.log_probabilities(draw.standard_normal((5, 50)).astype(np.float32)) for _ in range(2))
    expected = (np.exp(p.astype(np.float64)) * (p.astype(np.float64) - q)).sum(axis=1)
    assert np.allclose(evaluate.divergence(p, q), expected, rtol=1e-5)
    assert np.allclose(np.exp(p).sum(axis=1), 1)


def test_chunks() -> None:
    assert evaluate.in_chunks(range(10), 3, 0, None) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert evaluate.in_chunks(range(10), 3, 2, 99) == [[99, 1, 2], [99, 4, 5]]
    with pytest.raises(UsageError, match="the text has 2 tokens"):
        evaluate.in_chunks(range(2), 3, 0, None)


@pytest.mark.slow
def test_a_matrix_makes_a_better_file(model_path: Path, tmp_path: Path) -> None:
    """From the checkpoint to the file with one command, and nearer to its source than without the matrix."""
    words = [*COMMAND, "quantize", str(model_path), "Q4_0", "--allow-requantize", "-q"]
    subprocess.run([*words, "-o", str(tmp_path / "plain.gguf")], check=True, capture_output=True)
    matrix = localllm("imatrix", str(model_path), "--chunks", "8", "-o", str(tmp_path / "i.gguf"))
    assert matrix.returncode == 0
    subprocess.run([*words, "--imatrix", str(tmp_path / "i.gguf"), "-o", str(tmp_path / "better.gguf")], check=True,
                   capture_output=True)  # fmt: skip
    found = {}
    for name in ("plain", "better"):
        with closing(open_scorer(tmp_path / f"{name}.gguf", EngineOptions())) as model, \
             closing(open_scorer(model_path, EngineOptions())) as reference:  # fmt: skip
            tokens = model.tokenize(calibration.evaluation_text(), begin=True, special=False)
            found[name] = evaluate.evaluate(
                model, reference, tokens, context=256, chunks=4, report=lambda done, total: None
            ).mean_kld
    assert found["better"] is not None and found["plain"] is not None and found["better"] < 0.8 * found["plain"]
