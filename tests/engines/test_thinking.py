"""Thinking through the generation loop: tags of text, tags that are control tokens, and what templates are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from localllm.conversation import Conversation
from localllm.engines import open_engine
from localllm.engines.fake import END, FakeModel
from localllm.engines.local import LocalEngine, Prompter
from localllm.protocols import Mask
from localllm.text.template import ChatTemplate
from localllm.types import Chunk, EngineOptions, Limits, Message, Reasoning, Request, Sampling

QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
DEEPSEEK = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]<think>\n{# </think> #}"
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort|default('medium') }}<|end|>"
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")


class ControlModel(FakeModel):
    """Bytes, and the marks of harmony as control tokens, of which a piece shows nothing."""

    def __init__(self, script: str) -> None:
        super().__init__(b"", 4096)
        self._ids = self.tokenize(script, begin=False)

    def tokenize(self, text: str, *, begin: bool, special: bool = True) -> list[int]:
        found: list[int] = []
        while text:
            mark = next((m for m in MARKS if text.startswith(m)), None)
            found.append(END + 1 + MARKS.index(mark) if mark else text.encode()[0])
            text = text[len(mark) if mark else 1 :]
        return found

    def piece(self, token: int) -> bytes:
        return b"" if token >= END else bytes([token])

    def spelled(self, token: int) -> bytes:
        return MARKS[token - END - 1].encode() if token > END else super().spelled(token)

    @contextmanager
    def sampler(
        self, sampling: Sampling, *, ignore_eos: bool, history: Sequence[int], mask: Mask | None = None
    ) -> Iterator[Callable[[], int]]:
        script = iter([*self._ids, END])
        yield lambda: next(script)


def fake(tmp_path: Path, template: str, script: str) -> LocalEngine:
    (tmp_path / "t").write_text(template)
    (tmp_path / "s").write_text(script)
    return open_engine("fake", tmp_path / "s", EngineOptions(template=str(tmp_path / "t")))


def said(chunks: Sequence[Chunk], kind: str) -> str:
    return "".join(c.text for c in chunks if c.kind == kind)


@pytest.mark.parametrize(
    ("template", "script"),
    [(QWEN, "<think>\nhm 🙂\n</think>\n\nHello"), (DEEPSEEK, "hm 🙂\n</think>\n\nHello"), (QWEN, "Hello")],
)
def test_tags_of_text(tmp_path: Path, template: str, script: str) -> None:
    engine = fake(tmp_path, template, script)
    conversation = Conversation(engine, Sampling(), Limits())
    chunks = list(conversation.ask("Hi"))
    engine.close()
    assert said(chunks, "answer") == "Hello"
    assert said(chunks, "thinking").strip() == ("hm 🙂" if "hm" in script else "")
    assert [c.finish for c in chunks if c.finish] == ["stop"]
    assert len([c for c in chunks if c.token is not None]) == len(script.encode())
    # Neither is it the answer, nor is it told again.
    assert conversation.turns == [Message("user", "Hi"), Message("assistant", "Hello")]
    node = conversation.tree.last("assistant")
    assert node is not None and node.thinking == ("hm 🙂" if "hm" in script else "")


def test_marks_that_are_control_tokens() -> None:
    script = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hello"
    engine = LocalEngine(ControlModel(script), ChatTemplate(HARMONY))
    conversation = Conversation(engine, Sampling(), Limits(), reasoning=Reasoning(effort="high"))
    chunks = list(conversation.ask("Hi"))
    assert (said(chunks, "thinking"), said(chunks, "answer")) == ("hm", "Hello")
    prompt = engine.prompt(conversation.messages, conversation.reasoning)
    engine.close()
    assert "Reasoning: high" in prompt and "<|channel|>final<|message|>Hello<|end|>" in prompt


def test_templates_are_told_whether_to_think(tmp_path: Path) -> None:
    engine = fake(tmp_path, QWEN, "Hello")
    messages = (Message("user", "Hi"),)
    assert engine.prompt(messages).endswith("assistant\n")
    assert engine.prompt(messages, Reasoning(think=False)).endswith("<think>\n\n</think>\n\n")
    assert engine.prompt(messages, Reasoning(think=True)) == engine.prompt(messages)
    engine.close()


def test_only_thinking_is_no_answer(tmp_path: Path) -> None:
    engine = fake(tmp_path, QWEN, "<think>on and on")
    conversation = Conversation(engine, Sampling(), Limits())
    chunks = list(conversation.ask("Hi"))
    engine.close()
    assert "did not come to an answer" in said(chunks, "notice")
    assert conversation.turns == []


def test_the_answers_begin_is_read_as_the_models_words(tmp_path: Path) -> None:
    engine = fake(tmp_path, DEEPSEEK, "x</think>Hello ``` there")
    limits = Limits(stop=("```",))
    chunks = list(engine.stream(Request((Message("user", "Hi"),), Sampling(), limits, prefill="Well, ")))
    assert (said(chunks, "thinking"), said(chunks, "answer")) == ("Well, x", "Hello ")
    chunks = list(engine.stream(Request((Message("user", "Hi"),), Sampling(), limits, prefill="y</think>```")))
    engine.close()
    assert said(chunks, "answer").startswith("```x")


@pytest.mark.parametrize(
    ("source", "reasoning", "ignored"),
    [
        (QWEN, Reasoning(think=True), []),
        (QWEN, Reasoning(think=False, effort="low"), ["--effort"]),
        (DEEPSEEK, Reasoning(think=True), []),  # it thinks in any case
        (DEEPSEEK, Reasoning(think=False), ["--no-think"]),
        (HARMONY, Reasoning(effort="low"), []),
        (PLAIN, Reasoning(think=True, effort="high"), ["--think", "--effort"]),
        (PLAIN, Reasoning(think=False), []),
        (None, Reasoning(think=True), ["--think"]),
    ],
)
def test_wishes_that_the_template_does_not_know_are_told(
    source: str | None, reasoning: Reasoning, ignored: list[str]
) -> None:
    prompter = Prompter(FakeModel(b"", 64), ChatTemplate(source) if source else None)
    told = list(prompter.unheeded(reasoning))
    prompter.close()
    assert [next(word for word in line.split() if word.startswith("--")) for line in told] == ignored
