"""What a model thought of a text: against transformers, against its own definition, and side by side."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.convert.onnx import export
from localllm.engines import open_text_model
from localllm.engines.scorer import Scorer
from localllm.errors import ContextOverflow, UsageError
from localllm.formats.gguf import read_header
from localllm.jobs import compare, quantize
from localllm.jobs import explain as job
from localllm.jobs.explain import Candidate, Explanation, Step, collect, explain
from localllm.types import EngineOptions, Sampling
from localllm.ui import heat
from tests.support import checkpoints, tiny_onnx
from tests.support.command import Terminal, localllm

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "inside.npz")
PRECISE = EngineOptions(cache_type_k="f32", cache_type_v="f32", flash_attention="off")
TEXT = "The capital of France is Paris."


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[Scorer]:
    with closing(open_text_model(model_path, PRECISE)) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    gguf.write(gguf.plan(checkpoints.write(folder / "tiny", "llama-yarn"), "f32"), folder / "tiny.gguf")
    return folder / "tiny.gguf"


@pytest.mark.slow
def test_log_probabilities_are_transformers(precise_path: Path) -> None:
    with closing(open_text_model(precise_path, PRECISE)) as opened:
        tokens = opened.tokenize(str(REFERENCE["text"]), begin=True)
        assert tokens == REFERENCE["ids"].tolist()
        found = collect(explain(opened, tokens, top=20))
    ours = np.array([step.logprob for step in found.steps[1:]])
    assert np.abs(ours - REFERENCE["logprobs"]).max() < 1e-3
    for tops, ids, logprobs in zip(
        [*(step.top for step in found.steps[1:]), found.following],
        REFERENCE["top_ids"],
        REFERENCE["top_logprobs"],
        strict=True,
    ):
        assert np.abs(np.log([one.probability for one in tops]) - logprobs).max() < 1e-3
        expected = dict(zip(ids.tolist(), logprobs.tolist(), strict=True))
        assert all(one.token in expected or math.log(one.probability) - logprobs[-1] < 1e-3 for one in tops)


@pytest.mark.slow
def test_the_two_engines_agree(precise_path: Path, tmp_path: Path) -> None:
    export.write(export.plan(precise_path.parent / "checkpoint", "f32"), tmp_path / "onnx")
    with closing(open_text_model(tmp_path / "onnx", PRECISE)) as opened:
        tokens = opened.tokenize(str(REFERENCE["text"]), begin=True)
        assert tokens == REFERENCE["ids"].tolist()
        found = collect(explain(opened, tokens))
    ours = np.array([step.logprob for step in found.steps[1:]])
    assert np.abs(ours - REFERENCE["logprobs"]).max() < 1e-3  # llama.cpp's are as near, so they are within 1e-2
    with closing(open_text_model(precise_path, PRECISE)) as opened:
        other = collect(explain(opened, tokens))
    assert np.abs(ours - [step.logprob or 0.0 for step in other.steps[1:]]).max() < 1e-2


@pytest.mark.slow
def test_onnx_models(tmp_path: Path) -> None:
    model = tiny_onnx.write(tmp_path / "tiny", "own")
    found = json.loads(localllm("tokenize", "-m", str(model), "Hi there", "--json").stdout)
    assert b"".join(bytes(token["bytes"]) for token in found["tokens"] if not token["special"]) == b"Hi there"
    words = ("explain", "-m", str(model), "Hi there", "--json")
    told = json.loads(localllm(*words, "--continue", "2", "--temperature", "0").stdout)
    assert [token["id"] for token in told["tokens"][:-2]] == [token["id"] for token in found["tokens"]]
    assert [token["rank"] for token in told["tokens"][-2:]] == [1, 1]
    both = json.loads(localllm(*words, "--compare", str(model)).stdout)
    assert both["mean_kld"] == pytest.approx(0, abs=1e-6)
    done = localllm(*words, "--attention")
    assert done.returncode == 2 and "an ONNX graph keeps its own to itself (name the model as a GGUF)" in done.stderr


def test_every_figure_is_its_definition(model: Scorer) -> None:
    tokens = model.tokenize(TEXT, begin=True)
    found = collect(explain(model, tokens, top=4))
    model.open_text(len(tokens), len(tokens))
    logits = model.read(tokens).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    first, *rest = found.steps
    assert (first.logprob, first.rank, first.entropy, first.top) == (None, None, None, ())
    for step, token, row in zip(rest, tokens[1:], logprobs, strict=False):
        assert step.token == token and step.logprob == pytest.approx(row[token], abs=1e-4)
        assert step.rank == (row > row[token]).sum() + 1
        assert step.entropy == pytest.approx(-(np.exp(row) * row).sum() / math.log(2), rel=1e-4)
        assert [one.token for one in step.top] == np.argsort(-row)[:4].tolist()
        assert step.probability == pytest.approx(2**-step.surprisal)
    assert [one.token for one in found.following] == np.argsort(-logprobs[-1])[:4].tolist()
    losses = [-row[token] for token, row in zip(tokens[1:], logprobs, strict=False)]
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / len(TEXT[3:].encode()), rel=1e-4)


def test_a_text_in_pieces_is_the_text(model: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of 8 positions at a time give what those of all at once give."""
    tokens = model.tokenize(TEXT * 4, begin=True)
    whole = collect(explain(model, tokens))
    monkeypatch.setattr(job, "_LOGITS_BYTES", 1)
    pieces = collect(explain(model, tokens))
    assert len(pieces.steps) == len(tokens) > 24
    for one, other in zip(whole.steps[1:], pieces.steps[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.05)  # other kernels for other batches


def test_what_the_model_adds(model: Scorer) -> None:
    tokens = model.tokenize("One two three four", begin=True)
    greedy = Sampling(temperature=0)
    found = collect(explain(model, tokens, more=4, sampling=greedy))
    added = [step for step in found.steps if step.generated]
    assert len(added) == 4 and [step.rank for step in added] == [1] * 4
    assert [step.token for step in added] == [step.top[0].token for step in added]
    whole = collect(explain(model, [step.token for step in found.steps]))
    for one, other in zip(found.steps[1:], whole.steps[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.05)
    assert found.following[0].token == whole.following[0].token
    assert found.perplexity == collect(explain(model, tokens)).perplexity


def test_an_answer_ends_where_the_model_ends_it(model: Scorer) -> None:
    (end,) = model.tokenize("<|im_end|>", begin=False)
    sampling = Sampling(temperature=0, logit_bias=(f"{end}=1000",))
    found = collect(explain(model, model.tokenize("Hi", begin=True), more=9, sampling=sampling))
    assert [(step.token, step.special) for step in found.steps if step.generated] == [(end, True)]


def test_limits(model: Scorer) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        collect(explain(model, []))
    with pytest.raises(ContextOverflow, match="9001 tokens long and the context holds 8192"):
        collect(explain(model, [5] * 9001))
    assert len(collect(explain(model, [504])).steps) == 1


@pytest.mark.slow
def test_two_quantizations(model: Scorer, model_path: Path, tmp_path: Path) -> None:
    worse = tmp_path / "worse.gguf"
    quantize.quantize(model_path, worse, "Q2_K", quantize.Choice(requantize=True), lambda done, total: None)
    tokens = model.tokenize(str(REFERENCE["text"]), begin=True)
    with closing(open_text_model(worse, PRECISE)) as other:
        found = compare.compare(model, other, tokens, list, top=3)
    assert [pair.data for pair in found.pairs] == [step.data for step in found.first.steps]
    assert any(pair.parts for pair in found.pairs)
    assert [step.logprob for step in found.first.steps] == [
        step.logprob for step in collect(explain(model, tokens)).steps
    ]
    assert found.mean_divergence is not None and found.mean_divergence > 0.1


def steps(*data: bytes, special: tuple[int, ...] = (), loss: float = 1.0) -> Explanation:
    top = (Candidate(0, b"?", 0.5),)
    return Explanation([
        Step(i, one, i in special, logprob=-loss if i else None, rank=2, entropy=1.0, top=top if i else ())
        for i, one in enumerate(data)
    ])  # fmt: skip


def test_other_tokenizers_are_aligned_by_bytes() -> None:
    one = steps(b"<s>", b"ab", b"c", b"\xf0\x9f", b"\x98\x80", b"d", special=(0,))
    two = steps(b" a", b"bc", b"\xf0\x9f\x98\x80d", b"</s>", special=(3,), loss=3.0)
    pairs = list(compare.align(one, two))
    assert [([s.data for s in p.first], [s.data for s in p.second]) for p in pairs] == [
        ([b"<s>", b"ab", b"c"], [b" a", b"bc"]),
        ([b"\xf0\x9f", b"\x98\x80", b"d"], [b"\xf0\x9f\x98\x80d", b"</s>"]),
    ]
    bit = 1 / math.log(2)
    assert [p.bits for p in pairs] == [pytest.approx((2 * bit, 3 * bit)), pytest.approx((3 * bit, 6 * bit))]
    assert [p.parts for p in pairs] == [True, True]
    with pytest.raises(UsageError, match="different texts"):
        list(compare.align(one, steps(b"abd")))


@pytest.mark.slow
def test_the_table_and_json(model_path: Path) -> None:
    done = localllm("explain", "-m", str(model_path), TEXT, "--continue", "2", "--temperature", "0")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["token", "prob.", "rank", "bits", "entropy", "likeliest"]
    assert lines[1] == "'The'" and re.match(r"' Paris' +\d\d\.\d% +1 +\d\.\d\d +\d\.\d\d +' Paris' \d\d\.\d%", lines[6])
    assert lines[8].startswith("+ ") and lines[10].startswith("(next)")
    assert re.fullmatch(r"perplexity [\d.]+ over 6 tokens; [\d.]+ bits a token, [\d.]+ a byte", lines[11])
    done = localllm("explain", "-m", str(model_path), "--json", "--top", "2", input=TEXT)
    found = json.loads(done.stdout)
    assert found["predicted"] == 6 and len(found["tokens"]) == 7 and len(found["next"]) == 2
    assert found["tokens"][5]["piece"] == found["tokens"][5]["top"][0]["piece"] == " Paris"
    total = sum(token["logprob"] for token in found["tokens"][1:])
    assert found["perplexity"] == pytest.approx(math.exp(-total / 6))


@pytest.mark.slow
def test_a_chat_and_a_comparison(model_path: Path, tiny: Path) -> None:
    words = ("explain", "-m", str(model_path), "Hi", "--chat", "--json")
    found = json.loads(localllm(*words).stdout)
    assert "".join(token["piece"] for token in found["tokens"]).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    done = localllm(*words, "--compare", str(model_path))
    both = json.loads(done.stdout)
    assert both["mean_kld"] == pytest.approx(0, abs=1e-6) and not any(pair["part"] for pair in both["pairs"])
    done = localllm("explain", "-m", str(model_path), "France", "--compare", str(tiny))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^≠ they part at \d+ of \d+ places$", done.stdout, re.M)


@pytest.mark.slow
def test_the_heat(model_path: Path) -> None:
    with Terminal("explain", "-m", str(model_path), TEXT + "\x1b[2Jxqz", COLORTERM="truecolor") as terminal:
        assert terminal.exit_code() == 0
        row = next(y for y, line in enumerate(terminal.screen.display) if line.startswith(TEXT + "␛[2Jxqz"))
        grounds = [terminal.screen.buffer[row][x].bg for x in range(len(TEXT) + 7)]
    assert grounds[0] == "dddddd"
    assert grounds[TEXT.index("capital")] == "d73027"
    assert grounds[TEXT.index("Paris")] == "d9f0d3"
    with Terminal("explain", "-m", str(model_path), TEXT, NO_COLOR="1") as terminal:
        assert terminal.exit_code() == 0
        assert re.search(rb"\x1b\[7m capital\x1b\[0m of", terminal.raw)


@pytest.mark.slow
def test_results_that_are_no_numbers(tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    weights = next(tensor for tensor in read_header(tiny).tensors if tensor.name == "output_norm.weight")
    for value in (math.nan, math.inf):
        data[weights.offset : weights.offset + 4] = struct.pack("<f", value)
        (tmp_path / "broken.gguf").write_bytes(data)
        done = localllm("explain", "-m", str(tmp_path / "broken.gguf"), "France", "--json")
        assert (done.returncode, done.stdout) == (1, "")
        assert "the model's results are not numbers" in done.stderr and done.stderr.count("\n") == 1


def test_html_is_escaped() -> None:
    found = heat.to_html(steps(b"<b>", b'"<script>', b"\x1b&"))
    assert "<script" not in found and "<b>" not in found and "\x1b" not in found
    assert "&quot;&lt;script&gt;" in found and found.count("<span") == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "the text has no tokens"),
        (("x", "--compare", "missing.gguf"), 3, "no such file: missing.gguf"),
        (("x", "--compare", "{model}", "--continue", "2"), 2, "--continue with --compare"),
        (("x " * 60, "-c", "50"), 4, "tokens long and the context holds 50"),
        (("x", "--top", "0"), 2, "--top"),
        (("x", "--system", "y"), 2, "--system is of a chat (add --chat)"),
        (("x", "--template", "chatml"), 2, "--template is of a chat (add --chat)"),
    ],
)
def test_wrong_words(words: tuple[str, ...], code: int, message: str, model_path: Path) -> None:
    done = localllm("explain", "-m", str(model_path), *(word.format(model=model_path) for word in words))
    assert done.returncode == code and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1
