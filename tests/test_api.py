"""localllm from Python: the same answers as the command line, one call at a time, and safe to show in a notebook."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import localllm
from localllm import load
from localllm.api import Model, Seen
from localllm.convert import gguf
from localllm.errors import ModelNotFound, UsageError
from tests.support import checkpoints, command, notebook
from tests.support.vocabulary_file import strip_weights

NOTEBOOK = Path(__file__).parents[1] / "docs" / "inside.ipynb"


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[Model]:
    with load(model_path, context=512) as opened:
        yield opened


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Model]:
    """Answers with the same hostile text every time."""
    (tmp_path / "script").write_text('</div><script>alert("1")</script> & so on')
    with load(tmp_path / "script", engine="fake") as opened:
        yield opened


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(model_path: Path) -> None:
    names, outputs = notebook.run(NOTEBOOK)
    stored = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(stored) == len(outputs) and all(cell["execution_count"] for cell in stored)
    shown = [output.html for output in outputs if output.html]
    assert sum("<svg" in one for one in shown) == 1 and sum("<span" in one for one in shown) == 3
    printed = "".join(output.printed for output in outputs)
    assert "'it' looks at 'cat' with " in printed and "' Tokyo' was the greatest surprise" in printed
    assert names["seen"].weights.shape == (30, 9, 11, 11)
    assert repr(names["model"]) == "<localllm model smollm2:135m, closed>"


@pytest.mark.slow
def test_it_answers_as_the_command_line_does(model: Model, model_path: Path) -> None:
    words = ("run", "-m", str(model_path), "Who are you?", "-n", "8", "--temperature", "0")
    answer = model.chat("Who are you?", max_tokens=8, temperature=0)
    assert answer + "\n" == command.localllm(*words).stdout
    assert (answer.usage.completion_tokens, answer.finish, answer.thinking) == (8, "length", "")
    assert "".join(model.stream([{"role": "user", "content": "Who are you?"}], max_tokens=8, temperature=0)) == answer
    assert model.chat("Who are you?", system="You are a pirate.", max_tokens=8, temperature=0) != answer


def test_a_text_goes_on_without_a_template(model: Model) -> None:
    text = model.generate("The capital of France is", max_tokens=3, temperature=0)
    assert text.startswith(" Paris")
    assert "".join(model.stream("The capital of France is", plain=True, max_tokens=3, temperature=0)) == text
    cut = model.generate("One, two,", max_tokens=9, temperature=0, stop=",")
    assert cut and "," not in cut and cut.finish == "stop"


def test_tokens_probabilities_attention(model: Model) -> None:
    found = model.tokenize("Hi <|im_end|>")
    assert found.ids == [26843, 216, 2] and [token.text for token in found] == ["Hi", " ", "<|im_end|>"]
    assert "&lt;|im_end|&gt;" in found._repr_html_() and "3 tokens" in found._repr_html_()
    assert len(model.tokenize("Hi", chat=True)) > 8 and len(model.tokenize("<|im_end|>", special=False)) > 1
    explained = model.explain("The capital of France is Paris.", more=2, temperature=0)
    assert explained.steps[5].rank == 1 and [step.generated for step in explained.steps[-2:]] == [True, True]
    assert "perplexity" in explained._repr_html_()
    seen = model.attention("The cat sat", layer=3)
    assert seen.weights.shape == (1, 9, 3, 3) and np.abs(seen.weights.sum(axis=-1) - 1).max() < 1e-3
    assert seen._repr_html_().startswith("<svg") and seen.svg(3, 2).count('class="cell"') == 6
    assert seen.html("a <b>").startswith("<!doctype html>") and "a &lt;b&gt;" in seen.html("a <b>")


def test_a_long_text_is_no_picture() -> None:
    long = Seen((5,) * 300, (b"x",) * 300, (False,) * 300, (3,), np.zeros((1, 2, 300, 300), np.float32))
    assert "<svg" not in long._repr_html_() and "too many for a picture" in long._repr_html_()
    with pytest.raises(UsageError, match="a picture has room for 256"):
        long.svg()


def test_a_vocabulary_alone_tokenizes(tmp_path: Path, model_path: Path) -> None:
    with load(strip_weights(model_path, tmp_path / "v.gguf")) as opened:
        assert opened.tokenize("Hello world").ids == [19556, 905]


def test_vectors(tmp_path: Path) -> None:
    gguf.write(gguf.plan(checkpoints.write(tmp_path / "bert", "bert"), "f32"), tmp_path / "bert.gguf")
    with load(tmp_path / "bert.gguf") as opened:
        with pytest.warns(UserWarning, match="no pooling"):
            many = opened.embed(["one", "two words"])
        one = opened.embed("two words")
    assert many.ndim == 2 and one.shape == many.shape[1:] and np.abs(many[1] - one).max() < 1e-5
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)


def test_hostile_output_is_escaped(scripted: Model) -> None:
    answer = scripted.chat("x")
    assert "<script>" in answer and "<script>" not in answer._repr_html_()
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; so on</div>" in answer._repr_html_()


def test_an_open_stream_is_told_and_a_dropped_one_ends(scripted: Model) -> None:
    stream = scripted.stream("x")
    assert next(stream)
    with pytest.raises(UsageError, match="a stream of this model is still open"):
        scripted.chat("x")
    stream.close()
    assert scripted.chat("x")
    for _ in scripted.stream("x"):
        break
    assert scripted.chat("x")


def test_threads_take_turns(model: Model) -> None:
    expected = model.chat("Who are you?", max_tokens=6, temperature=0)
    found: list[str] = []

    def ask() -> None:
        found.append(model.chat("Who are you?", max_tokens=6, temperature=0))
        model.tokenize("Hi")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [expected] * 4


def test_errors(scripted: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        load(tmp_path / "missing.gguf")
    with pytest.raises(UsageError, match=r"chat\(\) has no option 'temprature'") as raised:
        scripted.chat("x", temprature=0)
    assert raised.value.hint == "temperature?"
    with pytest.raises(UsageError, match=r"load\(\) has no option 'max_tokens'"):
        load(tmp_path / "script", engine="fake", max_tokens=3)
    with pytest.raises(UsageError, match="--temperature"):
        scripted.chat("x", temperature=-1)
    with pytest.raises(UsageError, match="a message has the role 'robot'"):
        scripted.chat([{"role": "robot", "content": "x"}])
    scripted.close()
    with pytest.raises(UsageError, match="was closed"):
        scripted.chat("x")
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        _ = localllm.lood


def test_a_notice_is_a_warning(without_template: Path) -> None:
    with load(without_template, context=64) as opened, pytest.warns(UserWarning, match="no chat template"):
        opened.chat("Once upon a time", max_tokens=1)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, localllm; print([m for m in sys.modules if m.startswith('localllm')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['localllm']\n"
