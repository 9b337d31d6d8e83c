"""Evaluated prompts on disk: found again, never trusted, never in the way."""

from __future__ import annotations

import hashlib
import json
import os
import pydoc_data.topics
import stat
import struct
from pathlib import Path

import pytest

from localllm.engines import open_engine
from localllm.engines.llama_model import LlamaModel
from localllm.engines.llama_state import take_state
from localllm.engines.local import LocalEngine
from localllm.engines.prefix_cache import BLOCK, PrefixCache, clear, entries, forget
from localllm.types import EngineOptions, Limits, Message, Request, Sampling, Usage
from tests.support.command import localllm

TOKENS = list(range(1000, 2000))
STATE = memoryview(bytearray(os.urandom(5000)))
GB = 10**9
MOST = 4096


def cache(folder: Path, digest: str | None = "ab" * 32, limit: int = GB) -> PrefixCache:
    return PrefixCache(folder, "a model", lambda _compute: digest, limit)


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.kv")
    return path


def test_the_longest_beginning_is_found(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.save(TOKENS[:400] + [1] * 100, "s", STATE)
    kept.save(TOKENS[:700] + [2] * 5, "s", memoryview(b"longer"))
    found = kept.find(TOKENS, "s", 0, MOST)
    assert found is not None and list(found.tokens) == TOKENS[:700] + [2] * 5
    assert bytes(found.state) == b"longer"
    found = kept.find([*TOKENS[:400], 1, 1, 1], "s", 0, MOST)
    assert found is not None and bytes(found.state) == bytes(STATE)
    for most, length in ((705, 705), (704, 500), (499, 0)):  # all of it must be taken up
        found = kept.find(TOKENS, "s", 0, most)
        assert (len(found.tokens) if found else 0) == length
    found = kept.find([*TOKENS[:300], 3], "s", 0, MOST)  # both help as much: the shorter one
    assert found is not None and len(found.tokens) == 500


def test_what_is_not_found(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.save(TOKENS, "s", STATE)
    assert kept.find([5, *TOKENS], "s", 0, MOST) is None
    assert kept.find(TOKENS[:BLOCK], "s", 0, MOST) is None  # not worth it
    assert kept.find(TOKENS, "s", len(TOKENS) - BLOCK + 1, MOST) is None  # nearly all of it is here
    assert kept.find(TOKENS, "other settings", 0, MOST) is None
    assert cache(tmp_path, "cd" * 32).find(TOKENS, "s", 0, MOST) is None
    assert cache(tmp_path, None).find(TOKENS, "s", 0, MOST) is None
    assert cache(tmp_path / "none").find(TOKENS, "s", 0, MOST) is None
    assert kept.find(TOKENS, "s", 0, MOST) is not None


def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    before = os.umask(0)
    try:
        cache(folder).save(TOKENS, "s", STATE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_any_damage_is_discarded(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.save(TOKENS, "s", STATE)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    places = [0, 7, 8, 39, 40, 43, 44, 60, 200, 300, 3000, len(whole) - 5000, len(whole) - 1]
    damaged = [whole[:p] + bytes([whole[p] ^ 1]) + whole[p + 1 :] for p in places]
    damaged += [whole[:n] for n in (0, 1, 40, 44, 100, 4000, len(whole) - 1)] + [whole + b"\0"]
    damaged += [whole[:40] + struct.pack("<I", 2**32 - 1) + whole[44:], b"\0" * len(whole)]
    for data in damaged:
        path.write_bytes(data)
        assert kept.find(TOKENS, "s", 0, MOST) is None
        path.unlink(missing_ok=True)
    path.write_bytes(whole)
    assert kept.find(TOKENS, "s", 0, MOST) is not None


def test_a_state_somebody_else_made_is_discarded(tmp_path: Path) -> None:
    """It is whole, for this model, under the right name, with a checksum that anybody can compute."""
    for name in ("mine", "theirs"):
        cache(tmp_path / name).save(TOKENS, "s", STATE)
    mine, theirs = only_file(tmp_path / "mine"), only_file(tmp_path / "theirs")
    assert mine.name == theirs.name
    forged = theirs.read_bytes()
    for data in (forged, forged[:8] + hashlib.sha256(forged[40:]).digest() + forged[40:]):
        mine.write_bytes(data)
        assert cache(tmp_path / "mine").find(TOKENS, "s", 0, MOST) is None
        assert not mine.exists()


def test_the_least_used_make_room(tmp_path: Path) -> None:
    kept = cache(tmp_path, limit=26_000)
    prompts = [[i] * 300 for i in range(4)]
    for age, prompt in enumerate(prompts[:3]):
        kept.save(prompt, "s", STATE)
        newest = max(tmp_path.glob("*.kv"), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (age, age))
    assert kept.find([*prompts[0], 9], "s", 0, MOST) is not None  # used just now
    kept.save(prompts[3], "s", memoryview(bytes(12_000)))
    assert [kept.find([*p, 9], "s", 0, MOST) is not None for p in prompts] == [True, False, False, True]
    kept.save([7] * 300, "s", memoryview(bytes(40_000)))  # more than there may be
    assert [kept.find([*p, 9], "s", 0, MOST) is not None for p in prompts] == [True, False, False, True]
    assert sum(e.size for e in entries(tmp_path)) == clear(tmp_path) > 0
    assert not list(tmp_path.glob("*.kv"))


def test_a_longer_one_replaces_its_beginning(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.save(TOKENS[:300], "s", STATE)
    kept.save(TOKENS[:600], "s", STATE)
    assert [(e.tokens, e.model) for e in entries(tmp_path)] == [(600, "a model")]


def test_a_chat_is_found_by_its_name(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.save(TOKENS[:400], "s", STATE)
    kept.save(TOKENS[:20], "s", STATE, "one")  # a short one too
    kept.save(TOKENS[:500], "s", STATE, "two/*")
    kept.save(TOKENS[:600], "s", memoryview(b"longer"), "one")
    assert sorted(e.tokens for e in entries(tmp_path)) == [500, 600]  # nobody else's is replaced by a longer one
    found = kept.find_chat("one", "s", MOST)
    assert found is not None and (list(found.tokens), bytes(found.state)) == (TOKENS[:600], b"longer")
    assert kept.find(TOKENS, "s", 0, MOST) == found
    for name, settings, most in (("three", "s", MOST), ("*", "s", MOST), ("one", "other", MOST), ("one", "s", 599)):
        assert kept.find_chat(name, settings, most) is None
    assert cache(tmp_path, "cd" * 32).find_chat("one", "s", MOST) is None
    forget(tmp_path, ["one", "three", "*"])
    assert kept.find_chat("one", "s", MOST) is None
    assert kept.find_chat("two/*", "s", MOST) is not None


def test_damage_that_cannot_be_removed_is_passed_over(tmp_path: Path) -> None:
    """As on a disk that is mounted for reading; as root in a test, a folder stands for it."""
    kept = cache(tmp_path)
    kept.save(TOKENS, "s", STATE)
    path = only_file(tmp_path)
    path.unlink()
    path.mkdir()
    assert kept.find(TOKENS, "s", 0, MOST) is None


def test_two_processes_clear_it_at_once(tmp_path: Path) -> None:
    """A link that leads nowhere is what a file is that another has just removed."""
    cache(tmp_path).save(TOKENS, "s", STATE)
    size = only_file(tmp_path).stat().st_size
    (tmp_path / "a.kv").symlink_to(tmp_path / "none")
    assert clear(tmp_path) == size


def test_places_that_cannot_be_written_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache(tmp_path / "file").save(TOKENS, "s", STATE)
    cache(Path("/proc/self")).save(TOKENS, "s", STATE)


DOCUMENT = "".join(pydoc_data.topics.topics.values())[:1300]


def opened(model_path: Path, folder: Path) -> LlamaModel:
    model = LlamaModel(model_path, EngineOptions(context=512), gpu_layers=0, threads=1)
    model.prefixes = cache(folder)
    return model


def answer(model_path: Path, folder: Path, question: str, options: EngineOptions, tokens: int = 6) -> tuple[str, Usage]:
    engine: LocalEngine = open_engine("llama.cpp", model_path, options, single=True)
    engine.model.prefixes = cache(folder)
    request = Request((Message("user", f"{DOCUMENT}\n{question}"),), Sampling(temperature=0), Limits(max_tokens=tokens))
    chunks = list(engine.stream(request))
    engine.close()
    assert chunks[-1].usage is not None
    return "".join(chunk.text for chunk in chunks), chunks[-1].usage


@pytest.mark.slow
def test_the_model_goes_on_from_what_is_kept(model_path: Path, tmp_path: Path) -> None:
    options = EngineOptions(threads=1, context=2048)
    cold, usage = answer(model_path, tmp_path, "What is it about?", options, 40)
    assert usage.reused_tokens == 0
    warm, usage = answer(model_path, tmp_path, "What is it about?", options, 2)  # the state is longer than the context
    assert usage.reused_tokens == usage.prompt_tokens - 1
    assert cold.startswith(warm) and warm
    again, _ = answer(model_path, tmp_path, "What is it about?", options, 40)
    assert again == cold
    _, usage = answer(model_path, tmp_path, "Who wrote this?", options)
    assert usage.prompt_tokens - 20 < usage.reused_tokens < usage.prompt_tokens
    assert len(list(tmp_path.glob("*.kv"))) == 1
    tight = EngineOptions(threads=1, context=usage.prompt_tokens + 8)  # what is kept would not fit into it
    assert answer(model_path, tmp_path, "Who wrote this?", tight, 2)[1].reused_tokens == 0


@pytest.mark.slow
def test_a_chat_goes_on_bit_by_bit(model_path: Path, tmp_path: Path) -> None:
    """What was evaluated token by token beyond 256 tokens, as answers are, goes on as it would have without a break."""
    begun, resumed = (opened(model_path, tmp_path) for _ in range(2))
    text = begun.tokenize(DOCUMENT, begin=False)
    begun.prefill(text[:250])
    for token in text[250:280]:
        begun.feed(token)
    begun.keep("a chat")
    resumed.take_up("a chat")
    assert bytes(take_state(begun._llama, resumed._context)) == bytes(take_state(begun._llama, begun._context))
    for tokens in ([*text[:280], 5, 6, 7], [*text[:275], 5, 6, 7]):
        assert begun.prefill(tokens) == resumed.prefill(tokens) == len(tokens) - 3
        for token in (8, 9):
            for model in (begun, resumed):
                model.feed(token)
            assert begun.logits().tobytes() == resumed.logits().tobytes()
    for model in (begun, resumed):
        model.close()


@pytest.mark.slow
def test_a_chat_that_is_dropped_leaves_nothing(model_path: Path, tmp_path: Path) -> None:
    model = opened(model_path, tmp_path)
    model.prefill(model.tokenize(DOCUMENT, begin=False)[:BLOCK])
    model.keep("a chat")
    assert only_file(tmp_path)
    model.drop("a chat")
    model.close()
    assert not list(tmp_path.glob("*.kv"))


@pytest.mark.slow
def test_other_settings_and_damage_begin_cold(model_path: Path, tmp_path: Path) -> None:
    options = EngineOptions(threads=1, context=2048)
    cold, _ = answer(model_path, tmp_path, "What is it about?", options)
    path = only_file(tmp_path)
    other = EngineOptions(threads=1, cache_type_k="q8_0", context=2048)
    assert answer(model_path, tmp_path, "What is it about?", other)[1].reused_tokens == 0
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    again, usage = answer(model_path, tmp_path, "What is it about?", options)
    assert (again, usage.reused_tokens) == (cold, 0)


@pytest.mark.slow
def test_the_commands(home: Path, tmp_path: Path) -> None:
    words = ["run", DOCUMENT, "-n", "4", "--json", "--temperature", "0", "-t", "1"]

    def run(*more: str, **environment: str) -> dict[str, object]:
        done = localllm(*words, *more, **{"LOCALLLM_NO_CACHE": "0", **environment})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def reused(found: dict[str, object]) -> int:
        return found["usage"]["reused_tokens"]

    run("--no-cache")
    assert not list((home / "prefixes").glob("*"))
    run("--cache-size", "0.000001")
    first = run()
    assert reused(first) == 0
    second = run()
    assert second["text"] == first["text"]
    assert reused(second) > 256
    shown = localllm("cache", "show")
    assert "smollm2" in shown.stdout
    assert "1 prompts" in shown.stderr
    assert json.loads(localllm("cache", "show", "--json").stdout)[0]["tokens"] > 256
    assert "free again" in localllm("cache", "clear").stderr
    assert reused(run(LOCALLLM_NO_CACHE="1")) == 0
    assert not list((home / "prefixes").glob("*.kv"))
