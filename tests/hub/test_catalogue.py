"""The catalogue holds together, and every entry says what an entry must."""

from __future__ import annotations

import re

import pytest

from localllm.errors import ModelNotFound
from localllm.hub import catalogue
from localllm.hub.catalogue import Entry, HubSource, WheelSource
from localllm.hub.reference import ModelName
from localllm.settings import build
from localllm.types import Sampling

ENTRIES = catalogue.everything()


def test_enough_models() -> None:
    kinds = [e.kind for e in ENTRIES]
    assert kinds.count("chat") >= 13
    assert kinds.count("embedding") >= 2
    assert len({e.name for e in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_entry(entry: Entry) -> None:
    assert re.fullmatch(r"[a-z0-9.-]+:[a-z0-9.-]+", entry.name)
    assert entry.title and entry.publisher and entry.licence
    assert entry.homepage.startswith("https://")
    assert 1e7 < entry.parameters < 1e12
    assert 256 <= entry.context <= 1 << 24
    build(Sampling, entry.sampling)
    assert set(entry.sampling) <= {"temperature", "top_k", "top_p", "min_p", "repeat_penalty"}
    assert entry.sources
    for source in entry.sources:
        assert source.sha256 == "" or re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert source.size == 0 or source.size < entry.memory < source.size * 3 + 3e9
        if isinstance(source, HubSource):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository)
            assert source.file.endswith(".gguf")
            assert not re.search(r"-\d{5}-of-\d{5}", source.file)
        else:
            assert isinstance(source, WheelSource)
            assert source.sha256


def test_the_default() -> None:
    entry = catalogue.get(catalogue.DEFAULT_MODEL)
    assert entry.name == "smollm2:135m"
    assert [type(s) for s in entry.sources] == [HubSource, WheelSource]
    assert catalogue.find(ModelName("smollm2")) == entry


def test_a_name_that_comes_near() -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalogue.get(ModelName("smolm2", "135m"))
    assert "smollm2:135m" in caught.value.hint
    with pytest.raises(ModelNotFound) as caught:
        catalogue.get(ModelName("smollm2", "9b"))
    assert "smollm2:135m" in caught.value.hint
