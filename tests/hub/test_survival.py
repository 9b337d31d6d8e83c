"""Downloads that are killed, that run eight at a time, that meet a full disk, a read-only cache, a lost network."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import COMMAND, localllm
from tests.support.gguf_files import gguf
from tests.support.hub_environment import environment, tree
from tests.support.hub_server import Hub, serve

pytestmark = pytest.mark.slow

KILLS = 50
ALLOWED = 16 << 20  # bytes that a kill may cost


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


def start(hub: Hub, folder: Path, reference: str, **keywords: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "pull", reference],
        env={**os.environ, **environment(hub, folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **keywords,
    )


def test_fifty_kills(tmp_path: Path, hub: Hub) -> None:
    """kill -9 at random points, over one download: while it starts, hashes, connects, receives."""
    source = tmp_path / "source.gguf"
    source.write_bytes(gguf() + os.urandom(150 << 20))
    size, right = source.stat().st_size, hashlib.sha256(source.read_bytes()).hexdigest()
    hub.add("owner/repo", {"m-Q4_0.gguf": source})
    hub.rate = 60 << 20
    blobs = tmp_path / "hub/models--owner--repo/blobs"
    blob = blobs / right

    def fetched() -> int:
        return sum(path.stat().st_size for path in blobs.glob(f"{right}.*.incomplete"))

    chance = random.Random(20261124)
    costs = []
    for _ in range(KILLS):
        before, sent = fetched(), hub.sent("m-Q4_0.gguf")
        process = start(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 0.7))  # wherever that is
        else:
            wanted = sent + chance.randrange(4 << 20)
            while hub.sent("m-Q4_0.gguf") <= wanted and process.poll() is None:
                time.sleep(0.002)
        process.kill()
        process.communicate()
        time.sleep(0.02)  # the server learns of it at its next write
        here = fetched()
        costs.append(hub.sent("m-Q4_0.gguf") - sent - (here - before))
        assert not blob.exists(), "the file got its final name though it was not complete"
        assert here >= before, "a kill lost what an earlier process had fetched"
    print(f"fetched again per kill: at most {max(costs):,}, {sum(costs) / KILLS:,.0f} on average; {here:,} of {size:,}")
    assert max(costs) <= ALLOWED
    hub.rate = None
    last = start(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
    _, said = last.communicate(timeout=60)
    assert last.returncode == 0, said
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == right
    assert hub.sent("m-Q4_0.gguf") <= size + KILLS * ALLOWED
    assert "partial" not in tree(tmp_path / "hub").values()
    assert sorted(p.name for p in blobs.iterdir()) == [right]


def test_eight_processes_end_with_one_blob(tmp_path: Path, hub: Hub) -> None:
    model = gguf() + os.urandom(20 << 20)
    hub.add("owner/repo", {"m-Q4_0.gguf": model})
    hub.rate = 20 << 20
    processes = [start(hub, tmp_path, "owner/repo/m-Q4_0.gguf") for _ in range(8)]
    said = [process.communicate(timeout=60)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, said
    assert any("another process is fetching m-Q4_0.gguf; waiting for it" in text for text in said)
    blobs = tmp_path / "hub/models--owner--repo/blobs"
    assert [p.name for p in blobs.iterdir()] == [hashlib.sha256(model).hexdigest()]
    # Each looks at the header, and one fetches.
    assert hub.sent("m-Q4_0.gguf") < len(model) + 8 * (2 << 20)


def test_the_winner_dies_and_another_goes_on(tmp_path: Path, hub: Hub) -> None:
    model = gguf() + os.urandom(8 << 20)
    hub.add("owner/repo", {"m-Q4_0.gguf": model})
    hub.rate = 4 << 20
    first = start(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
    while "partial" not in tree(tmp_path / "hub").values():
        time.sleep(0.01)
    second = start(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
    time.sleep(1.0)
    first.kill()
    first.communicate()
    _, said = second.communicate(timeout=30)
    assert second.returncode == 0, said
    assert "partial" not in tree(tmp_path / "hub").values()


@pytest.mark.parametrize("limit", [0, 1, 45, 1000, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_write_that_fails_anywhere_keeps_the_old_state(tmp_path: Path, hub: Hub, limit: int) -> None:
    """A limit on the size of files fails the write that passes it, as a full disk does, whichever write that is."""
    old = gguf() + os.urandom(2_000_000)
    first = hub.add("owner/repo", {"m-Q4_0.gguf": old, "tokenizer.json": b"{}" * 1000})
    assert localllm("pull", "owner/repo:Q4_0", **environment(hub, tmp_path)).returncode == 0
    before = tree(tmp_path / "hub")
    new = gguf() + os.urandom(4_000_000)
    hub.add("owner/repo", {"m-Q4_0.gguf": new, "tokenizer.json": b"[]" * 1000})

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    process = start(hub, tmp_path, "owner/repo:Q4_0", preexec_fn=limited)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    last = said.decode().splitlines()[-1]
    assert "is full (free some space and run it again: it goes on where it stopped)" in last, said
    after = tree(tmp_path / "hub")
    assert {name: kind for name, kind in after.items() if name in before} == before
    listed = localllm("verify", **environment(hub, tmp_path))
    assert (listed.returncode, listed.stdout) == (0, "ok owner/repo:Q4_0: 2 files\n")
    snapshot = tmp_path / "hub/models--owner--repo/snapshots" / first
    assert (snapshot / "m-Q4_0.gguf").read_bytes() == old
    # With space again it goes on.
    again = localllm("pull", "owner/repo:Q4_0", **environment(hub, tmp_path))
    assert again.returncode == 0, again.stderr
    assert Path(again.stdout.strip()).read_bytes() == new
    assert "partial" not in tree(tmp_path / "hub").values()


def in_namespace(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root of a mount namespace of its own, where a small disk can be mounted."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode != 0:
        pytest.skip("this system allows no mount namespaces")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-euc", script], env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_a_disk_that_fills_up_in_between(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": gguf() + os.urandom(40 << 20)})
    hub.rate = 30 << 20
    disk = tmp_path / "hub"
    disk.mkdir()
    pull = " ".join([*COMMAND, "pull", "-q", "owner/repo/m-Q4_0.gguf"])
    script = f"""
        mount -t tmpfs -o size=120m none {disk}
        (while ! ls {disk}/models--*/blobs/*.incomplete >/dev/null 2>&1; do sleep 0.02; done
         head -c 100000000 /dev/zero > {disk}/other || true) &
        {pull} && exit 9
        wait; rm {disk}/other
        {pull}
        ls {disk}/models--*/blobs
    """
    done = in_namespace(script, **environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"localllm: the disk of {disk} is full" in done.stderr
    path, blob = done.stdout.split()
    assert path.endswith("m-Q4_0.gguf")
    assert len(blob) == 64
    assert hub.sent("m-Q4_0.gguf") < 60 << 20  # the second went on where the first had stopped


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(tmp_path: Path, hub: Hub) -> None:
    hub.add("owner/repo", {"m-Q4_0.gguf": gguf() + os.urandom(40 << 20)})
    disk = tmp_path / "hub"
    disk.mkdir()
    pull = " ".join([*COMMAND, "pull", "-q", "owner/repo/m-Q4_0.gguf"])
    done = in_namespace(f"mount -t tmpfs -o size=50m none {disk}; {pull}", **environment(hub, tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("localllm: owner/repo needs 0.04 GB on")
    assert hub.sent("m-Q4_0.gguf") == 0


def test_a_read_only_cache_serves_what_it_holds(tmp_path: Path, hub: Hub, model_path: Path) -> None:
    hub.add("owner/repo", {"m-Q4_1.gguf": model_path})
    assert localllm("pull", "owner/repo:Q4_1", **environment(hub, tmp_path)).returncode == 0
    hub.add("owner/other", {"m-Q4_0.gguf": gguf()})
    cache, program = tmp_path / "hub", " ".join(COMMAND)
    script = f"""
        mount --bind {cache} {cache}; mount -o remount,ro,bind {cache}
        {program} pull -q owner/repo:Q4_1
        {program} run -m owner/repo:Q4_1 Hi -n 3 </dev/null
        {program} list
        {program} pull -q owner/other:Q4_0 && exit 9 || true
    """
    done = in_namespace(script, **environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "owner/repo:Q4_1  llama.cpp" in done.stdout
    assert "cannot be written (set HF_HUB_CACHE to a folder that can)" in done.stderr


def test_the_network_goes_and_comes_back(tmp_path: Path) -> None:
    model = gguf() + os.urandom(6 << 20)
    with serve() as hub:
        commit = hub.add("owner/repo", {"m-Q4_0.gguf": model})
        hub.rate = 2 << 20
        process = start(hub, tmp_path, "owner/repo/m-Q4_0.gguf")
        while hub.sent("m-Q4_0.gguf") < 2 << 20:
            time.sleep(0.01)
        # Everything breaks for a while: what is open is cut, and what is opened is cut too.
        hub.fault("drop", match="cdn GET", after=None, reset=True, times=2)
        hub.fault("drop", match="hub GET", after=None, reset=True, times=2)
        hub.rate = None
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert (tmp_path / "hub/models--owner--repo/snapshots" / commit / "m-Q4_0.gguf").read_bytes() == model
