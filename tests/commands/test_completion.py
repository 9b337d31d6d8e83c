"""Completion in real shells: what stands there after Tab, models with colons in their names too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import localllm

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """PATH with the program under its own name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shim = folder / "localllm"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m localllm "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    assert localllm("alias", "mine:x", "smollm2:135m").returncode == 0
    return f"{folder}:{os.environ['PATH']}"


def shell(name: str, script: str, path: str) -> list[str]:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    done = subprocess.run(
        [name, *options, "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": path}
    )
    assert done.stderr == "" and done.returncode == 0, done
    return done.stdout.splitlines()


LINES = (
    ("localllm regi", ["register"]),
    ("localllm run smollm2:13", ["smollm2:135m"]),
    ("localllm run --model smollm2:13", ["smollm2:135m"]),
    ("localllm rm ", ["mine:x"]),
    ("localllm run --flash-attention o", ["on", "off"]),
    ("localllm run 'a prompt' --top-", ["--top-k", "--top-p", "--top-n-sigma"]),
    ("localllm history exp", ["export"]),
    ("localllm run -p transl", ["translate"]),
    ("localllm prompts show transl", ["translate"]),
    ("localllm run hello smol", []),
)


@pytest.mark.slow
def test_bash(path: str) -> None:
    """By the function that readline calls, with the words as readline breaks them."""
    calls = "".join(
        f"COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; _localllm_complete localllm; "
        'printf "%s|" "${COMPREPLY[@]}"; echo; '
        for line in (line.replace("'", "") for line, _ in LINES)
    )
    found = shell("bash", f"source <(localllm completion bash); complete -p localllm; {calls}", path)
    assert found[0] == "complete -o default -F _localllm_complete localllm"
    for line, (_, expected) in zip(found[1:], LINES, strict=True):
        written = [value.removeprefix("smollm2:") for value in expected]  # its beginning stands there already
        assert [value for value in line.split("|") if value] == written


@pytest.mark.slow
def test_fish(path: str) -> None:
    for line, expected in LINES:
        found = shell("fish", f'localllm completion fish | source; complete -C "{line}"', path)
        assert [value.partition("\t")[0] for value in found] == sorted(expected), line


@pytest.mark.slow
def test_zsh(path: str) -> None:
    """The script is read, and what it is given is what `_describe` takes."""
    found = shell(
        "zsh",
        "autoload -U compinit; compinit -u -D; source <(localllm completion zsh); whence -w _localllm; print $_comps[localllm]",
        path,
    )
    assert found == ["_localllm: function", "_localllm"]
    for line, expected in LINES:
        done = localllm("completion", "zsh", "--line", line)
        values = [each.replace("\\:", "\0").partition(":")[0].replace("\0", ":") for each in done.stdout.splitlines()]
        assert values == expected, line


@pytest.mark.slow
def test_powershell_and_others() -> None:
    assert "Register-ArgumentCompleter" in localllm("completion", "powershell").stdout
    done = localllm("completion", "powershell", "--line", "localllm run --engine f")
    assert done.stdout == "fake\n"
    assert localllm("completion", SHELL="/bin/bash").stdout == localllm("completion", "bash").stdout
    wrong = localllm("completion", "csh")
    assert wrong.returncode == 2 and "there is no completion for csh (the shells are bash" in wrong.stderr


@pytest.mark.parametrize(
    "line",
    [
        "",
        "localllm",
        'localllm run "unclosed',
        "localllm run 'x",
        "localllm \\",
        "localllm run --top-k",
        "localllm nonsense x ",
    ],
)
def test_any_line_is_survived(line: str) -> None:
    done = localllm("completion", "fish", "--line", line)
    assert (done.returncode, done.stderr) == (0, "")
