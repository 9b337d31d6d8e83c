"""`localllm batch`: the whole program over real files, killed and begun again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localllm.convert.onnx import export
from localllm.errors import LocalLLMError
from localllm.formats.onnx import read_model
from localllm.hub.digest import fingerprint
from localllm.jobs.batch import Batch, Recipe, fill
from localllm.jobs.rows import Errors, Output, Row
from localllm.protocols import Key
from localllm.types import Chunk, Limits, Message, Request, Sampling, Usage
from tests.support import masked, tiny_onnx
from tests.support.command import COMMAND, Terminal, localllm
from tests.support.gguf_files import split


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_fields() -> None:
    assert fill('{a} {{a}} { b } {"a": {"c": 1}} {}', {"a": "x", "b": [1, "ü"]}) == 'x {a} [1, "ü"] {"a": {"c": 1}} {}'
    assert fill("{a}", {"a": "{a}"}) == "{a}"
    with pytest.raises(LocalLLMError, match=r"no field named 'c', only 'a', 'b'") as caught:
        fill("{c}", {"a": 1, "b": 2})
    assert "{{c}}" in caught.value.hint


def test_what_a_row_asks() -> None:
    def messages(fields: dict[str, Any], prompt: str | None = None, system: str | None = None) -> tuple[Message, ...]:
        return Recipe("m", prompt, system, Sampling(), Limits()).request(Row(1, fields)).messages

    assert messages({"text": "t"}) == (Message("user", "t"),)
    assert messages({"text": "t", "prompt": "p"}) == (Message("user", "p"),)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert messages({"messages": talk}) == (Message("user", "a"), Message("assistant", "b"))
    assert messages({"to": "de"}, "P", "To {to}") == (Message("system", "To de"), Message("user", "P"))
    for wrong in ({}, {"messages": "x"}, {"messages": [{"role": "tool", "content": "x"}]}, {"messages": [1]}):
        with pytest.raises(LocalLLMError):
            messages(wrong)


@pytest.mark.slow
def test_rows_that_fail_are_listed_and_tried_again(tmp_path: Path) -> None:
    script, source, out, errors = (tmp_path / n for n in ("script", "in.jsonl", "out.jsonl", "errors.jsonl"))
    script.write_text("Yes.")
    source.write_text(
        '{"id": "a", "q": "1"}\nnonsense\n{"id": "b"}\n{"id": "c", "q": "' + "x" * 9000 + '"}\n{"q": 5}\n'
    )
    words = [
        "batch",
        str(source),
        "--engine",
        "fake",
        "-m",
        str(script),
        "--prompt",
        "Is {q} a number?",
        "-o",
        str(out),
    ]
    done = localllm(*words, "--errors", str(errors))
    assert done.returncode == 1
    assert "3 of 5 rows failed, the first: row 2: it is not JSON" in done.stderr
    assert done.stdout == ""
    assert [(r["id"], r["text"], r["finish"]) for r in lines(out)] == [("a", "Yes.", "stop"), (5, "Yes.", "stop")]
    assert [r["id"] for r in lines(errors)] == [2, "b", "c"]
    source.write_text('{"id": "a", "q": "1"}\n{"q": 2}\n{"id": "b", "q": 3}\n\n{"q": 5}\n')
    again = localllm(*words, "--errors", str(errors))
    assert again.returncode == 0, again.stderr
    assert "2 were done before" in again.stderr
    assert [r["id"] for r in lines(out)] == ["a", 5, 2, "b"]
    assert lines(errors) == []
    other = localllm(*words, "-n", "2")
    assert other.returncode == 2
    assert "was made from another input" in other.stderr


def test_a_row_that_failed_keeps_none_from_the_disk(tmp_path: Path) -> None:
    """It is tried again at once, and those after it are written before the rows have ended."""
    out, failing, seen = tmp_path / "out.jsonl", {"2"}, list[int]()

    def rows() -> Iterator[Row]:
        for number in range(1, 6):
            seen.append(out.read_bytes().count(b"\n"))
            yield Row(number, {"text": str(number)})

    def answers(requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, list[Chunk] | LocalLLMError]]:
        for key, request in requests:
            text = request.messages[0].content
            if text in failing:
                failing.remove(text)
                yield key, LocalLLMError("once")
            else:
                yield key, [Chunk(text, finish="stop", usage=Usage(1, 0, 1, 0.1, 0.1))]

    with Output(out) as output, Errors(None) as errors:
        Batch(Recipe("m", None, None, Sampling(), Limits()), output, errors, lambda _: None).run(rows(), answers)
    assert seen == [0, 1, 2, 3, 4]
    assert output.written == 5 and errors.count == 0


def test_answers_without_their_form_fail(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('{"a": 1, "a": 2}')
    words = ["batch", "-", "--engine", "fake", "-m", str(script), "--schema", '{"type": "object", "minProperties": 2}']
    done = localllm(*words, input="x\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the answer does not have its form: " in done.stderr


def test_pipes(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("Yes.")
    words = ["batch", "-", "--engine", "fake", "-m", str(script)]
    done = localllm(*words, "--format", "csv", "--prompt", "{q}", "--quiet", input="q\n1\n2\n")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["Yes.", "Yes."]
    assert (done.returncode, done.stderr) == (0, "")
    assert localllm(*words, input="").returncode == 0
    words[1] = "/dev/stdin"  # as `<(command)` is, it can be read once
    done = localllm(*words, "-o", "-", input="1\n2\n")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["Yes.", "Yes."]


def test_another_model_of_that_name_and_size_is_another(tmp_path: Path) -> None:
    """As all models.onnx of one architecture have, their weights being in the file beside them."""
    first, second = (tiny_onnx.write(tmp_path / name, "own") for name in ("a", "b"))
    assert fingerprint(first) == fingerprint(second)
    data = read_model(second).external[0]
    data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))
    assert second.stat().st_size == first.stat().st_size and fingerprint(first) != fingerprint(second)
    script, out = tmp_path / "script", tmp_path / "out"
    words = ["batch", "-", "--engine", "fake", "-m", str(script), "-o", str(out)]
    for text, code in (("Yes.", 0), ("Not.", 2), ("Yes.", 0)):
        script.write_text(text)
        done = localllm(*words, input="x")
        assert done.returncode == code, done
    assert lines(out)[0]["text"] == "Yes."


def test_shards_are_all_a_part_of_the_model(tmp_path: Path, model_path: Path) -> None:
    first, last = split(model_path, tmp_path, "model", 2)
    found = fingerprint(first)
    data = last.read_bytes()
    half = len(data) // 2  # tensors, as training would change them
    last.write_bytes(data[:half] + bytes(byte ^ 1 for byte in data[half:]))
    assert fingerprint(first) != found


def test_a_template_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    script, template, out = tmp_path / "script", tmp_path / "template", tmp_path / "out"
    script.write_text("Yes.")
    words = ["batch", "-", "--engine", "fake", "-m", str(script), "-o", str(out), "--template"]
    other = f"{tmp_path}/./template"  # the same file, called otherwise
    own = "{{ messages[0].content }}"
    for name, text, code in ((str(template), own, 0), (str(template), "No.", 2), (other, own, 0)):
        template.write_text(text)
        assert localllm(*words, name, input="x").returncode == code, text
    assert len(lines(out)) == 1


def test_what_cannot_be_read_or_goes_on_otherwise_empties_nothing(tmp_path: Path) -> None:
    script, out, errors = tmp_path / "script", tmp_path / "out", tmp_path / "errors"
    failed = '{"id": 1, "error": "none"}\n'
    script.write_text("Yes.")
    errors.write_text(failed)
    words = ["--engine", "fake", "-m", str(script), "-o", str(out), "--errors", str(errors)]
    for source in (tmp_path / "none", tmp_path):
        done = localllm("batch", str(source), *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "cannot be read" in done.stderr
    assert not out.exists()
    source = tmp_path / "rows"
    source.write_text("x\n")
    assert localllm("batch", str(source), *words).returncode == 0
    errors.write_text(failed)
    assert localllm("batch", str(source), *words, "--system", "another").returncode == 2
    assert errors.read_text() == failed
    assert localllm("batch", str(source), *words[:-1], "-").returncode == 2


def test_a_file_that_is_called_as_standard_input_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script").write_text("Yes.")
    Path("-").write_text("a\nb\n")
    done = localllm("batch", "-", "--engine", "fake", "-m", "script", input="x\n")
    assert [row["text"] for row in map(json.loads, done.stdout.splitlines())] == ["Yes."]


@pytest.mark.slow
def test_no_file_is_two_at_once(tmp_path: Path) -> None:
    """What failed, given as input again with the same --errors, was emptied before it was read."""
    script, source, link = tmp_path / "script", tmp_path / "in", tmp_path / "link"
    script.write_text("Yes.")
    source.write_text('{"id": 1, "error": "none"}\n')
    link.symlink_to(source)
    words = ["batch", str(source), "--engine", "fake", "-m", str(script)]
    for more in (("--errors", str(link)), ("-o", str(link)), ("-o", "new", "--errors", "./new")):
        done = localllm(*words, *more)
        assert done.returncode == 2 and "are the same file" in done.stderr, more
    assert source.read_text() == '{"id": 1, "error": "none"}\n'
    assert localllm(*words, "-o", "/dev/null", "--errors", "/dev/null").returncode == 0


@pytest.mark.slow
def test_a_second_process_leaves_the_errors_of_the_first(tmp_path: Path) -> None:
    script, out, errors = tmp_path / "script", tmp_path / "out", tmp_path / "errors"
    script.write_text("Yes.")
    errors.write_text('{"id": 1, "error": "none"}\n')
    with Output(out):
        done = localllm(
            "batch", "-", "--engine", "fake", "-m", str(script), "-o", str(out), "--errors", str(errors), input="x"
        )
    assert done.returncode == 2 and "another process is writing" in done.stderr
    assert errors.read_text() == '{"id": 1, "error": "none"}\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.jsonl"], "missing.jsonl cannot be read"),
        (["-", "--format", "xml"], "the formats are"),
        (["-", "--prompt", "a", "--prompt-file", "b"], "both"),
        (["-", "--prompt-file", "missing"], "missing cannot be read"),
        (["-", "-o", "no/such/out"], "there is no folder"),
        (["-", "--embed", "--choice", "a,b"], "--choice is for answers"),
    ],
)
def test_usage(words: list[str], message: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("Yes.")
    done = localllm("batch", *words, "--engine", "fake", "-m", str(script))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_killed_and_begun_again(tmp_path: Path, model_path: Path) -> None:
    """kill -9 twice in mid-run, then to the end: every row once, in order, with the text of an unbroken run."""
    source, out, whole = (tmp_path / n for n in ("in.txt", "out.jsonl", "whole.jsonl"))
    source.write_text("".join(f"Write about the number {i}.\n" for i in range(12)))
    words = ["batch", str(source), "-m", str(model_path), "-t", "1", "-n", "8", "--temperature", "0", "--parallel", "2"]
    counts = []
    for _ in range(2):
        process = subprocess.Popen([*COMMAND, *words, "-o", str(out)], stderr=subprocess.DEVNULL)
        before, end = counts[-1] if counts else 0, time.monotonic() + 60
        while time.monotonic() < end and (not out.exists() or out.read_bytes().count(b"\n") <= before):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(out.read_bytes().count(b"\n"))
    assert 0 < counts[0] < counts[1] < 12
    with out.open("ab") as file:
        file.write(b'{"id": 12, "key": "0')
    assert localllm(*words, "-o", str(out)).returncode == 0
    assert [r["id"] for r in lines(out)] == list(range(1, 13))
    assert localllm(*words, "-o", str(whole)).returncode == 0
    same = sum(a == b for a, b in zip(lines(out), lines(whole), strict=True))
    assert same >= 9  # batches of other sizes round differently in the last bit


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_waits_for_rows(number: int, code: int, model_path: Path) -> None:
    """The first one: from a pipe that stays open, rows may never come."""
    words = [*COMMAND, "batch", "-", "-m", str(model_path), "-n", "2", "--parallel", "2"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        first = process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert json.loads(first)["id"] == 1 and process.stderr.read() == b""


@pytest.mark.slow
def test_on_a_terminal(tmp_path: Path, model_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("Write a long story.\n" * 8)
    words = ["batch", str(source), "-m", str(model_path), "-o", str(out), "-t", "1", "-n", "80", "--ignore-eos"]
    with Terminal(*words, "--parallel", "2") as terminal:
        terminal.wait(lambda screen: "2/8 rows" in screen and "tokens/s" in screen)
        terminal.interrupt()
        assert terminal.exit_code() == 130
        assert "the same command goes on from there" in terminal.text
    assert 2 <= len(lines(out)) < 8


@pytest.mark.slow
def test_vectors_instead_of_answers(tmp_path: Path) -> None:
    folder = masked.write_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    export.write(export.plan(folder), tmp_path / "model")
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("id,word\na,cat\nb,house\nc," + "dog " * 50 + "\n")
    words = ["batch", str(source), "--embed", "-m", str(tmp_path / "model"), "--prompt", "the {word}", "-o", str(out)]
    done = localllm(*words)
    assert done.returncode == 1
    assert "1 of 3 rows failed, the first: row 'c'" in done.stderr
    assert [r["id"] for r in lines(out)] == ["a", "b"]
    whole = localllm("embed", "-m", str(tmp_path / "model"), "the cat", "the house", "--json")
    for row, expected in zip(lines(out), json.loads(whole.stdout)["embeddings"], strict=True):
        assert row["embedding"] == pytest.approx(expected, abs=1e-5)
    source.write_text("id,word\na,cat\nb,house\nc,dog\n")
    assert localllm(*words).returncode == 0
    assert [r["id"] for r in lines(out)] == ["a", "b", "c"]
