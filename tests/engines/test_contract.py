"""What every engine promises; a new engine joins the list of factories."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localllm.engines import open_engine
from localllm.engines.local import LocalEngine
from localllm.errors import ContextOverflow, UsageError
from localllm.types import EngineOptions, Limits, Message, Request, Sampling
from tests.support import tiny_onnx

Factory = Callable[..., LocalEngine]
SCRIPT = "Grüße 🙂 from a script. END of it."


TINY = [f"onnx {layout}{more}" for layout in ("optimum", "genai", "own") for more in ("", " positions")]


@pytest.fixture(params=["llama.cpp", "fake", *TINY])
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
