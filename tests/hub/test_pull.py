"""`pull` from a real server by the real program: what is fetched, what is refused, what is said."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import COMMAND, Terminal, localllm
from tests.support.gguf_files import METADATA, U32, gguf, pair
from tests.support.hub_environment import environment, tree
from tests.support.hub_server import Hub, serve

pytestmark = pytest.mark.slow  # a server, and a process a step

MODEL = gguf() + os.urandom(3_000_000)
TOKEN = "hf_aVerySecretTokenOfTheTest"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


def pull(hub: Hub | None, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return localllm("pull", *words, **environment(hub, folder, **more))


def snapshot(folder: Path, commit: str, repository: str = "owner/repo") -> Path:
    return folder / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


def test_a_file_lies_where_the_hub_s_own_tools_look(tmp_path: Path, hub: Hub) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "tokenizer.json": b"{}"})
    done = pull(hub, tmp_path, "owner/repo:q4_0")
    path = snapshot(tmp_path, commit) / "m-Q4_0.gguf"
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    assert path.read_bytes() == MODEL
    assert path.readlink() == Path("../../blobs") / hashlib.sha256(MODEL).hexdigest()
    assert (tmp_path / "hub/models--owner--repo/refs/main").read_text() == commit
    script = (
        "from huggingface_hub import hf_hub_download, scan_cache_dir\n"
        "print(hf_hub_download('owner/repo', 'm-Q4_0.gguf', local_files_only=True))\n"
        "cache = scan_cache_dir(); print(len(cache.warnings), [r.repo_id for r in cache.repos])"
    )
    theirs = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment(hub, tmp_path)}, capture_output=True, text=True
    )
    assert theirs.stdout.splitlines() == [str(path), "0 ['owner/repo']"], theirs.stderr


def test_what_the_hub_s_own_tools_fetched_is_here(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    script = "from huggingface_hub import hf_hub_download; hf_hub_download('owner/repo', 'm-Q4_0.gguf')"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **environment(hub, tmp_path)}, check=True)
    sent = hub.sent("m-Q4_0.gguf")
    assert pull(hub, tmp_path, "owner/repo:q4_0").returncode == 0
    assert hub.sent("m-Q4_0.gguf") == sent


@pytest.mark.parametrize(
    "reference",
    [
        "owner/repo:q4_0",
        "owner/repo/sub/m-Q4_0.gguf",
        "owner/repo@v1:Q4_0",
        "{url}/owner/repo/blob/v1/sub/m-Q4_0.gguf?download=true",
        "https://huggingface.co/owner/repo/resolve/main/sub/m-Q4_0.gguf",
        "hf.co/owner/repo:Q4_0",
    ],
)
def test_every_way_to_name_a_file(tmp_path: Path, hub: Hub, reference: str) -> None:
    commit = hub.add("owner/repo", {"sub/m-Q4_0.gguf": MODEL, "sub/m-Q8_0.gguf": MODEL + b"8"})
    hub.branch("owner/repo", "v1", commit)
    done = pull(hub, tmp_path, reference.format(url=hub.url), "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{snapshot(tmp_path, commit)}/sub/m-Q4_0.gguf\n"


def test_shards_come_whole_and_companions_with_their_model(tmp_path: Path, hub: Hub) -> None:
    shards = {f"big-Q8_0-0000{i}-of-00003.gguf": gguf() + os.urandom(500_000) for i in (1, 2, 3)}
    beside = {
        "mmproj-BF16.gguf": gguf(),
        "mmproj-F16.gguf": gguf() + b"f",
        "chat_template.jinja": b"{{ x }}",
        "tokenizer.json": b"{}",
        "LICENSE": b"MIT",
    }
    never = {"evil.py": b"import os", "pytorch_model.bin": b"pickle", "imatrix_x.gguf": gguf(), "image.png": b"png"}
    commit = hub.add("owner/repo", {**shards, **beside, **never, "other-Q4_0.gguf": MODEL})
    done = pull(hub, tmp_path, "owner/repo:Q8_0")
    assert done.returncode == 0, done.stderr
    there = {p.name for p in snapshot(tmp_path, commit).iterdir()}
    assert there == {*shards, *beside} - {"mmproj-BF16.gguf"}
    assert done.stdout.endswith("/big-Q8_0-00001-of-00003.gguf\n")


def test_shards_come_side_by_side(tmp_path: Path, hub: Hub) -> None:
    """While the first stands still, the others come."""
    names = [f"big-Q8_0-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    commit = hub.add("owner/repo", {name: gguf() + os.urandom(2_000_000) for name in names})
    # More than the header's reader asks for, so that only the download stands still.
    hub.fault("stall", match=names[0], after=1_200_000, seconds=20.0, times=None)
    process = subprocess.Popen(
        [*COMMAND, "pull", f"owner/repo/{names[0]}"],
        env={**os.environ, **environment(hub, tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 15
    while time.monotonic() < end and not all((snapshot(tmp_path, commit) / name).exists() for name in names[1:]):
        time.sleep(0.05)
    assert sorted(p.name for p in snapshot(tmp_path, commit).iterdir()) == names[1:]
    assert list(tree(tmp_path / "hub").values()).count("partial") == 1
    process.kill()
    process.wait()


@pytest.mark.parametrize("layout", ["sharded safetensors", "one safetensors", "onnx"])
def test_checkpoints_come_with_what_their_conversion_needs(tmp_path: Path, hub: Hub, layout: str) -> None:
    needed = {"config.json": b'{"hidden_size": 8}', "tokenizer.json": b"{}", "generation_config.json": b"{}"}
    never = {"modeling_x.py": b"import os", "pytorch_model.bin": b"pickle", "consolidated.safetensors": b"again"}
    if layout == "sharded safetensors":
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        needed |= {name: name.encode() for name in names} | {"model.safetensors.index.json": b"{}"}
    elif layout == "one safetensors":
        needed |= {"model.safetensors": b"weights", "merges.txt": b"a b", "vocab.json": b"{}"}
    else:
        needed |= {"onnx/model_q4.onnx": b"graph", "onnx/model_q4.onnx_data": b"data"}
        never |= {"onnx/model.onnx": b"other", "onnx/model.onnx_data": b"other"}
    commit = hub.add("owner/repo", {**needed, **never})
    done = pull(hub, tmp_path, "owner/repo:q4" if layout == "onnx" else "owner/repo")
    assert done.returncode == 0, done.stderr
    root = snapshot(tmp_path, commit)
    assert {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} == set(needed)


def test_the_best_that_fits_is_chosen_by_a_rule_that_is_printed(tmp_path: Path, hub: Hub) -> None:
    files = {f"m-{q}.gguf": gguf(data=n) for q, n in (("Q2_K", 1000), ("Q4_0", 2000), ("Q8_0", 3000), ("F16", 5000))}
    hub.add("owner/repo", files)
    done = pull(hub, tmp_path, "owner/repo", "--dry-run")
    assert "owner/repo: Q8_0, the best of 4 up to Q8_0 that fits into" in done.stderr
    assert (done.returncode, done.stdout, tree(tmp_path / "hub")) == (0, "", {})


def test_one_broken_file_does_not_keep_the_others_away(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"a-Q2_K.gguf": b"no model", "m-Q4_0.gguf": MODEL})
    done = pull(hub, tmp_path, "owner/repo")
    assert (done.returncode, done.stdout[-12:]) == (0, "m-Q4_0.gguf\n"), done.stderr


def test_what_cannot_run_here_is_warned_of(tmp_path: Path, hub: Hub) -> None:
    wide = {"attention.head_count": 64, "attention.head_count_kv": 64, "attention.key_length": 1024, "block_count": 64}
    metadata = [m for m in METADATA if b"context_length" not in m and b"block_count" not in m]
    metadata += [pair(f"llama.{key}", U32, value) for key, value in {"context_length": 32768, **wide}.items()]
    hub.add("owner/repo", {"m-Q8_0.gguf": gguf(metadata), "m-Q4_0.gguf": gguf(metadata)})
    done = pull(hub, tmp_path, "owner/repo:Q8_0")
    assert done.returncode == 0
    assert "localllm: this will not run here: m-Q8_0.gguf needs 0.0 GiB for weights and 128." in done.stderr
    assert re.search(r"\(--context \d+ would fit\)", done.stderr)
    # `run` refuses by the same numbers, and names the option that would make it fit.
    refused = localllm("run", "-m", "owner/repo:Q8_0", "Hi", **environment(hub, tmp_path))
    assert refused.returncode == 1
    assert "m-Q8_0.gguf needs" in refused.stderr
    assert re.search(r"\(--context \d+ would fit\)", refused.stderr)


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["owner/repo:Q9_9"], "owner/repo has no Q9_9 (it has Q4_0, Q8_0)", 3),
        (["owner/repo/none.gguf"], "owner/repo has no file none.gguf (it has Q4_0, Q8_0)", 3),
        (["owner/repo@none:Q4_0"], "owner/repo has no such revision (see ", 3),
        (["owner/none"], "the Hub has no repository owner/none, or it is private (see ", 3),
        (
            ["owner/pickles"],
            "owner/pickles holds pickles only, which run code when they are opened (look for a GGUF",
            1,
        ),
        (
            ["owner/nothing"],
            "owner/nothing holds no GGUF, safetensors or ONNX model (is it a dataset or an adapter?)",
            3,
        ),
        (["owner/half:Q4_0"], "owner/half has no Q4_0 (it holds no model at all)", 3),
        (["nonsense"], "the catalogue has no nonsense", 3),
        (["{here}/x.gguf"], "is a file on this machine (pull takes names; localllm import takes files)", 2),
        (["https://example.com/x.gguf"], "is not an address on the Hugging Face Hub", 2),
    ],
)
def test_what_is_not_there_is_an_error_that_tells_what_is(
    tmp_path: Path, hub: Hub, words: list[str], said: str, code: int
) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "m-Q8_0.gguf": MODEL})
    hub.add("owner/pickles", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    hub.add("owner/nothing", {"README.md": b"x"})
    hub.add("owner/half", {"m-Q4_0-00001-of-00002.gguf": MODEL})
    done = pull(hub, tmp_path, *(word.format(here=tmp_path) for word in words))
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (done.stdout, tree(tmp_path / "hub")) == ("", {})


def test_several_are_pulled_though_one_fails(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/a", {"m-Q4_0.gguf": MODEL})
    hub.add("owner/b", {"m-Q4_0.gguf": gguf()})
    done = pull(hub, tmp_path, "owner/a:Q4_0", "owner/none", "owner/b:Q4_0")
    assert done.returncode == 1
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()] == ["m-Q4_0.gguf", "m-Q4_0.gguf"]
    assert done.stderr.endswith("localllm: 1 of 3 were not fetched (the reasons stand above)\n")


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop", "after": 1_000_000, "times": 3},
        {"kind": "drop", "after": 700_000, "reset": True},
        {"kind": "drop", "after": None},
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
        {"kind": "no-range"},
        {"kind": "stall", "after": 500_000, "seconds": 1.0},
    ],
    ids=lambda f: f"{f['kind']} {f.get('status', f.get('after', ''))}",
)
def test_trouble_on_the_way_is_overcome(tmp_path: Path, hub: Hub, fault: dict[str, object]) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    if fault["kind"] == "no-range":
        hub.fault("drop", match="cdn GET", after=1_000_000)
    hub.fault(match="cdn GET", **fault)
    done = pull(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
    assert done.returncode == 0, done.stderr
    assert (snapshot(tmp_path, commit) / "m-Q4_0.gguf").read_bytes() == MODEL
    assert "partial" not in tree(tmp_path / "hub").values()


def test_a_listing_that_fails_is_asked_for_again_when_the_server_says(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    hub.fault("status", match="/api/models", status=429, headers={"Retry-After": "2"})
    started = time.monotonic()
    done = pull(hub, tmp_path, "owner/repo:Q4_0")
    assert done.returncode == 0
    assert "the Hub answered owner/repo with status 429; again in 2 s" in done.stderr
    assert time.monotonic() - started > 2


def test_an_empty_file_is_a_file(tmp_path: Path, hub: Hub) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "LICENSE": b""})
    done = pull(hub, tmp_path, "owner/repo:Q4_0")
    assert done.returncode == 0, done.stderr
    assert (snapshot(tmp_path, commit) / "LICENSE").read_bytes() == b""


@pytest.mark.parametrize("body", [b"<html>please log in</html>", b"{}", b"[]", b"null"])
def test_a_login_page_in_between_is_no_defect(tmp_path: Path, hub: Hub, body: bytes) -> None:
    hub.fault("status", status=200, body=body, times=None, headers={"Content-Type": "text/html"})
    for words in (["pull", "owner/repo:Q4_0"], ["search", "tale"]):
        done = localllm(*words, **environment(hub, tmp_path))
        # An empty list is an answer too: that nothing has such a name.
        assert done.returncode == (3 if "no GGUF or ONNX model named" in done.stderr else 1)
        assert "please report it" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_server_that_wants_an_hour_is_not_waited_for(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    hub.fault("status", match="/api/models", status=429, headers={"Retry-After": "3600"}, times=None)
    done = pull(hub, tmp_path, "owner/repo:Q4_0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("localllm: the Hub answered owner/repo with status 429")


@pytest.mark.parametrize("position", [0, 1_500_000, len(MODEL) - 1])
def test_one_flipped_byte_is_refused(tmp_path: Path, hub: Hub, position: int) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    hub.fault("corrupt", match="cdn GET", at=position, times=None)
    done = pull(hub, tmp_path, "owner/repo:Q4_0")
    assert done.returncode == 1
    assert f"not {hashlib.sha256(MODEL).hexdigest()}" in done.stderr
    assert tree(tmp_path / "hub") == {}


def test_a_damaged_beginning_from_an_earlier_process_is_fetched_again(tmp_path: Path, hub: Hub) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    blobs = tmp_path / "hub/models--owner--repo/blobs"
    blobs.mkdir(parents=True)
    (blobs / (hashlib.sha256(MODEL).hexdigest() + ".incomplete")).write_bytes(bytes(1_000_000))
    assert pull(hub, tmp_path, "owner/repo:Q4_0").returncode == 0
    assert (snapshot(tmp_path, commit) / "m-Q4_0.gguf").read_bytes() == MODEL
    assert "partial" not in tree(tmp_path / "hub").values()


def test_a_small_file_is_checked_by_its_git_id(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "tokenizer.json": b'{"a": 1}'})
    hub.fault("corrupt", match="hub GET /owner/repo/resolve", at=3, times=None)
    done = pull(hub, tmp_path, "owner/repo:Q4_0")
    assert done.returncode == 1
    assert "tokenizer.json of owner/repo has the checksum" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.gguf",
        "/evil.gguf",
        "a/../../evil.gguf",
        "..\\evil.gguf",
        "C:evil.gguf",
        "NUL.gguf",
        "a\x1b[2Jb.gguf",
    ],
)
def test_a_name_that_leads_out_is_never_a_file(tmp_path: Path, hub: Hub, name: str) -> None:
    hub.add("owner/repo", {name: MODEL, "m-Q4_0.gguf": MODEL})
    hub.add("owner/evil", {name: MODEL})
    assert pull(hub, tmp_path, "owner/repo:Q4_0").returncode == 0
    done = pull(hub, tmp_path, "owner/evil")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is no safe name for a file (do not trust where it comes from)" in done.stderr
    assert "\x1b" not in done.stderr
    assert not list(tmp_path.rglob("*evil*"))
    assert set(tree(tmp_path).values()) == {"link", "file"}
    assert len(list(tmp_path.rglob("*.gguf"))) == 1


def test_a_mirror_that_keeps_its_answers_short(tmp_path: Path, hub: Hub) -> None:
    hub.terse = True
    commit = hub.add("owner/repo", {"sub/m-Q4_0.gguf": MODEL, "tokenizer.json": b"{}"})
    done = pull(hub, tmp_path, "owner/repo:Q4_0")
    assert done.returncode == 0, done.stderr
    assert (snapshot(tmp_path, commit) / "sub/m-Q4_0.gguf").readlink().name == hashlib.sha256(MODEL).hexdigest()
    assert (snapshot(tmp_path, commit) / "tokenizer.json").read_bytes() == b"{}"


def test_a_changed_revision_in_between(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    hub.fault("drop", match="cdn GET", after=1_000_000, times=None)
    command = [*COMMAND, "pull", "owner/repo/m-Q4_0.gguf"]
    variables = {**os.environ, **environment(hub, tmp_path)}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while "partial" not in tree(tmp_path / "hub").values() and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert "partial" in tree(tmp_path / "hub").values()
    changed = gguf() + os.urandom(2_000_000)
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": changed})
    hub.heal()
    done = pull(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
    assert done.returncode == 0, done.stderr
    assert (snapshot(tmp_path, commit) / "m-Q4_0.gguf").read_bytes() == changed
    assert set(tree(tmp_path / "hub").values()) == {"file", "link"}  # what was begun of the old revision has gone


def test_what_was_begun_of_another_revision_is_kept(tmp_path: Path, hub: Hub) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    hub.branch("owner/repo", "dev", commit)
    hub.add("owner/repo", {"m-Q4_0.gguf": gguf()})
    hub.fault("drop", match="cdn GET", after=1_200_000, times=None)
    command = [*COMMAND, "pull", "owner/repo@dev:Q4_0"]
    variables = {**os.environ, **environment(hub, tmp_path)}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not [p for p in tmp_path.rglob("*.incomplete") if p.stat().st_size] and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    hub.heal()
    assert pull(hub, tmp_path, "owner/repo:Q4_0").returncode == 0
    assert list(tree(tmp_path / "hub").values()).count("partial") == 1
    done = pull(hub, tmp_path, "owner/repo@dev:Q4_0")
    assert "of it are here already" in done.stderr
    assert "partial" not in tree(tmp_path / "hub").values()


def test_a_new_revision_keeps_what_did_not_change(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "m-Q8_0.gguf": gguf()})
    assert pull(hub, tmp_path, "owner/repo:Q4_0").returncode == 0
    sent = hub.sent("m-Q4_0.gguf")
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "m-Q8_0.gguf": gguf() + b"new"})
    assert pull(hub, tmp_path, "owner/repo:Q8_0").returncode == 0
    done = localllm("list", "--json", **environment(hub, tmp_path))
    assert [row["name"] for row in json.loads(done.stdout)] == ["owner/repo:Q4_0", "owner/repo:Q8_0"]
    assert hub.sent("m-Q4_0.gguf") == sent


# Tokens


@pytest.mark.parametrize("place", ["HF_TOKEN", "hf auth login"])
def test_a_gated_repository_with_a_token(tmp_path: Path, hub: Hub, place: str) -> None:
    hub.token = TOKEN
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "tokenizer.json": b"{}"}, gated=True)
    variables = {"HF_TOKEN": TOKEN} if place == "HF_TOKEN" else {}
    if not variables:
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text(TOKEN)
    done = pull(hub, tmp_path, "owner/repo:Q4_0", "--debug", **variables)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    stored = [request for request in hub.requests if request.host == "cdn"]
    assert stored
    assert not [request for request in stored if "authorization" in request.headers]


@pytest.mark.parametrize("token", ["", "hf_anotherSecretToken", "hf_with\x01control"])
@pytest.mark.parametrize("kind", ["gated", "private"])
def test_without_the_right_token_the_page_to_visit_is_named(tmp_path: Path, hub: Hub, token: str, kind: str) -> None:
    hub.token = TOKEN
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL}, gated=kind == "gated", private=kind == "private")
    done = pull(hub, tmp_path, "owner/repo:Q4_0", "--debug", HF_TOKEN=token)
    # To whom may not see it a private repository is not there.
    assert (done.returncode, done.stdout) == (1 if kind == "gated" else 3, "")
    assert not token or token not in done.stderr
    if "\x01" not in token:
        last = done.stderr.splitlines()[-1]
        assert f"{hub.url}/owner/repo" in last
        assert tree(tmp_path / "hub") == {}
        assert "hf auth login" in last


def test_a_redirect_to_another_host_never_brings_the_token(tmp_path: Path, hub: Hub) -> None:
    hub.token = TOKEN
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL}, gated=True)
    with serve() as other:
        other.add("owner/repo", {"m-Q4_0.gguf": MODEL})
        hub.fault("redirect", match="resolve", location=f"{other.url}/owner/repo/resolve/main/m-Q4_0.gguf", times=None)
        pull(hub, tmp_path, "owner/repo:Q4_0", HF_TOKEN=TOKEN)
        assert other.requests
        assert not [r for r in other.requests if TOKEN in json.dumps(r.headers) + r.path]


def test_without_a_network_what_is_here_will_do(tmp_path: Path, hub: Hub) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    assert pull(hub, tmp_path, "owner/repo:Q4_0").returncode == 0
    done = pull(None, tmp_path, "owner/repo:Q4_0")
    assert (done.returncode, done.stdout) == (0, f"{snapshot(tmp_path, commit)}/m-Q4_0.gguf\n")
    assert "the Hugging Face Hub cannot be reached" in done.stderr
    assert "what is here may not be the newest" in done.stderr
    assert pull(None, tmp_path, "owner/repo:Q8_0").returncode == 1


# What is shown


def test_json_events(tmp_path: Path, hub: Hub) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    done = pull(hub, tmp_path, "owner/repo:Q4_0", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert events[-2] == {"event": "progress", "file": "m-Q4_0.gguf", "done": len(MODEL), "total": len(MODEL)}
    path = str(snapshot(tmp_path, commit) / "m-Q4_0.gguf")
    assert events[-1] == {"event": "pulled", "model": "owner/repo:Q4_0", "path": path}
    failed = pull(hub, tmp_path, "owner/none", "--json")
    assert json.loads(failed.stdout.splitlines()[-1])["event"] == "error"


def test_plain_lines_without_a_terminal(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    lines = pull(hub, tmp_path, "owner/repo:Q4_0").stderr.splitlines()
    assert lines[0].startswith("owner/repo at ")
    assert lines[-1] == "m-Q4_0.gguf: 3 MB of 3 MB"
    assert 1 < len(lines) < 8
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("columns", [80, 200])
def test_a_line_a_file_and_a_total_on_a_terminal(tmp_path: Path, hub: Hub, columns: int) -> None:
    shards = {
        f"a-rather-long-name-of-a-model-Q8_0-0000{i}-of-00002.gguf": gguf() + os.urandom(4_000_000) for i in (1, 2)
    }
    hub.add("owner/repo", shards)
    hub.rate = 4_000_000
    with Terminal("pull", "owner/repo:Q8_0", columns=columns, **environment(hub, tmp_path)) as terminal:
        text = terminal.wait(lambda t: "B/s" in t and "total" in t and "\na-rather" in t)
        bars = [line for line in text.splitlines() if "B/s" in line or "━" in line]
        assert 2 <= len(bars) <= 3
        assert all(len(line) <= columns for line in bars)
        assert any(line.startswith("total") for line in bars)
        assert terminal.exit_code() == 0
        assert "2.gguf" in terminal.text or "…" in terminal.text


def test_ctrl_c_stops_and_the_next_pull_goes_on(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": MODEL})
    hub.rate = 1_000_000
    with Terminal("pull", "owner/repo/m-Q4_0.gguf", **environment(hub, tmp_path)) as terminal:
        terminal.wait(lambda t: "B/s" in t)
        while hub.sent("m-Q4_0.gguf") < 2_500_000:
            time.sleep(0.02)
        started = time.monotonic()
        terminal.interrupt()
        assert terminal.exit_code() == 130
        assert time.monotonic() - started < 2
        assert "the next pull goes on from there" in terminal.text
    hub.rate = None
    done = pull(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
    assert done.returncode == 0
    assert "of it are here already" in done.stderr


# Offline

AUDIT = """
import sys
def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.bind") or event == "socket.connect" and not isinstance(arguments[1], str):
        sys.stderr.write(f"SOCKET {event} {arguments[1:]}\\n")
sys.addaudithook(hook)
from localllm.__main__ import main
sys.argv = ["localllm", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("how", ["--offline", "LOCALLLM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_what_was_pulled_runs_and_no_socket_is_opened(
    tmp_path: Path, hub: Hub, model_path: Path, how: str
) -> None:
    hub.add("owner/repo", {"m-Q4_1.gguf": model_path})
    assert pull(hub, tmp_path, "owner/repo:Q4_1").returncode == 0
    count = len(hub.requests)
    variables = environment(hub, tmp_path, **({} if how.startswith("-") else {how: "1"}))
    flags = [how] if how.startswith("-") else []

    def audited(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", AUDIT, *words, *flags]
        return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, input="")

    ran = audited("run", "-m", "owner/repo:q4_1", "Hi", "-n", "3")
    assert ran.returncode == 0
    assert ran.stdout.strip()
    assert audited("pull", "owner/repo:q4_1").returncode == 0
    refused = audited("pull", "owner/repo:q8_0")
    assert refused.returncode == 1
    assert "the network was forbidden" in refused.stderr
    assert "SOCKET" not in ran.stderr + refused.stderr
    assert len(hub.requests) == count
    # The hook itself is able to see a socket.
    flags, variables = [], environment(hub, tmp_path)
    assert "SOCKET" in audited("pull", "owner/repo:q8_0").stderr


def test_a_dry_run_tells_what_it_would_do(tmp_path: Path, hub: Hub) -> None:
    commit = hub.add("owner/repo", {"m-Q4_0.gguf": MODEL, "tokenizer.json": b"{}"})
    done = pull(hub, tmp_path, "owner/repo:Q4_0", "--dry-run", "--json")
    assert json.loads(done.stdout) == {
        "event": "plan",
        "model": "owner/repo:Q4_0",
        "revision": commit,
        "missing": len(MODEL) + 2,
        "files": [{"file": "tokenizer.json", "size": 2}, {"file": "m-Q4_0.gguf", "size": len(MODEL)}],
    }
    named = pull(hub, tmp_path, "smollm2:135m", "--dry-run")
    assert "SmolLM2-135M-Instruct.Q4_1.gguf from the Hugging Face Hub" in named.stderr
    assert (named.returncode, named.stdout, tree(tmp_path / "hub")) == (0, "", {})
