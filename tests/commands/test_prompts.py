"""`localllm prompts`, `run -p`, `run --file` and `chat -p`: what reaches the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import Terminal, localllm

# What a model is told is seen by the number of its tokens: the fake engine's are bytes.
FAKE = ("--engine", "fake", "--json", "-m")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALLLM_PROMPTS", str(tmp_path / "own"))
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "data"))
    (tmp_path / "s").write_text("Bonjour")
    return tmp_path / "own"


def told(done: object) -> int:
    return int(json.loads(done.stdout)["usage"]["prompt_tokens"])


@pytest.mark.slow
def test_list_show_path_new(own: Path) -> None:
    assert [line.split()[0] for line in localllm("prompts").stdout.splitlines()][:3] == [
        "name",
        "ask",
        "commit-message",
    ]
    assert localllm("prompts", "path").stdout == f"{own}\n"
    assert localllm("prompts", "new", "mine", "--from", "translate").stdout == f"{own / 'mine.md'}\n"
    assert localllm("prompts", "show", "mine").stdout == localllm("prompts", "show", "translate").stdout
    assert "exists" in localllm("prompts", "new", "mine").stderr
    assert localllm("prompts", "new", "fresh").returncode == 0
    (own / "bad.md").write_text("+++\n")
    found = {p["name"]: p for p in json.loads(localllm("prompts", "list", "--json").stdout)}
    assert found["mine"]["own"] and found["mine"]["parameters"]["to"]["default"] is None
    assert (
        "does not end" in found["bad"]["error"] and not found["ask"]["own"] and "tone" in found["fresh"]["parameters"]
    )
    assert localllm("prompts", "show", "../x").returncode == 2


@pytest.mark.slow
def test_edit(own: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s" "$TEXT" >> "$1"\n')
    editor.chmod(0o700)
    environment = {"VISUAL": "", "EDITOR": str(editor)}
    assert localllm("prompts", "edit", "tutor", TEXT="\nMore.", **environment).returncode == 0
    assert (own / "tutor.md").read_text().endswith("{{input}}\n\nMore.")
    done = localllm("prompts", "edit", "tutor", TEXT="{{nowhere}}", **environment)
    assert done.returncode == 2 and "is no parameter" in done.stderr and "{{nowhere}}" in (own / "tutor.md").read_text()
    assert "cannot be run" in localllm("prompts", "edit", "ask", VISUAL="/no/editor").stderr
    assert localllm("prompts", "edit", "nope", **environment).returncode == 2


@pytest.mark.slow
def test_run_with_a_prompt_and_files(own: Path, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("file\n")
    model = str(tmp_path / "s")
    system = "You are a careful translator. You answer with the translation and nothing else."
    question = "Translate the following text into French. Keep its meaning, tone and layout.\n\nHello"
    done = localllm("run", "-p", "translate", "--to", "French", *FAKE, model, input="Hello")
    assert json.loads(done.stdout)["text"] == "Bonjour"
    assert told(done) == len(f"{system}\n\n{question}")
    assert told(
        localllm("run", "-p", "translate", "--set", "to=French", "--system", "S", *FAKE, model, input="Hello")
    ) == len(f"S\n\n{question}")
    attached = f"{tmp_path}/f.txt:\n```\nfile\n```\n\nWhat?"
    assert told(localllm("run", "--file", f"{tmp_path}/*.txt", *FAKE, model, "What?")) == len(attached)
    assert told(localllm("run", "--file", f"{tmp_path}/f.txt", *FAKE, model)) == len(attached) - len("\n\nWhat?")


@pytest.mark.slow
def test_a_prompt_advises_and_the_user_decides(own: Path, tmp_path: Path) -> None:
    own.mkdir()
    (own / "short.md").write_text("+++\n[options]\nmax_tokens = 3\n+++\n")
    model = str(tmp_path / "s")
    assert localllm("run", "-p", "short", "--engine", "fake", "-m", model, "x").stdout == "Bon\n"
    assert localllm("run", "-p", "short", "-n", "5", "--engine", "fake", "-m", model, "x").stdout == "Bonjo\n"


@pytest.mark.parametrize(
    "words",
    [
        ("-p", "translate"),
        ("-p", "nope"),
        ("--to", "French"),
        ("-p", "write", "--set", "form"),
        ("-f", "missing"),
        ("-f", "/"),
    ],
)
def test_wrong_words_are_one_line(own: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = localllm("run", *words, "--engine", "fake", "-m", str(tmp_path / "s"), "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout


def test_an_overflow_has_a_code_of_its_own_and_the_numbers(own: Path, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("x" * 500)
    done = localllm("run", "-f", f"{tmp_path}/f.txt", "-c", "100", "--engine", "fake", "-m", str(tmp_path / "s"))
    assert done.returncode == 4 and "the context holds 100" in done.stderr and not done.stdout


@pytest.mark.slow
def test_an_answer_that_the_context_cuts_says_so(own: Path, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("0123456789" * 10)
    words = ("run", "-c", "60", "--engine", "fake", "-m", str(tmp_path / "s"), "count")
    done = localllm(*words)
    assert done.returncode == 0 and len(done.stdout) == 56 and "the context of 60 tokens is full" in done.stderr
    assert not localllm(*words, "-n", "5").stderr and not localllm(*words, "--quiet").stderr
    done = localllm(*words, "--on-overflow", "shift")
    assert done.stdout == "0123456789" * 10 + "\n" and not done.stderr


def test_chat_with_a_prompt(own: Path, tmp_path: Path) -> None:
    with Terminal(
        "chat", "-p", "translate", "--to", "Dutch", "--engine", "fake", "-m", str(tmp_path / "s")
    ) as terminal:
        terminal.wait(lambda t: any(line.startswith(">") for line in t.splitlines()))
        terminal.send("/system\r")
        terminal.wait(lambda t: "into Dutch" in " ".join(t.split()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "least"),
    [
        (("-p", "ask", "-f", "text", "What is there?"), 200),
        (("-p", "translate", "--to", "French", "Good morning"), 45),
        (("-p", "write", "--set", "form=a haiku", "the sea"), 30),
    ],
)
def test_the_real_model_gets_all_of_it(own: Path, model_path: Path, words: tuple[str, ...], least: int) -> None:
    text = own.parent / "text"
    text.write_text("There is a house on a hill. " * 25)
    words = tuple(str(text) if word == "text" else word for word in words)
    done = localllm("run", "-m", str(model_path), *words, "-n", "6", "-t", "1", "--seed", "1", "--json")
    assert told(done) > least and json.loads(done.stdout)["text"]


@pytest.mark.slow
def test_thinking_is_for_people_alone(own: Path, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("{% for m in messages %}{{ m.content }}{% endfor %}{# <think></think> #}")
    (tmp_path / "s").write_text("<think>\nhm \x1b[31m\n</think>\n\nHello\n")
    words = ("run", "--engine", "fake", "--template", str(tmp_path / "t"), "-m", str(tmp_path / "s"), "hi")
    done = localllm(*words)
    assert (done.stdout, done.stderr) == ("Hello\n", "")
    found = json.loads(localllm(*words, "--json").stdout)
    assert (found["text"], found["thinking"].strip()) == ("Hello\n", "hm \x1b[31m")
    for environment in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
        with Terminal(*words, **environment) as terminal:
            assert terminal.exit_code() == 0
            assert terminal.text == "hm ␛[31m\n\nHello"
            assert (b"\x1b[2m" in terminal.raw) != bool(environment)
    with Terminal(*words, "--quiet") as terminal:
        assert terminal.exit_code() == 0
        assert terminal.text == "Hello"
