"""What becomes of a conversation: turns, branches, ends that come early, and a context that is full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from localllm.conversation import Conversation
from localllm.engines import open_engine
from localllm.engines.fake import FakeModel
from localllm.engines.local import LocalEngine
from localllm.errors import ContextOverflow, UsageError
from localllm.text.attachments import Attachment
from localllm.types import Chunk, EngineOptions, Limits, Message, Sampling

Make = Callable[..., Conversation]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A conversation with an engine of one token a byte, which answers with its script every time."""

    def build(script: str = "an answer", context: int = 64, **limits: object) -> Conversation:
        path = tmp_path / "s"
        path.write_text(script)
        engine = open_engine("fake", path, EngineOptions(context=context))
        return Conversation(engine, Sampling(), Limits(**limits), "SYS")

    return build


@pytest.fixture
def conversation(make: Make) -> Conversation:
    return make()


def said(chunks: Iterable[Chunk], kind: str = "answer") -> str:
    return "".join(chunk.text for chunk in chunks if chunk.kind == kind)


def test_turns(conversation: Conversation) -> None:
    assert said(conversation.ask("one")) == "an answer"
    assert conversation.messages == (
        Message("system", "SYS"),
        Message("user", "one"),
        Message("assistant", "an answer"),
    )
    conversation.clear()
    assert conversation.messages == (Message("system", "SYS"),)


def test_what_was_said_stays_when_the_answer_is_stopped(conversation: Conversation) -> None:
    stream = conversation.ask("one")
    begun = "".join(next(stream).text for _ in range(4))
    stream.close()
    assert conversation.turns == [Message("user", "one"), Message("assistant", begun)]


@pytest.mark.parametrize("policy", ["auto", "error", "shift", "drop-oldest"])
def test_a_question_without_an_answer_is_taken_back(make: Make, policy: str) -> None:
    conversation = make(on_overflow=policy)
    list(conversation.ask("one"))
    before = list(conversation.tree.nodes)
    with pytest.raises(ContextOverflow, match="the context holds 64"):
        list(conversation.ask("x" * 100))
    assert conversation.turns == [Message("user", "one"), Message("assistant", "an answer")]
    assert list(conversation.tree.nodes) == before


def test_the_next_turn_sees_the_last(conversation: Conversation) -> None:
    list(conversation.ask("one"))
    usage = list(conversation.ask("two"))[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == len("SYS\n\none\n\nan answer\n\ntwo")
    assert usage.reused_tokens >= len("SYS\n\none")


def test_undo_and_another_answer_lose_nothing(make: Make) -> None:
    conversation = make(context=500)
    with pytest.raises(UsageError, match="no answer yet"):
        list(conversation.regenerate())
    with pytest.raises(UsageError, match="nothing was asked"):
        conversation.undo()
    list(conversation.ask("one"))
    list(conversation.ask("two"))
    list(conversation.regenerate())
    assert [m.content for m in conversation.turns] == ["one", "an answer", "two", "an answer"]
    assert len(conversation.tree.nodes) == 5
    first, second = conversation.tree.leaves()
    assert first.parent == second.parent and conversation.tree.leaf == second.id
    conversation.go_to(first.id)
    assert conversation.undo().content == "two"
    assert [m.content for m in conversation.turns] == ["one", "an answer"]
    list(conversation.edit("ONE"))
    assert [m.content for m in conversation.turns] == ["ONE", "an answer"]
    assert {n.content for n in conversation.tree.children(None)} == {"one", "ONE"}
    assert len(conversation.tree.nodes) == 7


def test_another_answer_draws_with_another_seed(make: Make) -> None:
    conversation = make(context=500)
    conversation.sampling = Sampling(seed=5)
    seeds = []
    stream = conversation.engine.stream

    class Watched:
        context = 500

        def stream(self, request):
            seeds.append(request.sampling.seed)
            return stream(request)

        def count(self, request):
            return 1

    conversation.engine = Watched()
    list(conversation.ask("one"))
    list(conversation.regenerate())
    list(conversation.regenerate())
    list(conversation.ask("two"))
    assert seeds == [5, 6, 7, 5]


def test_a_branch_is_a_conversation_of_its_own(make: Make) -> None:
    conversation = make(context=500)
    list(conversation.ask("one"))
    list(conversation.regenerate())
    before = conversation.tree
    conversation.branch()
    assert [n.content for n in conversation.tree.path()] == ["one", "an answer"]
    assert not set(conversation.tree.nodes) & set(before.nodes)
    assert len(before.nodes) == 3


def test_thinking_is_apart_and_is_not_told_again(make: Make) -> None:
    conversation = make(context=500)
    list(conversation.ask("one"))
    node = conversation.tree.last("assistant")
    assert node is not None and (node.content, node.thinking) == ("an answer", "")


def test_attachments_are_told_and_counted(make: Make) -> None:
    conversation = make(context=500)
    list(conversation.ask("What is in it?", (Attachment("a.txt", "forty-two ``` ticks\n"),)))
    told = conversation.turns[0].content
    assert told == "a.txt:\n````\nforty-two ``` ticks\n````\n\nWhat is in it?"
    report = conversation.context_report()
    assert report.attachments == len(told) - len("What is in it?")
    assert report.system == len("SYS")
    assert report.used + report.free == report.size == 500
    assert report.used == len(f"SYS\n\n{told}\n\nan answer")


def test_what_is_used_is_what_its_parts_add_up_to(make: Make, model_path: Path) -> None:
    scripted = make(context=600)
    real = Conversation(open_engine("llama.cpp", model_path, EngineOptions(threads=1)), Sampling(), Limits(4))
    for conversation in (scripted, real):
        assert conversation.used() == conversation.context_report().used
        list(conversation.ask("a question"))
        assert conversation.used() == conversation.context_report().used > len("a question") / 4
        list(conversation.compact())
        assert conversation.used() == conversation.context_report().used
        conversation.clear()
    real.engine.close()


def test_what_a_template_says_of_its_own_is_no_history(model_path: Path) -> None:
    """SmolLM2's brings a system prompt where there is none."""
    engine = open_engine("llama.cpp", model_path, EngineOptions(threads=1))
    conversation = Conversation(engine, Sampling(), Limits())
    own = conversation.context_report()
    assert own.system > 10
    assert own.used == own.system
    conversation.tree.add("user", "a question")
    asked = conversation.context_report()
    assert (asked.system, asked.summary) == (own.system, 0)
    assert asked.used == engine.count(conversation._request(conversation.messages))
    conversation.system = "Be brief."
    assert 0 < conversation.context_report().system < own.system
    engine.close()


def test_drop_oldest_keeps_the_system_prompt_and_says_so(make: Make) -> None:
    conversation = make(on_overflow="drop-oldest", context=80)
    notices = [said(conversation.ask(f"question {i}"), "notice") for i in range(8)]
    assert notices[0] == "" and any("no longer told" in notice for notice in notices)
    assert conversation.messages[0] == Message("system", "SYS")
    assert conversation.turns[-2:] == [Message("user", "question 7"), Message("assistant", "an answer")]
    assert conversation.turns[0].role == "user" and len(conversation.turns) < 8
    assert len([n for n in conversation.tree.path() if n.kind == "user"]) == 8


def test_summarize_tells_the_summary_in_the_place_of_what_it_is_of(make: Make) -> None:
    conversation = make(script="shorter", context=520)
    chunks = []
    for i in range(12):
        chunks = list(conversation.ask(f"question {i} " + "x" * 40))
        if said(chunks, "summary"):
            break
    assert said(chunks, "summary") == "shorter"
    assert "summarizing the first" in said(chunks, "notice")
    first = conversation.turns[0].content
    assert first.startswith("(Summary of our conversation until now: shorter)\n\nquestion ")
    assert conversation.context_report().summary == len("(Summary of our conversation until now: shorter)\n\n")
    # Going back to before the summary tells the model everything again.
    conversation.undo()
    assert conversation.turns[0].content.startswith("question 0")


def test_compact(make: Make) -> None:
    conversation = make(script="brief", context=600)
    with pytest.raises(UsageError, match="nothing to summarize"):
        list(conversation.compact())
    list(conversation.ask("one"))
    assert said(conversation.compact(), "summary") == "brief"
    assert conversation.turns == []
    list(conversation.ask("two"))
    assert conversation.turns[0].content == "(Summary of our conversation until now: brief)\n\ntwo"


def test_shift_lets_an_answer_run_on(make: Make) -> None:
    script = "0123456789" * 30
    conversation = make(script=script, on_overflow="shift", context=80)
    chunks = list(conversation.ask("count"))
    assert said(chunks) == script
    assert chunks[-1].finish == "stop"
    model = conversation.engine.model
    assert len(model._held) < 80 and bytes(model._held[:5]) == b"SYS\n\n"


def test_an_engine_that_cannot_shift_evaluates_again_what_is_left() -> None:
    class Unmoved(FakeModel):
        prefills = 0

        def shift(self, keep: int, discard: int) -> bool:
            return False

        def prefill(self, tokens: Sequence[int]) -> int:
            self.prefills += 1
            return super().prefill(tokens)

    script = b"0123456789" * 30
    model = Unmoved(script, 80)
    conversation = Conversation(LocalEngine(model, None), Sampling(), Limits(on_overflow="shift"), "SYS")
    assert said(conversation.ask("count")) == script.decode()
    assert model.prefills > 3 and bytes(model._held[:5]) == b"SYS\n\n"


def test_a_conversation_that_was_killed_begins_before_its_question(make: Make) -> None:
    conversation = make(context=500)
    list(conversation.ask("one"))
    conversation.tree.add("user", "two")
    resumed = Conversation(conversation.engine, Sampling(), Limits(), tree=conversation.tree)
    assert resumed.unanswered is not None and resumed.unanswered.content == "two"
    assert [m.content for m in resumed.turns] == ["one", "an answer"]
