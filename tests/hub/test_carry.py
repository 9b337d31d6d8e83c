"""export and import: a model in a tar, read as what a stranger may have made."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import LocalLLMError
from localllm.hub import carry, store
from localllm.hub.reference import parse
from tests.support.command import COMMAND, localllm
from tests.support.gguf_files import gguf

MODEL = gguf() + b"weights" * 100
NOTE = b"{}"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    monkeypatch.setenv("LOCALLLM_HOME", str(folder))
    return folder


def entry(name: str, content: bytes, **changes: Any) -> dict[str, Any]:
    return {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes}


def manifest(*files: dict[str, Any], **changes: Any) -> bytes:
    values = {"name": "some:model", "format": "gguf", "files": files, "quant": "Q4_0", **changes}
    return json.dumps(values).encode()


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return target.getvalue()


GOOD = (("manifest.json", manifest(entry("m.gguf", MODEL), entry("t.json", NOTE))), ("m.gguf", MODEL), ("t.json", NOTE))


def read(packed: bytes, name: str = "", *, force: bool = False) -> bool:
    return carry.import_tar(io.BytesIO(packed), name, lambda _: None, force=force)[1]


def test_a_model_is_unpacked(data: Path) -> None:
    assert read(tar(*GOOD))
    (model,) = store.everything()
    assert (model.name, model.quant, model.path.read_bytes()) == ("some:model", "Q4_0", MODEL)
    assert [f.path.name for f in model.companions] == ["t.json"]
    assert not read(tar(*GOOD)), "it is here already"
    other = (("manifest.json", manifest(entry("m.gguf", MODEL + b"x"))), ("m.gguf", MODEL + b"x"))
    with pytest.raises(LocalLLMError, match="some:model is another model's name already"):
        read(tar(*other))
    assert read(tar(*other), force=True)
    assert store.everything()[0].path.read_bytes() == MODEL + b"x"
    assert read(tar(*GOOD), "another")
    assert sorted(p.name for p in (data / "models").iterdir()) == ["another", "some=model"]


def special(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("m.gguf")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


FIRST = ("m.gguf", MODEL)
HOSTILE: dict[str, tuple[tuple[str, bytes] | tarfile.TarInfo, ...]] = {
    "no manifest": (FIRST,),
    "manifest not first": (FIRST, GOOD[0]),
    "manifest of garbage": (("manifest.json", b"\xff{"), FIRST),
    "manifest nested": (("manifest.json", b"[" * 100_000), FIRST),
    "manifest of a list": (("manifest.json", b"[]"), FIRST),
    "no files": (("manifest.json", manifest()),),
    "unknown format": (("manifest.json", manifest(entry("m.gguf", MODEL), format="exe")), FIRST),
    "bad name": (("manifest.json", manifest(entry("m.gguf", MODEL), name="../x")), FIRST),
    "leads out": (("manifest.json", manifest(entry("../m.gguf", MODEL))), ("../m.gguf", MODEL)),
    "absolute": (("manifest.json", manifest(entry("/tmp/m.gguf", MODEL))), ("/tmp/m.gguf", MODEL)),
    "in a folder": (("manifest.json", manifest(entry("a/m.gguf", MODEL))), ("a/m.gguf", MODEL)),
    "named twice": (("manifest.json", manifest(entry("m.gguf", MODEL), entry("M.gguf", MODEL))), FIRST),
    "names the manifest": (("manifest.json", manifest(entry("m.gguf", MODEL), entry("manifest.json", NOTE))), FIRST),
    "there twice": (*GOOD, FIRST),
    "more than named": (*GOOD, ("extra", b"x")),
    "less than named": GOOD[:2],
    "symbolic link": (GOOD[0], special(tarfile.SYMTYPE), GOOD[2]),
    "hard link": (GOOD[0], special(tarfile.LNKTYPE), GOOD[2]),
    "device": (GOOD[0], special(tarfile.CHRTYPE), GOOD[2]),
    "pipe": (GOOD[0], special(tarfile.FIFOTYPE), GOOD[2]),
    "wrong size": (("manifest.json", manifest(entry("m.gguf", MODEL, size=5))), FIRST),
    "negative size": (("manifest.json", manifest(entry("m.gguf", MODEL, size=-5))), FIRST),
    "huge size": (("manifest.json", manifest(entry("m.gguf", MODEL, size=1 << 60))), FIRST),
    "wrong sum": (("manifest.json", manifest(entry("m.gguf", MODEL, sha256="0" * 64))), FIRST),
    "no sum": (("manifest.json", manifest(entry("m.gguf", MODEL, sha256=""))), FIRST),
    "flipped byte": (GOOD[0], ("m.gguf", MODEL[:-1] + b"!"), GOOD[2]),
    "code": (("manifest.json", manifest(entry("m.gguf", MODEL), entry("x.py", NOTE))), FIRST, ("x.py", NOTE)),
    "from the far future": (("manifest.json", manifest(entry("m.gguf", MODEL), created=1e30)), FIRST),
    "from no time": (("manifest.json", manifest(entry("m.gguf", MODEL), created=float("nan"))), FIRST),
    "infinite size": (("manifest.json", manifest(entry("m.gguf", MODEL, size=float("inf")))), FIRST),
    "no GGUF": (("manifest.json", manifest(entry("m.gguf", b"evil"))), ("m.gguf", b"evil")),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_leaves_nothing(data: Path, tmp_path: Path, case: str) -> None:
    with pytest.raises(LocalLLMError) as caught:
        read(tar(*HOSTILE[case]))
    assert str(caught.value)
    assert list((data / "models").glob("*")) == []
    assert not list(tmp_path.glob("*.gguf"))


def test_another_model_does_not_get_the_catalogue_s_name(data: Path) -> None:
    packed = tar(("manifest.json", manifest(entry("m.gguf", MODEL), name="smollm2:135m")), FIRST)
    with pytest.raises(LocalLLMError, match="smollm2:135m is a name of the catalogue"):
        read(packed, "smollm2:135m")
    assert read(packed)
    assert [m.name for m in store.everything()] == ["smollm2-local:135m"]
    assert store.locate(parse("smollm2:135m")) is None


def test_a_truncated_tar_leaves_nothing(data: Path) -> None:
    packed = tar(*GOOD)
    used = len(packed.rstrip(b"\0"))
    for cut in range(0, used, 97):
        with pytest.raises(LocalLLMError):
            read(packed[:cut])
        assert list((data / "models").glob("*")) == [], cut


class Endless(io.RawIOBase):
    """A beginning, and zeros for ever."""

    def __init__(self, beginning: bytes) -> None:
        self.beginning, self.given = beginning, 0

    def read(self, size: int = -1, /) -> bytes:
        block = self.beginning[:size].ljust(size, b"\0")
        self.beginning = self.beginning[size:]
        self.given += size
        assert self.given < 64 << 20
        return block


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("before", [b"", tar(GOOD[0]).rstrip(b"\0").ljust(1024, b"\0")])
def test_a_header_larger_than_memory_is_not_read(data: Path, kind: bytes, before: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 7 << 30
    with pytest.raises(LocalLLMError, match="has a header that is larger than any"):
        carry.import_tar(Endless(before + info.tobuf(tarfile.USTAR_FORMAT)), "", lambda _: None, force=False)
    assert list((data / "models").glob("*")) == []


def test_garbage_is_no_tar(data: Path) -> None:
    for garbage in (b"", b"x" * 5000, os.urandom(5000), MODEL):
        with pytest.raises(LocalLLMError):
            read(garbage)


@pytest.mark.slow
def test_there_and_back_again(home: Path, tmp_path: Path) -> None:
    """The real model, out of one data directory into another, and it runs there without a network."""
    packed = tmp_path / "model.tar"
    done = localllm("export", "smollm2:135m", str(packed))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("smollm2:135m (98 MB) is packed")
    again = localllm("export", "smollm2:135m", str(packed))
    assert (again.returncode, "exists (--force replaces it)" in again.stderr) == (2, True)
    there = {"LOCALLLM_HOME": str(tmp_path / "there"), "LOCALLLM_OFFLINE": "1"}
    brought = localllm("import", "-", input=packed.read_bytes(), **there)
    # It is the catalogue's very model, so the catalogue's name means it there, as it did here.
    assert (brought.returncode, brought.stdout) == (0, "smollm2:135m\n"), brought.stderr
    ran = localllm("run", "smollm2:135m", "Say hi", "-n", "4", **there)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert localllm("verify", **there).stdout == "ok smollm2:135m: 1 file\n"
    assert "smollm2:135m is here already" in localllm("import", str(packed), **there).stderr


def test_a_damaged_model_is_not_exported(data: Path, tmp_path: Path) -> None:
    read(tar(*GOOD))
    (model,) = store.everything()
    model.path.write_bytes(MODEL[:-1] + b"!")
    with pytest.raises(LocalLLMError, match=r"m\.gguf is not what was recorded of it"):
        carry.export_file(model, tmp_path / "x.tar", "x", lambda _: None, force=False)
    assert not list(tmp_path.glob("*x.tar*"))


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("words", [["import", "{folder}/m.tar"], ["export", "some:model", "{folder}/x.tar"]])
def test_a_full_disk_leaves_nothing(data: Path, tmp_path: Path, words: list[str]) -> None:
    big = gguf() + os.urandom(500_000)
    files = (("manifest.json", manifest(entry("m.gguf", big))), ("m.gguf", big))
    (tmp_path / "m.tar").write_bytes(tar(*files))
    if words[0] == "export":
        read(tar(*files))
    before = sorted(p for p in tmp_path.rglob("*"))
    done = subprocess.run(
        [*COMMAND, *(word.format(folder=tmp_path) for word in words)],
        preexec_fn=limited(100_000),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is full" in done.stderr
    assert sorted(p for p in tmp_path.rglob("*") if p.name not in ("data", "models")) == [
        p for p in before if p.name not in ("data", "models")
    ]


@pytest.mark.slow
def test_a_killed_import_can_be_repeated_and_pruned(data: Path, tmp_path: Path) -> None:
    big = gguf() + os.urandom(4_000_000)
    packed = tar(("manifest.json", manifest(entry("m.gguf", big))), ("m.gguf", big))
    process = subprocess.Popen([*COMMAND, "import", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(packed[:3_000_000])
    process.stdin.flush()
    end = time.monotonic() + 20
    while not list(data.glob("models/.import-*/m.gguf")) and time.monotonic() < end:
        time.sleep(0.02)
    assert list(data.glob("models/.import-*/m.gguf"))
    assert "there is nothing to remove" in localllm("prune").stderr, "it is still going on"
    process.kill()
    process.wait()
    process.stdin.close()
    assert store.everything() == []
    assert read(packed)
    done = localllm("prune", "--yes")
    assert "interrupted import" in done.stdout
    assert [p.name for p in (data / "models").iterdir()] == ["some=model"]


def test_export_reads_through_the_hub_s_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "data"))
    home = tmp_path / "hub/models--owner--Repo-GGUF"
    (home / "blobs").mkdir(parents=True)
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    git = hashlib.sha1(b"blob 2\0{}").hexdigest()
    for name, content, etag in (
        ("m-Q4_0.gguf", MODEL, hashlib.sha256(MODEL).hexdigest()),
        ("tokenizer.json", NOTE, git),
    ):
        (home / "blobs" / etag).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{etag}")
    (model,) = store.everything()
    target = io.BytesIO()
    packed = carry.export(model, target, carry.local_name(model), lambda _: None)
    assert packed.name == "repo-gguf:q4_0"
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as archive:
        assert [m.name for m in archive] == ["manifest.json", "m-Q4_0.gguf", "tokenizer.json"]
        assert all(m.isreg() for m in archive)
    assert read(target.getvalue())
