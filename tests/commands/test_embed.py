"""`localllm embed` as a user runs it: every output, every input, and one line for whatever is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from localllm.convert import gguf
from localllm.convert.onnx import export
from tests.support import checkpoints, masked
from tests.support.command import COMMAND, Terminal, localllm, on_a_full_disk

TEXTS = ["the cat", 'a, "dog"\u20ac', "in the house"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small BERT with pooling, prompts and a limit noted beside it, as ONNX."""
    place = tmp_path_factory.mktemp("bert")
    folder = masked.write_checkpoint(place / "checkpoint")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "in ", "document": "the "}}')
    export.write(export.plan(folder), place / "model")
    return str(place / "model")


def rows(*words: str, **options: str) -> list[list[float]]:
    done = localllm("embed", *words, "--json", **options)
    assert done.returncode == 0, done.stderr
    found: list[list[float]] = json.loads(done.stdout)["embeddings"]
    return found


@pytest.mark.slow
def test_every_format_has_the_same_numbers(model: str, tmp_path: Path) -> None:
    expected = rows("-m", model, *TEXTS)
    lines = localllm("embed", "-m", model, *TEXTS)
    assert [[float(n) for n in line.split()] for line in lines.stdout.splitlines()] == expected
    objects = [json.loads(line) for line in localllm("embed", "-m", model, *TEXTS, "--jsonl").stdout.splitlines()]
    assert [o["embedding"] for o in objects] == expected
    assert [(o["index"], o["text"]) for o in objects] == list(enumerate(TEXTS))
    table = list(csv.reader(io.StringIO(localllm("embed", "-m", model, *TEXTS, "--csv").stdout)))
    assert table[0] == ["text", *map(str, range(64))] and [row[0] for row in table[1:]] == TEXTS
    assert [[float(n) for n in row[1:]] for row in table[1:]] == expected
    for ending in ("npy", "json", "jsonl", "csv"):
        target = tmp_path / f"v.{ending}"
        done = localllm("embed", "-m", model, *TEXTS, "-o", str(target))
        assert done.stdout == f"{target}\n" and done.stderr == ""
    array = np.load(tmp_path / "v.npy")
    assert array.dtype == np.float32 and np.array_equal(array, np.array(expected, np.float32))
    assert np.allclose(np.linalg.norm(array, axis=1), 1)
    assert (tmp_path / "v.csv").read_text() == localllm("embed", "-m", model, *TEXTS, "--csv").stdout


@pytest.mark.slow
def test_lines_of_a_file_and_of_standard_input(model: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffthe cat\r\n\nin the house".encode())
    expected = rows("-m", model, "the cat", "", "in the house")
    assert rows("-m", model, "--file", str(path)) == expected
    assert rows("-m", model, input="the cat\n\nin the house\n") == expected
    assert rows("-m", model, "-f", "-", input="the cat\n\nin the house\n") == expected


@pytest.mark.slow
def test_the_first_word_may_be_the_model(model: str) -> None:
    assert rows(model, "the cat") == rows("-m", model, "the cat")


@pytest.mark.slow
def test_prefixes_and_lengths_of_vectors(model: str) -> None:
    assert rows("-m", model, "cat", "--query") == rows("-m", model, "in cat")
    assert rows("-m", model, "cat", "--passage") == rows("-m", model, "the cat")
    assert rows("-m", model, "cat", "--prefix", "a ") == rows("-m", model, "a cat")
    raw, unit = np.array(rows("-m", model, "cat", "--no-normalize")[0]), np.array(rows("-m", model, "cat")[0])
    assert not np.isclose(np.linalg.norm(raw), 1) and np.allclose(raw / np.linalg.norm(raw), unit)


@pytest.mark.slow
def test_similarity(model: str) -> None:
    done = localllm("embed", "-m", model, "the cat", "the cat", "in the house", "--similarity")
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["1", "2", "3", "text"] and lines[2].endswith("  in the house")
    assert lines[0].split()[1:3] == ["1.0000", "1.0000"]
    found = json.loads(localllm("embed", "-m", model, "the cat", "in the house", "--similarity", "--json").stdout)
    vectors = np.array(rows("-m", model, "the cat", "in the house"))
    assert np.abs(np.array(found["similarity"]) - vectors @ vectors.T).max() < 1e-6


@pytest.mark.slow
def test_too_long_is_an_error_or_cut_as_asked(model: str, tmp_path: Path) -> None:
    long = "the cat " * 40
    done = localllm("embed", "-m", model, "cat", long, "-o", str(tmp_path / "v.npy"))
    assert done.returncode == 2 and "text 2 has 122 tokens and the model takes 32 (--truncate" in done.stderr
    assert not list(tmp_path.iterdir())
    assert rows("-m", model, long, "--truncate") == rows("-m", model, "the cat " * 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "--csv", "x"], "--json and --csv: which of them?"),
        (["--query", "--passage", "x"], "--query and --passage"),
        (["-o", "v.txt", "x"], "the ending tells no format"),
        (["-o", "/nowhere/v.npy", "x"], "there is no folder /nowhere"),
        (["--similarity", "--csv", "x"], "--similarity prints a table"),
        (["--pooling", "sum", "x"], "--pooling sum: choose mean, cls, last, max"),
        (["--file", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--file", "nowhere.txt", "x"], "texts and --file"),
    ],
)
def test_what_cannot_be_understood(words: list[str], message: str, model: str) -> None:
    done = localllm("embed", "-m", model, *words)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr and done.stderr.count("\n") == 1


def test_bytes_that_are_no_text(model: str) -> None:
    done = localllm("embed", "-m", model, input=b"good\nbad \xff\n")
    assert done.returncode == 2 and "standard input is not UTF-8 text (byte 0xff in line 2)" in done.stderr


@pytest.mark.slow
def test_an_encoder_is_sent_to_embed(tmp_path: Path) -> None:
    """llama.cpp would end the process."""
    path = tmp_path / "bert.gguf"
    gguf.write(gguf.plan(checkpoints.write(tmp_path / "bert", "bert"), "f32"), path)
    for words in (
        ["run", "-m", str(path), "hi"],
        ["evaluate", str(path)],
        ["bench", str(path)],
        ["imatrix", str(path)],
    ):
        done = localllm(*words)
        assert done.returncode == 1 and "is an encoder: it makes embeddings" in done.stderr, words
        assert "localllm embed" in done.stderr and done.stderr.count("\n") == 1
    assert len(rows("-m", str(path), "the")[0]) == 64


def test_whoever_reads_may_go_away(model: str) -> None:
    process = subprocess.run(
        f"yes the cat | {' '.join(COMMAND)} embed -m {model} --jsonl | head -2", shell=True, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert len(process.stdout.splitlines()) == 2 and process.stderr == ""


def test_on_a_terminal_a_vector_is_a_line(model: str) -> None:
    with Terminal("embed", "-m", model, "the 你好", "x" * 200, "\x1b[31mred") as terminal:
        text = terminal.wait(lambda text: "red" in text)
        assert terminal.exit_code() == 0
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 3 and all(len(line) <= 80 and line.endswith("… (64 numbers)") for line in lines)
    assert b"\x1b[31m" not in terminal.raw
    assert len({cell_len(line) for line in lines}) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(model: str, tmp_path: Path) -> None:
    """40,000 texts would be 10 MB of numbers, and their JSON 35 MB."""
    code = (
        "import resource, sys; from localllm.cli import app\n"
        f"sys.argv = ['localllm', 'embed', '-m', {model!r}, '--jsonl', '-f', sys.argv[1]]\n"
        "try:\n    app()\nfinally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, file=sys.stderr)\n"
    )
    peaks = []
    for count in (2_000, 40_000):
        (tmp_path / "texts").write_text("the\n" * count)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "texts")],
            capture_output=True,
            text=True,
        )
        assert done.stdout.count("\n") == count
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] < peaks[0] + 15


@pytest.mark.parametrize("words", [(), ("--jsonl", "--file", os.devnull), ("-o", "out.npy", "--file", "-")])
def test_no_text_is_an_error(words: tuple[str, ...]) -> None:
    done = localllm("embed", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no text" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["npy", "jsonl"])
def test_a_disk_that_is_full(ending: str, model: str, tmp_path: Path) -> None:
    target = tmp_path / f"vectors.{ending}"
    done = on_a_full_disk("embed", "-m", model, "a", "b", "-o", str(target))
    assert (done.returncode, done.stderr) == (1, f"localllm: File too large: {target}\n")
    assert list(tmp_path.iterdir()) == []
