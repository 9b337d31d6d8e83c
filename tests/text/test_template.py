"""Templates render as transformers renders them, and what a template does wrong ends within its bounds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from localllm.errors import TemplateError, UsageError
from localllm.text.template import BUILT_IN, ChatTemplate, template_source
from localllm.types import Message

CASES = json.loads((Path(__file__).parents[1] / "data" / "templates.json").read_text(encoding="utf-8"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source: str, *messages: Message, **variables: str) -> str:
    template = ChatTemplate(source)
    try:
        return template.render(messages or (Message("user", "hi"),), variables)
    finally:
        template.close()


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['name']}-{len(c['messages'])}")
def test_equals_transformers(case: dict) -> None:
    messages = [Message(m["role"], m["content"]) for m in case["messages"]]
    assert render(case["template"], *messages, **SPECIAL) == case["text"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(name: str) -> None:
    messages = (Message("system", "SYS"), Message("user", "one"), Message("assistant", "two"), Message("user", "three"))
    text = render(BUILT_IN[name][0], *messages, **SPECIAL)
    order = [text.index(word) for word in ("SYS", "one", "two", "three")]
    assert order == sorted(order)
    assert BUILT_IN[name][1] in text or name == "gemma"
    assert text.endswith(("assistant\n", "\n\n", "model\n", "[/INST]", "<|assistant|>\n"))


BOMBS = {
    "a string of 2 GB": "{{ 'a' * 2147483648 }}",
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "output without end": "{% for i in range(100000) %}{% for j in range(100000) %}aaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "doubling": "{% set n=namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "a list that doubles": "{% set n=namespace(s=[1]) %}{% for i in range(40) %}{% set n.s=n.s+n.s %}{% endfor %}",
    "a power": "{{ 9**9**9 }}",
    "round": "{{ 1|round(1000000000, 'floor') }}",
    "a format's width": "{{ '%2000000000s'|format('x') }}{{ '{:>2000000000}'.format(1) }}",
    "center": "{{ ''.center(2000000000) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "tojson": "{{ ([1]*100000000)|tojson }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "join": "{{ (range(99999)|list)|join('a'*100000) }}",
    "replace": "{{ ('a'*1000000).replace('a', 'b'*1000000) }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_end_in_time(source: str) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    template.render((Message("user", "warm"),), {})  # the start of a process is not what is bounded
    template.source = source
    started = time.monotonic()
    with pytest.raises(TemplateError):
        template.render((Message("user", "hi"),), {})
    assert time.monotonic() - started < 2.0
    template.source = "{{ messages[0].content }}"
    assert template.render((Message("user", "still here"),), {}) == "still here"
    template.close()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("line one\n{% if %}", r"line 2"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    ],
)
def test_errors_are_one_line(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as caught:
        render(source)
    assert "\n" not in str(caught.value)


def test_a_long_conversation_passes() -> None:
    text = "wörd " * 400_000
    assert render("{{ messages[0].content }}", Message("user", text)) == text


def test_strftime_now() -> None:
    before, text, after = time.strftime("%d %b %Y"), render("{{ strftime_now('%d %b %Y') }}"), time.strftime("%d %b %Y")
    assert text in (before, after)


def test_closing_ends_the_worker() -> None:
    template = ChatTemplate("x")
    assert template.render((), {}) == "x"
    process = template._process
    template.close()
    assert process is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_choice(tmp_path: Path) -> None:
    assert template_source("auto", "own", False, ()) == ("own", "")
    assert template_source("none", "own", True, ()) == (None, "")
    assert template_source("chatml", "own", True, ())[0] == BUILT_IN["chatml"][0]
    source, notice = template_source("auto", None, True, {"<start_of_turn>"})
    assert source == BUILT_IN["gemma"][0]
    assert "built-in one named gemma" in notice
    source, notice = template_source("auto", None, False, {"<start_of_turn>"})
    assert source is None
    assert "as it stands" in notice
    file = tmp_path / "t.jinja"
    file.write_text("from a file")
    assert template_source(str(file), None, False, ()) == ("from a file", "")
    with pytest.raises(UsageError, match="no such name"):
        template_source("nonsense", None, False, ())
