"""A chat that was left and gone on with, in processes of their own, says what an unbroken one says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import Terminal, localllm
from tests.ui.chat.support import at_prompt

QUESTIONS = ("Tell me a long story about a lighthouse keeper.", "Who is in it?", "What happens next?")
OPTIONS = ("-m", "smollm2", "-n", "110", "--temperature", "0", "-t", "1")


def say(terminal: Terminal, question: str) -> None:
    before = terminal.text.rfind("\n>")
    terminal.send(question + "\r")
    terminal.wait(lambda t: at_prompt(t) and t.rfind("\n>") > before, 300)


def talk(data: Path, *, broken: bool) -> list[str]:
    """What was said in a chat, which is left after its last question or after each."""
    environment = {"LOCALLLM_HOME": str(data), "LOCALLLM_NO_CACHE": "0"}
    for first in range(len(QUESTIONS)) if broken else [0]:
        with Terminal("chat", *(["--continue"] if first else OPTIONS), **environment) as terminal:
            terminal.wait(at_prompt, 120)
            for question in QUESTIONS[first : first + 1] if broken else QUESTIONS:
                say(terminal, question)
            terminal.send("\x04")
            assert terminal.exit_code() == 0
    (line,) = localllm("history", "export", "-f", "jsonl", **environment).stdout.splitlines()
    return [message["content"] for message in json.loads(line)["messages"]]


@pytest.mark.slow
def test_every_answer_is_the_unbroken_ones(home: Path, tmp_path: Path) -> None:
    """The second is given with fewer tokens in the context than the cache keeps otherwise; the third beyond 256,
    where llama.cpp's attention to one token rounds otherwise than in a batch."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "models").symlink_to(home / "models")
    unbroken, resumed = talk(home, broken=False), talk(other, broken=True)
    assert len(unbroken) == 6 and all(unbroken)
    assert resumed == unbroken
    (kept,) = (other / "prefixes").glob("*.kv")
    id = json.loads(localllm("history", "list", "--json", LOCALLLM_HOME=str(other)).stdout)[0]["id"]
    assert localllm("history", "rm", id, "--yes", LOCALLLM_HOME=str(other)).returncode == 0
    assert not kept.exists()
