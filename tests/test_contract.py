"""README's section "In scripts", line by line: every bullet and every exit code has a test that is named for it."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import COMMAND, Terminal, localllm

pytestmark = pytest.mark.usefixtures("home")
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("### In scripts")[2].partition("\n### ")[0]
BULLETS = [re.match(r"- \*\*(.+?)\*\*", line) for line in SECTION.splitlines() if line.startswith("- ")]
CODES = [int(code) for code in re.findall(r"^\| (\d+) \|", SECTION, re.M)]
FAKE = ("run", "--engine", "fake", "-m")


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """A file that the fake engine answers with."""

    def write(text: str) -> str:
        path = tmp_path / "script"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_every_line_has_a_test() -> None:
    names = {name.removeprefix("test_line_") for name in globals() if name.startswith("test_line_")}
    lines = {re.sub(r"\W+", "_", bullet[1].lower()).strip("_") for bullet in BULLETS if bullet}
    assert len(BULLETS) == len(lines) and None not in BULLETS
    assert lines == names
    codes = {int(name.removeprefix("test_code_")) for name in globals() if name.startswith("test_code_")}
    assert set(CODES) == codes


# The lines


@pytest.mark.slow
def test_line_stdout(script: Callable[[str], str]) -> None:
    done = localllm(*FAKE, script("The answer"), "x", "--verbose", FORCE_COLOR="1")
    assert (done.returncode, done.stdout) == (0, "The answer\n")
    assert "answer 11 tokens" in done.stderr
    for words in (("--color", "never"), ("--color=never",)):
        with Terminal("--help", *words) as terminal:
            assert terminal.exit_code() == 0
            assert b"\x1b[" not in terminal.raw
    with Terminal("--help") as terminal:
        assert terminal.exit_code() == 0
        assert b"\x1b[" in terminal.raw
    assert "\x1b[" not in localllm("--help").stdout
    assert "\x1b[" in localllm("--help", "--color", "always", NO_COLOR="1").stdout
    assert "--color: 'pink' is none of auto, always, never" in localllm("--help", "--color", "pink").stderr


def test_line_errors() -> None:
    done = localllm("run", "-m", "/none.gguf", "Hi")
    assert re.fullmatch(r"localllm: no such file: /none\.gguf \(.+\)\n", done.stderr)
    assert "Traceback (most recent call last)" in localllm("--debug", "run", "-m", "/none.gguf", "Hi").stderr


@pytest.mark.slow
def test_line_quiet(tmp_path: Path, without_template: Path) -> None:
    words = ("run", "-m", str(without_template), "x", "-n", "1")
    assert "has no chat template" in localllm(*words).stderr
    for quiet in (("--quiet",), ("-q",)):
        done = localllm(*words, *quiet)
        assert (done.returncode, done.stderr) == (0, "")
    assert localllm(*words, LOCALLLM_QUIET="1").stderr == ""
    empty = str(tmp_path / "empty")
    for command in (["list"], ["prune", "--yes"], ["alias"]):
        assert localllm(*command, LOCALLLM_HOME=empty).stderr, command
        assert localllm(*command, "--quiet", LOCALLLM_HOME=empty).stderr == "", command
    assert localllm("run", "-q", "-m", "/none.gguf", "x").stderr.count("\n") == 1


@pytest.mark.slow
def test_line_json() -> None:
    words = ("run", "Tell me of the sea.", "-n", "6", "--temperature", "1")
    done = localllm(*words, "--json")
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    found = json.loads(done.stdout)
    assert set(found) == {
        "text", "thinking", "finish_reason", "usage", "timings", "seed", "model", "model_sha256", "engine",
    }  # fmt: skip
    assert set(found["usage"]) == {
        "prompt_tokens", "reused_tokens", "completion_tokens", "drafted_tokens", "accepted_tokens",
    }  # fmt: skip
    assert (found["finish_reason"], found["usage"]["completion_tokens"]) == ("length", 6)
    assert (found["thinking"], found["model"], found["engine"]) == (None, "smollm2:135m", "llama.cpp")
    timings = found["timings"]
    assert 0 < timings["load"] < timings["total"] and 0 < timings["time_to_first_token"] < timings["total"]
    assert timings["prompt_tokens_per_second"] > 0 and timings["completion_tokens_per_second"] > 0
    again = localllm(*words, "--seed", str(found["seed"]))
    assert again.stdout == found["text"] + "\n", "the seed that is told reproduces the answer"


@pytest.mark.slow
def test_line_jsonl() -> None:
    words = ("run", "Tell me of the sea.", "-n", "6", "--seed", "5")
    lines = [json.loads(line) for line in localllm(*words, "--jsonl").stdout.splitlines()]
    *pieces, last = lines
    whole = json.loads(localllm(*words, "--json").stdout)
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert all(set(piece) == {"text", "kind", "token"} and piece["kind"] == "answer" for piece in pieces)
    assert set(last) == set(whole) - {"text", "thinking"}
    assert localllm(*words, "--jsonl", "--json").returncode == 2


@pytest.mark.slow
def test_line_logprobs_n() -> None:
    words = ("run", "Tell me of the sea.", "-n", "4", "--temperature", "0")
    found = json.loads(localllm(*words, "--json", "--logprobs", "3").stdout)
    assert "".join(place["text"] for place in found["logprobs"]) == found["text"]
    for place in found["logprobs"]:
        top = [each["logprob"] for each in place["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and sum(map(math.exp, top)) < 1
        assert place["token"] == place["top_logprobs"][0]["token"], "greedy takes the likeliest"
        assert bytes(place["bytes"]).decode() == place["text"]
    lines = localllm(*words, "--jsonl", "--logprobs", "0").stdout.splitlines()
    assert json.loads(lines[0])["logprobs"] == found["logprobs"][0] | {"top_logprobs": []}
    assert localllm(*words, "--logprobs", "3").returncode == 2


@pytest.mark.slow
def test_on_a_terminal_a_cut_is_told(script: Callable[[str], str]) -> None:
    words = ("run", "--engine", "fake", "-m", script("a long answer"), "-n", "3", "ask")
    for more, told in (((), True), (("--quiet",), False)):
        with Terminal(*words, *more) as terminal:
            assert terminal.exit_code() == 0
            assert ("(cut: the limit of tokens was reached)" in terminal.text) == told
    assert localllm(*words).stderr == ""


@pytest.mark.slow
def test_line_stop_text(script: Callable[[str], str]) -> None:
    path = script("one two three")
    assert localllm(*FAKE, path, "x", "--stop", " th", "--strict").stdout == "one two\n"
    cut = localllm(*FAKE, path, "x", "-n", "7")
    assert (cut.returncode, cut.stdout) == (0, "one two\n")
    strict = localllm(*FAKE, path, "x", "-n", "7", "--strict")
    assert (strict.returncode, strict.stdout) == (5, "one two\n")


@pytest.mark.slow
def test_line_prefill_text() -> None:
    begin = "The three primary colours are:\n\n1."
    done = localllm("run", "Name the primary colours.", "-n", "5", "--prefill", begin, "--temperature", "0")
    assert done.stdout.startswith(begin) and len(done.stdout) > len(begin) + 3
    whole = json.loads(localllm("run", "Name the colours.", "-n", "2", "--prefill", begin, "--json").stdout)
    assert whole["text"].startswith(begin) and whole["usage"]["completion_tokens"] == 2


@pytest.mark.slow
def test_line_repeat_n(script: Callable[[str], str]) -> None:
    assert localllm(*FAKE, script("a\nb"), "x", "--repeat", "3").stdout == "a\nb\n\na\nb\n\na\nb\n"
    words = ("run", "Tell me of the sea.", "-n", "6", "--temperature", "2", "--seed", "7", "--json")
    found = [json.loads(line) for line in localllm(*words, "--repeat", "3").stdout.splitlines()]
    assert [each["seed"] for each in found] == [7, 8, 9]
    assert len({each["text"] for each in found}) > 1
    reused = [each["usage"]["reused_tokens"] for each in found]
    assert reused == [0] + [found[0]["usage"]["prompt_tokens"] - 1] * 2, "the prompt is computed once"
    assert json.loads(localllm(*words[:-3], "--seed", "9", "--json").stdout)["text"] == found[2]["text"]


@pytest.mark.slow
def test_line_system_text() -> None:
    greedy = ("run", "Who are you?", "-n", "8", "--temperature", "0")
    answers = [localllm(*greedy, *more).stdout for more in ((), ("--system", "You are a pirate."), ("--no-template",))]
    assert len(set(answers)) == 3
    assert localllm(*greedy, "--template", "none").stdout == answers[2]


@pytest.mark.slow
def test_line_schema_file_json(tmp_path: Path, script: Callable[[str], str]) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    done = localllm("run", "Invent a person.", "--schema", str(tmp_path / "schema.json"), "--seed", "1", "-n", "99")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert set(found) == {"name", "age"} and len(found["name"]) <= 12 and found["age"] <= 99
    text = script('{"name": "Al", "age": 1000}')
    given = (*FAKE, text, "x", "--schema", json.dumps(schema))
    assert json.loads(localllm(*given).stdout)["name"] == "Al"
    cut = localllm(*given, "-n", "3", "--json")
    assert (cut.returncode, json.loads(cut.stdout)["finish_reason"]) == (5, "length")
    (tmp_path / "g.gbnf").write_text('root ::= "<" [a-z]{3} ">"', encoding="utf-8")
    for words in (("--grammar", str(tmp_path / "g.gbnf")), ("--regex", "<[a-z]+>"), ("--choice", "<abc>,<abd>")):
        assert localllm(*FAKE, script("<abc>!"), "x", *words).stdout == "<abc>\n", words
    assert localllm(*FAKE, text, "x", "--choice", "a,b", "--choice", "c,d").stdout in ("a,b\n", "c,d\n")
    least = '{"minProperties": 2, "additionalProperties": {"type": "integer"}}'
    twice = localllm(*FAKE, script('{"a":1,"a":2}'), "x", "--schema", least)
    assert twice.returncode == 5 and "names a property of an object twice" in twice.stderr
    listed = re.search(r"cannot be held to \((.+?)`unevaluated", SECTION, re.S)
    assert listed
    for keyword in re.findall(r"`(\w+)`", listed[1]):
        refused = localllm("run", "x", "--schema", json.dumps({keyword: {}}))
        assert refused.returncode == 2 and keyword in refused.stderr, keyword
    wrong = localllm("run", "x", "--schema", '{"type": "object", "propertis": {}}')
    assert wrong.returncode == 2 and "'propertis'" in wrong.stderr
    for words in (
        ("--schema", "/none.json"),
        ("--grammar", "/dev/null"),
        ("--regex", "("),
        ("--regex", "a", "--choice", "b"),
    ):
        assert localllm("run", "x", *words).returncode == 2, words


@pytest.mark.slow
def test_line_timeout_seconds(script: Callable[[str], str]) -> None:
    endless = script("on and on " * 1_500_000)
    seconds, said = 1, ""
    while not said and seconds < 100:  # however long this machine takes to start
        seconds *= 2
        done = localllm(*FAKE, endless, "x", "-c", "16000000", "--timeout", str(seconds))
        said = done.stdout
        assert (done.returncode, done.stderr) == (
            124,
            f"localllm: not finished after {seconds} seconds (a larger --timeout gives it more)\n",
        )
    assert said.startswith("on and on ")
    assert localllm(*FAKE, script("soon"), "x", "--timeout", "60").stdout == "soon\n"


# The exit codes


def code(*words: str, **environment: str) -> int:
    return localllm(*words, **environment).returncode


def test_code_0(script: Callable[[str], str]) -> None:
    assert code(*FAKE, script("yes"), "x") == 0


def test_code_1(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert code("run", "-m", str(tmp_path / "broken.gguf"), "x") == 1


@pytest.mark.slow
def test_code_2() -> None:
    assert code("run", "x", "--top-p", "7") == code("run", "x", LOCALLLM_TOP_P="7") == code("run") == 2


@pytest.mark.slow
def test_code_3() -> None:
    assert code("run", "-m", "/none.gguf", "x") == code("run", "-m", "no-such:name", "x") == 3
    assert code("show", "no-such:name") == 3


def test_code_4() -> None:
    assert code("run", "x " * 100, "-c", "64") == 4


def test_code_5(script: Callable[[str], str]) -> None:
    done = localllm(*FAKE, script("123456789"), "x", "--regex", "[0-9]{9}", "-n", "5")
    assert (done.returncode, done.stdout) == (5, "12345\n")
    assert "before it had the form of --regex (more --max-tokens" in done.stderr
    done = localllm(*FAKE, script("123456789"), "x", "--regex", "[0-9]{9}", "--stop", "6")
    assert (done.returncode, done.stdout) == (5, "12345\n")
    assert "before it had the form of --regex (without --stop " in done.stderr
    assert code(*FAKE, script("123456789"), "x", "--regex", "[0-9]{9}") == 0


@pytest.mark.slow
def test_code_124() -> None:
    """While it waits for its input, which no model is needed for."""
    with start("run", "--timeout", "1") as process:
        assert process.wait(timeout=30) == 124


def ended_by(number: int, expected: int) -> None:
    """In the middle of an answer: what was said until then is whole on stdout, and nothing is on stderr."""
    with start("run", "Tell me a long story.", "--ignore-eos") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.close()
        first = process.stdout.read(20)
        process.send_signal(number)
        assert process.wait(timeout=30) == expected
        assert len(first) == 20 and first.isascii()
        assert process.stderr.read() == b""


@pytest.mark.slow
def test_code_130() -> None:
    ended_by(signal.SIGINT, 130)


@pytest.mark.slow
def test_code_143() -> None:
    ended_by(signal.SIGTERM, 143)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_to_be_ignored_is_ignored(number: int) -> None:
    """As a shell starts what runs in the background, and nohup."""
    command = f"trap '' {signal.Signals(number).name[3:]}; exec " + " ".join(COMMAND)
    words = " run Story --ignore-eos -n 40 --temperature 0 </dev/null"
    with subprocess.Popen(["bash", "-c", command + words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(5)
        process.send_signal(number)
        rest = process.stdout.read()
        assert (process.wait(timeout=60), (first + rest).count(b"\n") > 0) == (0, True)


@pytest.mark.slow
def test_code_141() -> None:
    line = " ".join(COMMAND) + " run Story --ignore-eos </dev/null | head -c 20"
    done = subprocess.run(["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}} >&2"], capture_output=True, timeout=60)
    assert (len(done.stdout), done.stderr) == (20, b"141\n")


def start(*words: str) -> subprocess.Popen[Any]:
    return subprocess.Popen(
        [*COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
