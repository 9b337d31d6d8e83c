"""Thinking is split from the answer wherever the tokens are cut."""

from __future__ import annotations

import pytest

from localllm.text.thinking import HARMONY, AnswerStream, Tags, tags_of

THINK = tags_of("{{ '<think>' }} ... {{ content.split('</think>') }}")
MISTRAL = tags_of("{% if block.type == 'thinking' %}[THINK]{{ block.thinking }}[/THINK]")
COMMAND = tags_of("<|START_THINKING|>{{ x }}<|END_THINKING|><|START_RESPONSE|>{{ y }}<|END_RESPONSE|>")
GRANITE = tags_of("Write your thoughts between <think></think> and your response between <response></response>")
APRIEL = tags_of("[BEGIN FINAL RESPONSE] ... |>\nHere are my reasoning steps:\n")
GEMMA = tags_of("<|channel>thought\n<channel|>")


def split(
    output: str, tags: Tags | None, prompt: str = "", step: int = 1, stop: tuple[str, ...] = ()
) -> tuple[str, str]:
    """The thinking and the answer of an output that comes in pieces of `step` bytes."""
    stream = AnswerStream(stop, tags, prompt)
    data = output.encode()
    pieces = [p for i in range(0, len(data), step) for p in stream.push(data[i : i + step])]
    pieces += stream.finish()
    assert all(text for _, text in pieces)
    return "".join(t for k, t in pieces if k == "thinking").strip(), "".join(t for k, t in pieces if k == "answer")


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("output", "tags", "prompt", "thinking", "answer"),
    [
        ("Hello", THINK, "", "", "Hello"),
        ("  Hello", THINK, "", "", "  Hello"),
        ("<think>\nI am 🙂.\n</think>\n\nHello", THINK, "", "I am 🙂.", "Hello"),
        ("<think>\n\n</think>\n\nHello", THINK, "", "", "Hello"),
        ("\n<think>a</think>b", THINK, "", "a", "b"),
        ("I am.\n</think>\n\nHello", THINK, "...assistant\n<think>\n", "I am.", "Hello"),
        ("Hello", THINK, "...assistant\n<think>\n\n</think>\n\n", "", "Hello"),
        ("<think>never closed", THINK, "", "never closed", ""),
        ("never closed", THINK, "<think>", "never closed", ""),
        ("<think>half</thi", THINK, "", "half</thi", ""),
        ("<thi", THINK, "", "", "<thi"),
        ("<thin air>", THINK, "", "", "<thin air>"),
        ("Use `<think>x</think>` so:\n```\n<think>\n```", THINK, "", "", "Use `<think>x</think>` so:\n```\n<think>\n```"),
        ("<think>a</think>b <think>c</think>", THINK, "", "a", "b <think>c</think>"),
        ("[THINK]hm[/THINK]Hello", MISTRAL, "", "hm", "Hello"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>", COMMAND, "", "hm", "Hi"),
        ("<|START_RESPONSE|>Hi<|END_RESPONSE|>", COMMAND, "", "", "Hi"),
        ("<think>hm</think><response>Hi</response>", GRANITE, "", "hm", "Hi"),
        ("hm\n[BEGIN FINAL RESPONSE]\nHi", APRIEL, "<|begin|>\nHere are my reasoning steps:\n", "hm", "Hi"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_TEXT|>Hi<|END_TEXT|>", COMMAND, "", "hm", "Hi"),
        ("<|channel>thought\nhm<channel|>Hi", GEMMA, "", "hm", "Hi"),
        ("<think>a</think>b", None, "", "", "<think>a</think>b"),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi <|x|>",
            HARMONY, "<|start|>user<|message|>?<|end|><|start|>assistant", "hm", "Hi <|x|>",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Hi<|end|>",
            HARMONY, "<|start|>assistant", "ab", "Hi",
        ),
        ("Hi", HARMONY, "<|start|>assistant<|channel|>final<|message|>", "", "Hi"),
        ("<|channel|>analysis<|message|>never clo", HARMONY, "<|start|>assistant", "never clo", ""),
        ("no harmony at all", HARMONY, "<|start|>assistant", "", "no harmony at all"),
    ],
)  # fmt: skip
def test_split(output: str, tags: Tags | None, prompt: str, thinking: str, answer: str, step: int) -> None:
    assert split(output, tags, prompt, step) == (thinking, answer)


def test_stop_strings_end_the_answer_and_not_the_thinking() -> None:
    assert split("<think>a\n\nb</think>c\n\nd", THINK, stop=("\n\n",)) == ("a\n\nb", "c")


def test_a_template_that_does_not_think_has_no_tags() -> None:
    assert tags_of("{% for message in messages %}<|im_start|>{{ message.role }}{% endfor %}") is None


def test_thinking_is_told_at_once() -> None:
    stream = AnswerStream((), THINK)
    assert stream.push(b"<think>now") == [("thinking", "now")]
    assert stream.push(b" <") == [("thinking", " ")]
    assert stream.push(b"b") == [("thinking", "<b")]
