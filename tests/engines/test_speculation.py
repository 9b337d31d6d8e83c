"""Guesses change nothing but the time: the same tokens come, whatever is guessed and wherever an answer ends."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from localllm.commands._session import allow_guesses
from localllm.engines import open_engine
from localllm.engines.llama_cpp import open_draft
from localllm.engines.llama_model import LlamaModel
from localllm.engines.local import LocalEngine
from localllm.engines.proofs import Proofs
from localllm.engines.speculation import SIZES, Lookup, Pace, Speculation
from localllm.errors import UsageError
from localllm.types import Constraint, EngineOptions, Guessing, Limits, Message, Request, Sampling, Usage
from tests.support.random_models import Model, write

LINE = "The farmer on the hill watches his grey sheep near the old stone wall. "
REPEAT = f"Repeat this three times, word by word: {LINE}"


def test_lookup() -> None:
    text = Lookup([1, 2, 3, 4, 5, 9, 8])
    assert (text.stretch, text.guess(3)) == (0, [])
    for token in (1, 2):
        text.add(token)
    assert text.stretch == 0
    text.add(3)
    assert (text.stretch, text.guess(3)) == (3, [4, 5, 9])
    text.add(4)
    assert (text.stretch, text.guess(9)) == (4, [5, 9, 8, 1, 2, 3, 4, 5, 9])
    text.add(7)
    assert (text.stretch, text.guess(3)) == (0, [])
    for token in (2, 3, 4):
        text.add(token)
    assert text.guess(1) == [7]  # the last time counts


def test_lookup_finds_what_is_there() -> None:
    """Against a search of the whole text, for texts of few different tokens."""
    draw = random.Random(1)
    for _ in range(30):
        tokens = [draw.randrange(3) for _ in range(60)]
        text = Lookup(tokens[:10])
        for end in range(10, 60):
            text.add(tokens[end])
            if text.stretch:
                place, stretch = text._next, text.stretch
                assert tokens[place - stretch : place] == tokens[end + 1 - stretch : end + 1]
                assert text.guess(2) == (tokens[place : end + 1] * 2)[:2]
            else:
                last = tokens[end - 2 : end + 1]
                assert all(tokens[i : i + 3] != last for i in range(end - 2))


def test_a_guess_must_pay() -> None:
    pace = Pace()
    assert pace.best(3, 15) == 0
    for _ in range(50):
        pace.saw(3, False)
        pace.saw(20, True)
    assert pace.best(3, 15) == 0
    assert pace.best(20, 15) > 3
    assert pace.best(20, 1) <= 1
    assert pace.best(20, 15, 2.0) in (1, 2, 3)
    assert pace.best(20, 15, 0.5) == 0
    for _ in range(50):
        pace.took(1, 0.01)
        for size in SIZES:
            pace.took(size, 0.01 * size)  # batches that save nothing
    assert pace.best(20, 15) == 0
    for _ in range(50):
        for size in SIZES:
            pace.took(size, 0.01)
    assert pace.best(20, 15) == 15


def test_wrong_guesses_cost_little() -> None:
    """Texts that seem to repeat and never do: after every three known tokens comes a new one."""
    spent, steps = 0.0, 600

    class Counting:
        ahead: ClassVar[list[int]] = []
        lookahead = SIZES[-1] - 1

        def clear_ahead(self, count: int) -> int:
            return count

        def feed_ahead(self, token: int, guess: Sequence[int]) -> None:
            nonlocal spent
            self.ahead[:] = guess
            spent += pace.price(1 + len(guess)) if guess else 0.0

        def feed(self, token: int) -> None:
            raise AssertionError("a guess was right")

    pace = Pace()
    pace.took = lambda _size, _seconds: None
    for stretch in (3, 4, 6, 9, 13, 19, 28, 41):
        for _ in range(200):
            pace.saw(stretch, True)  # what other texts taught
    speculation = Speculation(Counting(), pace, [1, 2, 3, 4])
    for i in range(steps):
        speculation.feed(1 + i % 4 if i % 4 < 3 else 100 + i, steps - i)
    assert speculation.accepted == 0 < speculation.drafted
    assert 0 < spent <= 2 + 0.02 * steps


@pytest.fixture(scope="module")
def engines(model_path: Path) -> Iterator[tuple[LocalEngine, LocalEngine]]:
    """One that guesses at every chance, and one that does not."""
    options = EngineOptions(threads=1, context=256)
    plain, eager = (open_engine("llama.cpp", model_path, options) for _ in range(2))
    eager.model.allow_guesses(SIZES[-1] - 1)
    eager._pace = Pace()
    eager._pace.took = lambda _size, _seconds: None
    eager._pace._cost = dict.fromkeys(SIZES, 0.5)
    yield plain, eager
    plain.close()
    eager.close()


def answer(engine: LocalEngine, request: Request) -> tuple[list[int | None], str, Usage]:
    chunks = list(engine.stream(request))
    assert chunks[-1].usage is not None
    return [c.token for c in chunks if c.token is not None], "".join(c.text for c in chunks), chunks[-1].usage


def ask(text: str = REPEAT, sampling: Sampling | None = None, limits: Limits | None = None) -> Request:
    return Request((Message("user", text),), sampling or Sampling(temperature=0), limits or Limits(max_tokens=40))


REQUESTS = {
    "greedy": ask(),
    "sampled": ask(sampling=Sampling(temperature=0.7, seed=5)),
    "penalties": ask(sampling=Sampling(temperature=0, repeat_penalty=1.1, frequency_penalty=0.2)),
    "mirostat": ask(sampling=Sampling(mirostat=2, seed=3)),
    "stop": ask(limits=Limits(max_tokens=40, stop=("stone",))),
    "one token": ask(limits=Limits(max_tokens=1)),
    "a full context": ask(LINE * 9, limits=Limits(ignore_eos=True)),
    "shifted": ask(LINE * 10, limits=Limits(ignore_eos=True, max_tokens=120, on_overflow="shift")),
}


SLOW = ("a full context", "shifted")


@pytest.mark.parametrize(
    "request_", [pytest.param(REQUESTS[n], id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n in REQUESTS]
)
def test_the_same_answer(request_: Request, engines: tuple[LocalEngine, LocalEngine]) -> None:
    (expected, text, _), (found, same, usage) = (answer(engine, request_) for engine in engines)
    assert (found, same) == (expected, text)
    assert 0 <= usage.accepted_tokens <= usage.drafted_tokens


@pytest.mark.slow
def test_guesses_are_counted_and_leave_nothing_behind(engines: tuple[LocalEngine, LocalEngine]) -> None:
    plain, eager = engines
    _, _, usage = answer(eager, ask(limits=Limits(max_tokens=60)))
    assert usage.drafted_tokens > usage.accepted_tokens > 10
    assert answer(plain, ask())[2].drafted_tokens == 0
    assert answer(eager, ask("Tell me of the sea."))[0] == answer(plain, ask("Tell me of the sea."))[0]


@pytest.mark.slow
def test_a_draft_model_changes_nothing(model_path: Path, engines: tuple[LocalEngine, LocalEngine]) -> None:
    """The model drafts for itself, so that most of its guesses are right where it is greedy."""
    options = EngineOptions(threads=1, context=256)
    engine = open_engine("llama.cpp", model_path, options)
    engine.model.allow_guesses(SIZES[-1] - 1)
    engine.draft = open_draft(model_path, options, engine.model)
    engine.draft.pace._cost = dict.fromkeys(SIZES, 0.5)
    engine.draft.pace.step = 0.0
    engine.draft.pace.made = engine.draft.pace.took = lambda *_: None
    for sampling in (Sampling(temperature=0), Sampling(temperature=1, seed=2)):
        request = ask("Tell me of the sea.", sampling)
        expected, text, _ = answer(engines[0], request)
        found, same, usage = answer(engine, request)
        assert (found, same) == (expected, text)
        assert usage.drafted_tokens > 0
        assert sampling.temperature or usage.accepted_tokens > 0.8 * usage.drafted_tokens
    engine.close()


def test_a_draft_model_where_nothing_is_to_be_guessed(engines: tuple[LocalEngine, LocalEngine]) -> None:
    with pytest.raises(UsageError, match="--speculate off"):
        allow_guesses(engines[0], Guessing("off", "small"), EngineOptions(), yes=False)


def test_a_draft_model_of_other_tokens(model: LlamaModel, tmp_path: Path) -> None:
    other = write(tmp_path / "other.gguf", Model("llama"))
    with pytest.raises(UsageError, match="another vocabulary"):
        open_draft(other, EngineOptions(threads=1), model)


@pytest.mark.slow
def test_forms_hold(engines: tuple[LocalEngine, LocalEngine]) -> None:
    request = Request(
        (Message("user", "ab ab ab ab"),),
        Sampling(temperature=1, seed=1),
        Limits(max_tokens=40),
        Constraint("regex", "(ab ){12}"),
    )
    (expected, text, _), (found, same, _) = (answer(engine, request) for engine in engines)
    assert (found, same) == (expected, text)
    assert same == "ab " * 12


def test_probabilities_are_those_of_single_steps(engines: tuple[LocalEngine, LocalEngine]) -> None:
    request = Request((Message("user", REPEAT),), Sampling(temperature=0), Limits(max_tokens=20), logprobs=2)
    one, other = ([c.scores for c in engine.stream(request) if c.scores] for engine in engines)
    assert [s.chosen.token for s in one] == [s.chosen.token for s in other]
    assert [s.chosen.logprob for s in one] == pytest.approx([s.chosen.logprob for s in other], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "threads"), [(9, 1), (230, 2), (280, 2)])
def test_batches_that_round_otherwise_are_not_used(start: int, threads: int, model_path: Path) -> None:
    """Whatever this processor's code does: what is allowed gives the bits of single steps, in caches of any length.

    Every batch that is allowed is compared in all its rows, whether its guesses are right or wrong.
    """
    model = LlamaModel(model_path, EngineOptions(threads=threads, context=512), gpu_layers=0, threads=threads)
    tokens = model.tokenize(LINE * 30, begin=True)
    prompt, text = tokens[:start], tokens[start : start + 90]
    model.prefill(prompt)
    single = []
    for token in text:
        model.feed(token)
        single.append(model.logits().tobytes())
    model.clear()
    model.allow_guesses(SIZES[-1] - 1)
    model.open_context()
    model.prefill(prompt)
    draw, index, sizes = random.Random(1), 0, set()
    while index < len(text):
        wanted = min(draw.choice(SIZES), 1 + model.lookahead, len(text) - index)
        guess = text[index + 1 : index + wanted]
        if draw.random() < 0.3 and guess:
            guess[-1] = 7
        guess = guess[: model.clear_ahead(len(guess))]
        sizes.add(1 + len(guess))
        model.feed_ahead(text[index], guess)
        assert model.logits().tobytes() == single[index], (index, guess)
        index += 1
        while model.ahead and index < len(text) and model.ahead[0] == text[index]:
            model.feed(text[index])
            assert model.logits().tobytes() == single[index], (index, guess)
            index += 1
    assert start > 240 or max(sizes) > 1
    model.close()


def test_proofs() -> None:
    """In a cache of one block and in a longer one; a token between the two proves nothing."""
    proofs = Proofs(16)
    assert (proofs.limit(0), proofs.limit(1000)) == (16, 16)
    assert not proofs.allows(2, 100)
    assert proofs.next(2, 100) == 0  # nothing is known of single steps
    proofs.rows.extend(bytes([i]) for i in range(16))
    assert proofs.next(16, 100) == 4  # the least that other code may multiply
    assert proofs.compare(list(proofs.rows)[-4:], 100)
    assert proofs.allows(4, 100)
    assert not proofs.allows(4, 250)
    assert proofs.next(16, 100) == 16
    assert proofs.compare(list(proofs.rows), 100)
    assert not proofs.wants_rows(100)
    assert proofs.wants_rows(1000)
    assert proofs.next(4, 258) == 0
    assert proofs.next(4, 260) == 4
    assert not proofs.compare([b"x", *list(proofs.rows)[-3:]], 260)
    assert (proofs.limit(240), proofs.limit(1000)) == (16, 3)
    assert proofs.next(3, 263) == 3
    assert not proofs.compare([b"x"] * 3, 263)
    assert (proofs.limit(240), proofs.limit(241)) == (16, 1)
    assert not proofs.wants_rows(263)


@pytest.mark.slow
def test_guesses_in_a_long_cache_are_loose_where_nobody_can_ask_for_the_same_answer(model_path: Path) -> None:
    """With several threads llama.cpp rounds otherwise there, so that what is to be exact goes step by step."""
    engine = open_engine("llama.cpp", model_path, EngineOptions(threads=2, context=512))
    engine.model.allow_guesses(SIZES[-1] - 1)
    engine._pace = Pace()
    engine._pace.took = lambda _size, _seconds: None
    engine._pace._cost = dict.fromkeys(SIZES, 0.5)
    limits = Limits(max_tokens=40, ignore_eos=True)
    accepted = {}
    for exact, sampling in (
        (None, Sampling(temperature=0.01)),
        (None, Sampling(temperature=0.01, seed=1)),
        (None, Sampling(temperature=0)),
        (False, Sampling(temperature=0)),
        (True, Sampling(temperature=0.01)),
    ):
        engine.exact = exact
        usage = answer(engine, ask(LINE * 15 + REPEAT, sampling, limits))[2]
        assert usage.prompt_tokens > 256
        accepted[exact, sampling.temperature, sampling.seed] = usage.accepted_tokens
    most = {key for key, count in accepted.items() if count > 10}
    assert most == {(None, 0.01, None), (False, 0, None)}
    assert sum(count for key, count in accepted.items() if key not in most) == 0
    engine.close()


def test_what_is_to_be_had_again() -> None:
    assert [s.repeatable for s in (Sampling(), Sampling(mirostat=2, top_k=1))] == [False, False]
    again = (Sampling(seed=0), Sampling(temperature=0), Sampling(top_k=1), Sampling(top_p=0))
    assert all(s.repeatable for s in again)
