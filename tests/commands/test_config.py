"""`localllm config`, and the order of precedence, through the real program."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.command import localllm

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "a folder" / "config.toml"
    monkeypatch.setenv("LOCALLLM_CONFIG", str(path))
    return path


def config(*words: str, code: int = 0, **environment: str) -> str:
    done = localllm("config", *words, **environment)
    assert done.returncode == code, done
    if code:
        assert done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr if code else done.stdout


@pytest.mark.slow
def test_set_get_list_unset(file: Path) -> None:
    assert config("path") == f"{file}\n"
    assert config("get", "top-k") == "40\n"
    config("set", "top-k", "20")
    config("set", "repeat_last_n", "-1")
    config("set", "stop", "END", "two\nlines")
    config("set", "context", "4096", "--model", "smollm2")
    assert file.read_text(encoding="utf-8") == (
        'top_k = 20\nrepeat_last_n = -1\nstop = ["END", "two", "lines"]\n\n[models."smollm2:135m"]\ncontext = 4096\n'
    )
    assert config("get", "stop") == "END\ntwo\nlines\n"
    assert config("get", "context", "-m", "smollm2:135m") == "4096\n"
    found = json.loads(config("list", "--json"))
    assert found["top_k"] == 20 and found['models."smollm2:135m".context'] == 4096
    assert json.loads(config("list", "--json", "-m", "smollm2"))["context"] == 4096
    assert "LOCALLLM_TOP_P" in config("list", LOCALLLM_TOP_P="0.5")
    assert "flash_attention" in config("list", "--all")
    config("unset", "top_k")
    assert config("get", "top_k") == "40\n"
    assert "top_k is not set in" in config("unset", "top_k", code=1)
    assert "context is not set, and has no default" in config("get", "context", code=1)


@pytest.mark.slow
def test_capitals_of_a_model(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('[models."Org/Repo-GGUF"]\ntop_k = 7\n', encoding="utf-8")
    for name in ("Org/Repo-GGUF", "org/repo-gguf"):
        assert json.loads(config("list", "--json", "-m", name))["top_k"] == 7
    config("set", "top_p", "0.5", "-m", "org/repo-gguf")
    assert file.read_text(encoding="utf-8") == '[models."Org/Repo-GGUF"]\ntop_k = 7\ntop_p = 0.5\n'
    config("unset", "top_k", "-m", "ORG/repo-gguf")
    assert file.read_text(encoding="utf-8") == '[models."Org/Repo-GGUF"]\ntop_p = 0.5\n'


@pytest.mark.slow
def test_a_file_is_the_same_however_its_path_is_written(
    file: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_path.parent)
    config("set", "max_tokens", "3", "-m", f"./{model_path.name}")
    assert f'[models."{model_path.resolve()}"]' in file.read_text(encoding="utf-8")
    for name in (model_path.name, f"../{model_path.parent.name}/{model_path.name}", str(model_path)):
        assert config("get", "max_tokens", "-m", name) == "3\n"
        found = json.loads(localllm("run", "-m", name, "Hi", "--ignore-eos", "--json").stdout)
        assert found["usage"]["completion_tokens"] == 3


@pytest.mark.slow
def test_a_value_is_checked_before_it_is_written(file: Path) -> None:
    for words, reason in (
        (("top_p", "7"), "--top-p: 7 is above 1"),
        (("top_k", "many"), "'many' is not a whole number"),
        (("top_k", "1", "2"), "top_k has one value"),
        (("tempreature", "1"), "did you mean temperature"),
        (("model", "a b"), "is not a model"),
        (("model", "smollm2", "-m", "smollm2"), "no model of its own"),
    ):
        assert reason in config("set", *words, code=2)
    assert not file.exists()


def test_comments_links_and_modes_stay(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("# mine\ntop_k = 20 # few\n", encoding="utf-8")
    real.chmod(0o600)
    file.parent.mkdir()
    file.symlink_to(real)
    config("set", "top_k", "30")
    assert real.read_text(encoding="utf-8") == "# mine\ntop_k = 30 # few\n"
    assert file.is_symlink() and real.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["top_k = ", "nonsense = 1\n", '[models."m"]\ntop_p = 9\n', "models = 1\n"])
def test_a_broken_file_is_named_and_left_alone(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    assert str(file) in config("set", "top_k", "3", code=2)
    assert file.read_text(encoding="utf-8") == text


def test_a_value_that_makes_no_sense_is_named_with_its_setting(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('[models."m"]\ntop_p = "high"\n', encoding="utf-8")
    assert f"{file}: models.\"m\": top_p: 'high' is not of type float" in config("get", "top_k", code=2)


def test_one_text_of_several_is_written_without_brackets(file: Path) -> None:
    """Its letters are no texts of their own."""
    file.parent.mkdir()
    file.write_text('stop = "END"\n', encoding="utf-8")
    assert config("get", "stop") == "END\n"


def test_nothing_but_a_file_is_written() -> None:
    assert "no regular file" in config("set", "top_k", "3", code=2, LOCALLLM_CONFIG=os.devnull)


@pytest.mark.slow
def test_edit(file: Path, tmp_path: Path) -> None:
    editor = tmp_path / "my editor"
    editor.write_text('#!/bin/sh\necho "top_k = 5" >> "$1"\n', encoding="utf-8")
    editor.chmod(0o755)
    config("edit", EDITOR=f"'{editor}'", VISUAL="")
    assert config("get", "top_k") == "5\n"
    assert "there is no setting 'nonsense'" in config("edit", code=2, VISUAL="sh -c 'echo nonsense=1 > \"$1\"' x")
    file.unlink()
    assert "cannot be run" in config("edit", code=2, VISUAL="/no/editor")
    assert "ended with 1" in config("edit", code=2, VISUAL="false")


@pytest.mark.slow
def test_the_order_of_precedence(file: Path) -> None:
    """How many tokens an answer has tells whose -n it was."""

    def tokens(*words: str, **environment: str) -> int:
        done = localllm("run", "-m", "smollm2", "Tell me a story.", "--ignore-eos", "--json", *words, **environment)
        return int(json.loads(done.stdout)["usage"]["completion_tokens"])

    config("set", "max_tokens", "2")
    assert tokens() == 2
    config("set", "max_tokens", "3", "-m", "smollm2:135m")
    assert tokens() == 3
    assert tokens(LOCALLLM_MAX_TOKENS="4") == 4
    assert tokens("-n", "5", LOCALLLM_MAX_TOKENS="4") == 5
