"""What every engine promises; a new engine joins the list of factories."""

from __future__ import annotations

import copy
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localllm.engines import open_engine
from localllm.engines.local import LocalEngine
from localllm.errors import ContextOverflow, UsageError
from localllm.types import Constraint, EngineOptions, Limits, Message, Request, Sampling
from tests.support import tiny_onnx

Factory = Callable[..., LocalEngine]
SCRIPT = "Grüße 🙂 from a script. END of it."


TINY = [f"onnx {layout}{more}" for layout in ("optimum", "genai", "own") for more in ("", " positions")]
OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in TINY[1:]]


@pytest.fixture(params=["llama.cpp", "fake", TINY[0], *OTHERS])
def factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Factory]:
    opened = []
    kind, *variant = request.param.split()
    if kind == "fake":
        path = tmp_path / "script.txt"
        path.write_text(SCRIPT, encoding="utf-8")
    elif kind == "onnx":
        path = tiny_onnx.write(tmp_path, variant[0], positions="positions" in variant)
    else:
        path = request.getfixturevalue("model_path")

    def make(context: int = 512, single: bool = False) -> LocalEngine:
        opened.append(open_engine(kind, path, EngineOptions(context=context), single=single))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def ask(text: str = "Say something.", sampling: Sampling | None = None, **limits: object) -> Request:
    return Request((Message("user", text),), sampling or Sampling(temperature=0), Limits(**limits))


def text_of(engine: LocalEngine, request: Request) -> str:
    return "".join(chunk.text for chunk in engine.stream(request))


def test_exactly_one_final_chunk(factory: Factory) -> None:
    chunks = list(factory().stream(ask(max_tokens=12)))
    assert [c.finish is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert usage.prompt_seconds > 0


def test_limit(factory: Factory) -> None:
    engine = factory()
    for limit in (1, 5):
        chunks = list(engine.stream(ask(max_tokens=limit)))
        assert len([c for c in chunks if c.token is not None]) == limit
        assert chunks[-1].finish == "length"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == limit


def test_greedy_is_deterministic(factory: Factory) -> None:
    assert text_of(factory(), ask(max_tokens=16)) == text_of(factory(), ask(max_tokens=16)) != ""


def test_seed_is_deterministic(factory: Factory) -> None:
    request = ask(sampling=Sampling(temperature=1.5, seed=11), max_tokens=16)
    assert text_of(factory(), request) == text_of(factory(), request) != ""


def test_single_gives_the_same_text(factory: Factory) -> None:
    assert text_of(factory(single=True), ask(max_tokens=16)) == text_of(factory(), ask(max_tokens=16))


def test_stop_string(factory: Factory) -> None:
    engine = factory()
    whole = text_of(engine, ask(max_tokens=30))
    stop = whole[len(whole) // 2 :][:4]
    chunks = list(engine.stream(ask(max_tokens=30, stop=(stop,))))
    assert "".join(c.text for c in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish == "stop"


def test_the_second_turn_reuses_the_first(factory: Factory) -> None:
    engine = factory()
    first = list(engine.stream(ask("Tell me of the sea.", max_tokens=4)))
    usage = list(engine.stream(ask("Tell me of the sea.", max_tokens=4)))[-1].usage
    assert first[-1].usage is not None and first[-1].usage.reused_tokens == 0
    assert usage is not None
    assert usage.reused_tokens == usage.prompt_tokens - 1


def test_overflow_loses_nothing(factory: Factory) -> None:
    engine = factory(context=64)
    before = text_of(engine, ask("Hi", max_tokens=4))
    with pytest.raises(ContextOverflow) as caught:
        list(engine.stream(ask("word " * 100)))
    assert caught.value.needed >= 100
    assert caught.value.available == 64
    assert text_of(engine, ask("Hi", max_tokens=4)) == before


def test_of_a_hopeless_text_no_ids_are_made(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp takes half a minute for 16 MB, and heeds no signal in it."""
    engine = factory(context=64)
    list(engine.stream(ask("Hi", max_tokens=1)))
    lengths = []
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda text: lengths.append(len(text)) or encode(text))
    with pytest.raises(ContextOverflow, match=r"at least \d+ tokens long and the context holds 64"):
        list(engine.stream(ask("a" * 100_000)))
    assert lengths == []
    with pytest.raises(ContextOverflow, match="prompt is \\d+ tokens long"):
        list(engine.stream(ask("word " * 1000)))


def test_a_full_context_ends_the_answer(factory: Factory) -> None:
    chunks = list(factory(context=64).stream(ask("Hi", ignore_eos=True)))
    assert chunks[-1].finish in ("length", "stop")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens <= 64


def test_closing_in_mid_stream(factory: Factory) -> None:
    engine = factory()
    before, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    stream = engine.stream(ask(max_tokens=30))
    next(stream)
    stream.close()
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.active_count() == threads
    assert text_of(engine, ask(max_tokens=8)) == text_of(factory(), ask(max_tokens=8))


def test_a_request_is_never_changed(factory: Factory) -> None:
    request = ask(max_tokens=3, stop=("x",))
    before = copy.deepcopy(request)
    list(factory().stream(request))
    assert request == before


def test_an_interrupt_is_not_lost(factory: Factory) -> None:
    stream = factory().stream(ask(max_tokens=30))
    next(stream)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(stream)


def test_another_thread_may_stream(factory: Factory) -> None:
    engine, found = factory(), []
    thread = threading.Thread(target=lambda: found.append(text_of(engine, ask(max_tokens=6))))
    thread.start()
    thread.join()
    assert found == [text_of(factory(), ask(max_tokens=6))]


def test_an_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the engines are"):
        open_engine("nonsense", tmp_path, EngineOptions())


def test_fake_splits_characters(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text(SCRIPT, encoding="utf-8")
    engine = open_engine("fake", path, EngineOptions())
    assert text_of(engine, ask()) == SCRIPT


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(temperature=1, seed=5), Sampling(mirostat=2, seed=5)]
)
def test_an_answer_has_the_form_it_is_held_to(factory: Factory, sampling: Sampling) -> None:
    engine = factory()
    for form, pattern in (
        (Constraint("regex", "[a-c]{3}-[0-9]"), "[a-c]{3}-[0-9]"),
        (Constraint("choice", '["yes", "no", "été"]'), "yes|no|été"),
        (Constraint("schema", '{"type": "array", "items": {"enum": [1, "x"]}, "maxItems": 2}'), r"\[[^\]]*\]"),
        (Constraint("grammar", 'root ::= "(" [xy]{2} ")"'), r"\([xy]{2}\)"),
    ):
        request = Request((Message("user", "Say something."),), sampling, Limits(max_tokens=60), form)
        chunks = list(engine.stream(request))
        assert chunks[-1].finish == "stop" and chunks[-1].fulfilled
        assert re.fullmatch(pattern, "".join(chunk.text for chunk in chunks), re.S), form
        cut = list(engine.stream(replace(request, limits=Limits(max_tokens=1))))
        assert cut[-1].fulfilled == bool(re.fullmatch(pattern, "".join(chunk.text for chunk in cut), re.S))


def test_an_answer_begins_as_it_is_told(factory: Factory) -> None:
    engine = factory()
    plain = list(engine.stream(ask(max_tokens=3)))
    begun = list(engine.stream(replace(ask(max_tokens=3), prefill="So be it:")))
    assert "".join(chunk.text for chunk in begun).startswith("So be it:")
    assert plain[-1].usage is not None and begun[-1].usage is not None
    assert begun[-1].usage.completion_tokens == 3
    assert begun[-1].usage.prompt_tokens > plain[-1].usage.prompt_tokens
    form = Constraint("choice", '["So be it!", "So it was!", "No."]')
    held = "".join(c.text for c in engine.stream(replace(ask(max_tokens=20), prefill="So ", constraint=form)))
    assert held in ("So be it!", "So it was!")
    with pytest.raises(UsageError, match="no text of this form begins with 'x'"):
        list(engine.stream(replace(ask(), prefill="x", constraint=form)))


def test_scores_belong_to_their_tokens(factory: Factory) -> None:
    chunks = [c for c in factory().stream(replace(ask(max_tokens=8), logprobs=4)) if c.token is not None]
    for chunk in chunks:
        assert chunk.scores is not None and chunk.scores.chosen.token == chunk.token
        assert chunk.scores.chosen == chunk.scores.top[0], "greedy takes the likeliest"
        logprobs = [score.logprob for score in chunk.scores.top]
        assert len(logprobs) == 4 and logprobs == sorted(logprobs, reverse=True) and max(logprobs) <= 0


@pytest.mark.slow
def test_guesses_change_neither_scores_nor_forms(factory: Factory) -> None:
    """A text that repeats itself is what prompt lookup guesses at; each token is still the model's own."""
    engine = factory(context=1024)
    request = replace(ask("one two three four five six " * 12, max_tokens=40, ignore_eos=True), logprobs=1)
    first = [(c.token, c.scores) for c in engine.stream(request) if c.token is not None]
    engine.model.clear()
    again = [(c.token, c.scores) for c in engine.stream(replace(request, logprobs=0)) if c.token is not None]
    assert [token for token, _ in first] == [token for token, _ in again]
    for token, scores in first:
        assert scores is not None and scores.chosen.token == token == scores.top[0].token
    words = Constraint("regex", "(one two three ){12}")
    held = "".join(c.text for c in engine.stream(replace(request, constraint=words, limits=Limits(max_tokens=400))))
    assert held == "one two three " * 12
