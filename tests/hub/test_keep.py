"""Names that models get here, models that changed or vanished, and what is left when something fails on the way."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from localllm.commands.register import _search as search
from localllm.commands.register import register
from localllm.errors import LocalLLMError, UsageError
from localllm.hub import carry, foreign, keep, local, store
from localllm.hub.download import Event
from localllm.hub.foreign import Foreign, Skipped
from localllm.hub.reference import parse
from localllm.hub.store import Installed, StoredFile
from tests.hub.test_carry import GOOD, entry, manifest, read, tar
from tests.hub.test_foreign import REGISTRY, ollama_layer, ollama_model
from tests.support.command import COMMAND, localllm
from tests.support.gguf_files import gguf

MODEL = gguf() + b"weights" * 100


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def quiet(_: Event) -> None:
    """No progress."""


def model(path: Path, content: bytes = MODEL) -> Foreign:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (found,) = foreign.in_folder(path)
    assert isinstance(found, Foreign)
    return found


def names(here: Path) -> list[str]:
    return sorted(p.name for p in (here / "data/models").iterdir())


def test_a_file_that_was_written_anew_keeps_its_name(here: Path) -> None:
    assert keep.register(model(here / "tale.gguf"))[1]
    (again,) = foreign.in_folder(here / "tale.gguf")
    assert isinstance(again, Foreign)
    assert not keep.register(again)[1]
    changed, new = keep.register(model(here / "tale.gguf", MODEL + b"2"))
    assert (changed.name, new, changed.files[0].size) == ("tale", True, len(MODEL) + 1)
    assert names(here) == ["tale"]
    assert keep.register(model(here / "other/tale.gguf"))[0].name == "tale-2"
    forced, _ = keep.register(model(here / "third/tale.gguf"), force=True)
    assert (forced.name, forced.files[0].path) == ("tale", str(here / "third/tale.gguf"))
    assert names(here) == ["tale", "tale-2"]


def test_a_copy_is_made_once(here: Path) -> None:
    found = model(here / "tale.gguf")
    assert keep.copy(found, "", quiet)[1]
    assert not keep.copy(found, "", quiet)[1]
    assert not keep.copy(found, "tale", quiet)[1]
    assert keep.copy(model(here / "other/tale.gguf", MODEL[:-1] + b"!"), "", quiet)[0].name == "tale-2"
    next((here / "data/models/tale").glob("*.gguf")).unlink()
    with pytest.raises(LocalLLMError, match="tale is another model's name already"):
        keep.copy(found, "tale", quiet)
    assert keep.copy(found, "tale", quiet, force=True)[1]
    assert names(here) == ["tale", "tale-2"]


def test_names_that_would_mean_something_else_are_not_given(here: Path) -> None:
    local.change_aliases(here / "data", lambda _: {"tale": "owner/repo"})
    found = model(here / "tale.gguf")
    assert keep.register(found)[0].name == "tale-2"
    for name, said in (
        ("tale", "tale is an alias"),
        ("smollm2:135m", "is a name of the catalogue"),
        ("x.gguf", "would always be read as a file"),
        ("../x", "is not a name"),
    ):
        with pytest.raises(LocalLLMError, match=said):
            keep.register(found, name)
    assert keep.register(model(here / "smollm2.gguf"))[0].name == "smollm2-local"
    assert names(here) == ["smollm2-local", "tale-2"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [("Tale_", "tale"), ("..a..b.", "a-b"), ("モデル-Q4_0", "model:q4_0"), ("x" * 200, "x" * 80), ("-_-", "model")],
)
def test_every_file_gets_a_name(here: Path, stem: str, name: str) -> None:
    assert keep.register(model(here / f"own/{stem}.gguf"))[0].name == name


def test_pipes_are_not_opened(here: Path) -> None:
    root = here / "ollama"
    layer = ollama_layer(root, b"")
    blob = root / "blobs" / layer["digest"].replace(":", "-")
    blob.unlink()
    os.mkfifo(blob)
    ollama_model(root, f"{REGISTRY}/library/pipe/latest", layer)
    os.mkfifo(root / f"manifests/{REGISTRY}/library/pipe/other")
    os.mkfifo(here / "pipe.gguf")
    (skipped,) = foreign.in_ollama(root)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == f"{blob} is not a regular file"
    assert list(foreign.in_folder(here)) == []


def test_what_another_user_has_is_not_no_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama's service keeps its models where only its group may look."""
    mine, locked = here / "mine", here / "locked"
    model(mine / "tale.gguf")
    locked.mkdir(mode=0)
    monkeypatch.setenv("OLLAMA_MODELS", str(locked / "models"))
    root = os.geteuid() == 0
    # Its imports happen now: another user may not be able to read where this code lies.
    with pytest.raises(UsageError):
        register()
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(LocalLLMError, match=r"locked/models is another user's and cannot be read"):
            register(ollama=True)
    finally:
        if root:
            os.seteuid(0)
    found = search([here / "none", mine, locked / "models"], foreign.in_folder)
    assert [each.name for each in found] == ["tale"]


def test_folders_count_too(here: Path) -> None:
    for number in range(foreign.MAX_ENTRIES + 1):
        (here / f"{number}").mkdir()
    with pytest.raises(LocalLLMError, match="has more than 10,000 files"):
        list(foreign.in_folder(here))
    shutil.rmtree(here / "0")
    assert list(foreign.in_folder(here)) == []


def test_a_tar_takes_the_place_of_the_same_model_that_has_gone(here: Path) -> None:
    found = keep.with_sums(model(here / "some.gguf"), quiet)
    keep.register(found, "some:model")
    packed = tar(("manifest.json", manifest(entry("m.gguf", MODEL))), ("m.gguf", MODEL))
    assert not read(packed)
    (here / "some.gguf").unlink()
    assert read(packed)
    assert [m.path.read_bytes() for m in store.everything()] == [MODEL]


@pytest.mark.parametrize("file", ["My: Model?.gguf", "con.gguf", "tale.gguf", "ü" * 120 + ".gguf"])
def test_whatever_a_file_is_called_its_tar_can_be_imported(here: Path, file: str) -> None:
    path = here / "own" / file
    keep.register(model(path), "mine")
    for reference in ("mine", str(path)):
        target = io.BytesIO()
        found = store.find(parse(reference))
        assert found is not None
        packed = carry.export(found, target, carry.local_name(found), quiet)
        assert packed.how == "", "it will not be used in place over there"
        shutil.rmtree(here / "data")
        assert read(target.getvalue())
        (brought,) = store.everything()
        assert (brought.path.read_bytes(), brought.how, brought.place) == (MODEL, "unpacked from a tar", "data")
        shutil.rmtree(here / "data")
        keep.register(model(path), "mine")


def test_two_files_of_one_name(here: Path) -> None:
    files = []
    for folder, content in (("a", MODEL), ("b", b"{}"), ("c", b"[]"), ("d/c", b"{ }")):
        path = here / folder / ("m.gguf" if folder == "a" else "Tokenizer.json" if folder == "b" else "tokenizer.json")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        files.append(StoredFile(path, len(content)))
    whole = Installed("some", "gguf", "", tuple(files[:1]), tuple(files[1:]), "data", 0.0)
    target = io.BytesIO()
    events: list[Event] = []
    carry.export(whole, target, "some", events.append)
    assert read(target.getvalue())
    (brought,) = store.everything()
    assert [f.path.name for f in brought.companions] == ["Tokenizer.json", "c_tokenizer.json", "c_c_tokenizer.json"]
    assert [f.path.read_bytes() for f in brought.companions] == [b"{}", b"[]", b"{ }"]
    first = [event.done for event in events if event.file == "m.gguf"]
    assert first == [len(MODEL) // 2, len(MODEL)], "hashed, then written"


def test_a_file_that_changes_while_it_is_packed_leaves_no_tar(here: Path) -> None:
    read(tar(*GOOD))
    (found,) = store.everything()
    for content in (MODEL[:-1], MODEL + b"!", MODEL[:-1] + b"!"):

        def change(event: Event, content: bytes = content) -> None:
            found.files[0].path.write_bytes(content)  # while the file before it is hashed

        unsummed = Installed("x", "gguf", "", (StoredFile(found.path, len(MODEL)),), (), "data", 0.0)
        found.files[0].path.write_bytes(MODEL)
        with pytest.raises(LocalLLMError, match=r"m\.gguf is not what was recorded of it"):
            carry.export_file(unsummed, here / "x.tar", "x", change, force=False)
        assert not list(here.glob("*x.tar*"))


def test_ctrl_c_leaves_nothing(here: Path) -> None:
    big = gguf() + os.urandom(4_000_000)
    packed = tar(("manifest.json", manifest(entry("m.gguf", big))), ("m.gguf", big))
    process = subprocess.Popen([*COMMAND, "import", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(packed[:3_000_000])
    process.stdin.flush()
    end = time.monotonic() + 20
    while not list(here.glob("data/models/.import-*/m.gguf")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, b"")
    assert names(here) == []


def bring(name: str, content: bytes) -> None:
    with keep.arriving(name) as folder:
        file = keep.write_file(io.BytesIO(content).read, folder / "m.gguf", len(content), quiet)
        local.write_manifest(folder, local.Manifest(name, "gguf", (file,)))


def test_of_two_that_arrive_under_one_name_the_first_stays(here: Path) -> None:
    with keep.arriving("some") as folder:
        file = keep.write_file(io.BytesIO(MODEL).read, folder / "m.gguf", len(MODEL), quiet)
        local.write_manifest(folder, local.Manifest("some", "gguf", (file,)))
        bring("some", MODEL)  # the same model: both are content
    with (
        pytest.raises(LocalLLMError, match="other has become another model's name meanwhile"),
        keep.arriving("other") as folder,
    ):
        local.write_manifest(folder, local.Manifest("other", "gguf", (file,)))
        bring("other", MODEL + b"2")
    assert names(here) == ["other", "some"]
    assert (here / "data/models/other/m.gguf").read_bytes() == MODEL + b"2"


def test_leftovers_are_of_dead_processes_or_old(here: Path) -> None:
    models = here / "data/models"
    for pid, age in ((os.getpid(), 0), (os.getpid(), 2), (2**22 + 1, 0)):  # more than any process's number
        folder = models / f".import-{pid}-{age}"
        folder.mkdir(parents=True)
        (folder / "m.gguf").write_bytes(MODEL)
        then = time.time() - age * 24 * 3600
        for path in (folder / "m.gguf", folder):
            os.utime(path, (then, then))
    assert {p.name for p in keep.leftovers()} == {f".import-{os.getpid()}-2", f".import-{2**22 + 1}-0"}


def test_a_model_set_aside_by_a_killed_import_gets_its_name_back(here: Path) -> None:
    """As kill -9 between the two renames of `arriving` leaves it."""
    bring("some", MODEL)
    aside = here / f"data/models/.import-{2**22 + 1}-x-old"
    (here / "data/models/some").rename(aside)
    assert keep.leftovers() == []
    assert names(here) == ["some"]
    shutil.copytree(here / "data/models/some", aside)
    assert keep.leftovers() == [aside], "the name has been given since"


def test_what_would_be_another_model_is_not_registered(here: Path) -> None:
    root = here / "ollama"
    ollama_model(
        root, f"{REGISTRY}/library/x/latest", ollama_layer(root, MODEL), ollama_layer(root, MODEL + b"a", "adapter")
    )
    (skipped,) = foreign.in_ollama(root)
    assert isinstance(skipped, Skipped)
    assert "adapter" in skipped.reason
    assert keep.register(model(here / "tale.gguf.gguf"))[0].name == "tale"


def test_what_is_checked_is_what_will_be_opened(here: Path) -> None:
    bad = b"GGUF" + b"\xff" * 200
    for files in ((("model", MODEL), ("evil.gguf", bad)), (("m.gguf", MODEL), ("mmproj.gguf", bad))):
        members = (("manifest.json", manifest(*(entry(*file) for file in files))), *files)
        with pytest.raises(LocalLLMError):
            read(tar(*members))
        assert not list(here.glob("data/models/*"))


def test_a_device_is_not_replaced_by_a_tar(here: Path) -> None:
    read(tar(*GOOD))
    (found,) = store.everything()
    os.mkfifo(here / "pipe")
    for target in (here / "pipe", here):
        with pytest.raises(LocalLLMError, match="is not a regular file"):
            carry.export_file(found, target, "x", quiet, force=True)
    assert (here / "pipe").is_fifo()


@pytest.mark.slow
def test_one_broken_manifest_does_not_stop_the_others(here: Path) -> None:
    for name in "abc":
        model(here / f"own/{name}.gguf", MODEL + name.encode())
    (here / "data/models/b").mkdir(parents=True)
    (here / "data/models/b/manifest.json").write_text("{")
    done = localllm("register", str(here / "own"))
    assert done.returncode == 0
    assert "b.gguf is passed over: " in done.stderr
    assert done.stderr.endswith('localllm run a "..." runs the first\n')
    assert names(here) == ["a", "b", "c"]
    alone = localllm("register", str(here / "own/b.gguf"))
    assert (alone.returncode, "is no manifest" in alone.stderr) == (1, True)
    assert localllm("import", "--in-place", str(here / "own/a.gguf")).stdout == "a\n"


def test_an_empty_folder_of_ollama_s_does_not_hide_the_next(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code looks for LM Studio, whose folders can all be moved."""
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home/.lmstudio/models").mkdir(parents=True)
    model(here / "home/.cache/lm-studio/models/publisher/Tale-GGUF/Tale-Q4_0.gguf")
    assert "tale:q4_0" in localllm("register", "--lmstudio").stdout


@pytest.mark.slow
def test_nothing_is_replaced_that_is_no_model_of_ours(here: Path) -> None:
    """Files of the user's where the manifest would go: they were deleted, the registered one among them."""
    own = here / "data/models/foo/foo.gguf"
    model(own)
    (own.parent / "notes.txt").write_text("mine")
    for words in (["import", str(own)], ["import", str(own), "--copy"], ["import", str(own), "--force"]):
        done = localllm(*words)
        assert done.returncode == 2
        assert "is no part of a model of ours (move it, or choose another --name)" in done.stderr
    assert sorted(p.name for p in own.parent.iterdir()) == ["foo.gguf", "notes.txt"]
    assert localllm("import", str(own), "--name", "bar").stdout == "bar\n"
    assert own.exists()
    model(here / "m.gguf")
    assert localllm("import", str(here / "m.gguf"), "--copy", "--name", "baz").returncode == 0
    inside = next((here / "data/models/baz").glob("*.gguf"))
    done = localllm("import", str(inside), "--name", "baz", "--force")
    assert (done.returncode, inside.exists()) == (2, True)
    assert "lies in the folder that would be replaced" in done.stderr
