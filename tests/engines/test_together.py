"""Many answers at once are the ones that come one by one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.engines import llama_batch, open_engine, open_together
from localllm.errors import ContextOverflow, UsageError
from localllm.types import Chunk, Constraint, EngineOptions, Limits, Message, Request, Sampling

OPTIONS = EngineOptions(context=2048, threads=1)


def ask(text: str, **limits: int) -> Request:
    return Request((Message("user", text),), Sampling(temperature=0), Limits(**(limits or {"max_tokens": 12})))


def text_of(chunks: object) -> str:
    assert isinstance(chunks, list)
    return "".join(chunk.text for chunk in chunks)


QUESTIONS = {
    name: ask(f"Tell me of {name}.", max_tokens=4 + 3 * i)
    for i, name in enumerate(("sea", "sun", "a dog", "ice", "me"))
}


@pytest.fixture(scope="module")
def alone(model_path: Path) -> dict[str, str]:
    engine = open_engine("llama.cpp", model_path, OPTIONS)
    found = {key: text_of(list(engine.stream(request))) for key, request in QUESTIONS.items()}
    engine.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 3, None])
def test_the_same_answers(most: int | None, model_path: Path, alone: dict[str, str]) -> None:
    """With fewer sequences than requests, of different lengths, so that they are refilled."""
    engine, answers = open_together("llama.cpp", model_path, OPTIONS, most)
    found = dict(answers(QUESTIONS.items()))
    engine.close()
    assert {key: text_of(outcome) for key, outcome in found.items()} == alone
    reused = [outcome[-1].usage.reused_tokens for outcome in found.values()]
    assert reused.count(0) == (most or 5) if most != 1 else sum(reused) == 0
    for outcome, request in zip(map(found.get, QUESTIONS), QUESTIONS.values(), strict=True):
        assert isinstance(outcome, list)
        usage = outcome[-1].usage
        assert usage is not None and usage.completion_tokens <= (request.limits.max_tokens or 0)
        assert [chunk.finish is not None for chunk in outcome] == [False] * (len(outcome) - 1) + [True]


@pytest.mark.slow
def test_a_longer_one_gets_longer_caches_and_too_long_a_one_fails(model_path: Path, alone: dict[str, str]) -> None:
    requests = dict(QUESTIONS)
    requests["long"] = ask("word " * 400, max_tokens=2)
    requests["endless"] = ask("word " * 4000, max_tokens=2)
    requests["last"] = QUESTIONS["sea"]
    engine, answers = open_together("llama.cpp", model_path, OPTIONS, 2)
    found = dict(answers(requests.items()))
    engine.close()
    assert isinstance(found["endless"], ContextOverflow)
    assert found["endless"].available == 2048
    assert isinstance(found["long"], list)  # it says nothing, which is as good an answer
    assert found["long"][-1].usage is not None and found["long"][-1].usage.prompt_tokens > 400
    assert text_of(found["last"]) == alone["sea"]
    assert {key: text_of(found[key]) for key in alone} == alone


def test_where_none_is_short_enough_all_fail(model_path: Path) -> None:
    """No caches are made then; of what is hopeless no ids either."""
    engine, answers = open_together("llama.cpp", model_path, OPTIONS, 2)
    found = dict(answers([("long", ask("word " * 4000)), ("hopeless", ask("a" * 1_000_000))]))
    engine.close()
    assert all(isinstance(outcome, ContextOverflow) for outcome in found.values())
    assert "at least" in str(found["hopeless"]) and "at least" not in str(found["long"])


@pytest.mark.slow
def test_an_answer_without_a_limit_has_the_whole_context(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is begun anew where the caches were made shorter; also where its beginning is then forgotten."""
    monkeypatch.setattr(llama_batch, "UNLIMITED", 4)
    options, told = EngineOptions(context=280, threads=1), (Message("user", "word " * 200),)
    requests = {
        "cut": Request(told, Sampling(temperature=0), Limits(ignore_eos=True)),
        "shift": Request(told, Sampling(temperature=0), Limits(on_overflow="shift"), Constraint("regex", "[a-z]{120}")),
    }
    engine = open_engine("llama.cpp", model_path, options)
    alone = list(engine.stream(requests["cut"]))
    engine.close()
    engine, answers = open_together("llama.cpp", model_path, options, 1)
    found = dict(answers(requests.items()))
    engine.close()
    usage = alone[-1].usage
    assert usage and usage.completion_tokens > 40
    assert text_of(found["cut"]) == text_of(alone)
    assert len(text_of(found["shift"])) == 120


@pytest.mark.slow
def test_biased_tokens_are_chosen_as_llama_cpp_chooses_them(model_path: Path) -> None:
    """Lowered: some that would be chosen, and others. Raised: one that nobody would choose."""
    engine = open_engine("llama.cpp", model_path, OPTIONS)
    plain = list(engine.stream(ask("Tell me of the sea.", max_tokens=8)))
    chosen = [chunk.token for chunk in plain if chunk.token is not None]
    told, limits = (Message("user", "Tell me of the sea."),), Limits(max_tokens=8)
    biases = {
        "lowered": (f"{chosen[0]}=-inf", f"{chosen[3]}=-5", "100=-1"),
        "raised": (f"{chosen[0]}=-inf", "1000=30"),
        "unchanged": ("100=-1",),
    }
    requests = {name: Request(told, Sampling(temperature=0, logit_bias=bias), limits) for name, bias in biases.items()}
    requests["endless"] = Request(told, Sampling(temperature=0), Limits(max_tokens=8, ignore_eos=True))
    alone = {name: text_of(list(engine.stream(request))) for name, request in requests.items()}
    engine.close()
    engine, answers = open_together("llama.cpp", model_path, OPTIONS, 1)
    found = {name: text_of(outcome) for name, outcome in answers(requests.items())}
    engine.close()
    assert found == alone
    assert alone["unchanged"] == text_of(plain)
    assert len({alone["lowered"], alone["raised"], alone["unchanged"]}) == 3


def test_settings_of_nonsense_end_all(model_path: Path) -> None:
    engine, answers = open_together("llama.cpp", model_path, OPTIONS, 2)
    request = Request((Message("user", "Hi"),), Sampling(logit_bias=("x",)))
    with pytest.raises(UsageError, match="--logit-bias"):
        list(answers([(1, request)]))
    engine.close()


def test_an_interrupt_ends_all(model_path: Path) -> None:
    def requests() -> Iterator[tuple[int, Request]]:
        for number in range(4):
            yield number, ask("Hi", max_tokens=2 if number == 0 else 200)

    engine, answers = open_together("llama.cpp", model_path, OPTIONS, 2)
    before = signal.getsignal(signal.SIGINT)
    running = answers(requests())
    assert next(running)[0] == 0
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(running)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(list(answers([(9, ask("Hi", max_tokens=3))]))) == 1
    engine.close()


def test_any_engine_answers_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text("An answer.")
    engine, answers = open_together("fake", path, EngineOptions(context=100), None)
    found = dict(answers([("a", ask("Hi", max_tokens=100)), ("b", ask("x" * 200)), ("c", ask("Ho", max_tokens=2))]))
    assert text_of(found["a"]) == "An answer."
    assert isinstance(found["b"], ContextOverflow)
    assert isinstance(found["c"], list) and isinstance(found["c"][-1], Chunk)
    engine.close()
