"""The Hub of the tests, asked by the real huggingface_hub and, where that hides too much, by http.client."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.hub_server import Hub, serve

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
HELLO, HELLO_OID = b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"  # as git hash-object says
FILES = {"model-Q4_0.gguf": DATA, "README.md": HELLO}
RESOLVE = "/owner/repo/resolve/main/model-Q4_0.gguf"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


def client(hub: Hub, tmp_path: Path, code: str) -> Any:
    """What `code` leaves in `seen`, as JSON; huggingface_hub reads its endpoint when it is imported."""
    script = (
        "import hashlib, io, json, httpx2\n"
        "from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url\n"
        "from huggingface_hub.errors import HfHubHTTPError\n"
        "from huggingface_hub.file_download import http_get\n"
        "from huggingface_hub.hf_api import RepoFile\n"
        f"seen = []; api = HfApi(); TOKEN = {hub.token!r}\n{code}\nprint(json.dumps(seen))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",  # otherwise the client asks for /api/agent-harnesses first
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own; redirects are not followed."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        with response:
            return response.status, response.headers, response.read()
    finally:
        connection.close()


def location(hub: Hub, path: str = RESOLVE) -> str:
    """Path and query in the storage."""
    status, headers, _ = ask(hub.url, path)
    assert status == 302
    assert headers["Location"].startswith(f"{hub.cdn}/")
    return str(headers["Location"]).removeprefix(hub.cdn)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_files_come_and_the_token_stays_with_the_hub(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("owner/repo", FILES, private=True)
    code = "seen = [hf_hub_download('owner/repo', n, token=TOKEN) for n in ('model-Q4_0.gguf', 'README.md')]"
    large, plain = map(Path, client(hub, tmp_path, code))
    assert (large.read_bytes(), large.resolve().name, large.parent.name) == (DATA, SHA256, commit)
    assert (plain.read_bytes(), plain.resolve().name) == (HELLO, HELLO_OID)
    assert (hub.sent("repo/model-Q4_0.gguf"), hub.sent("README.md"), hub.sent("other")) == (len(DATA), len(HELLO), 0)
    asked = [(r.host, r.method, r.status, r.headers.get("authorization")) for r in hub.requests]
    admitted = f"Bearer {hub.token}"
    assert asked == [
        ("hub", "HEAD", 302, admitted),
        ("cdn", "GET", 200, None),
        ("hub", "HEAD", 200, admitted),
        ("hub", "GET", 200, admitted),
    ]


def test_the_storage_refuses_tokens_and_unsigned_addresses(hub: Hub) -> None:
    hub.add("owner/repo", FILES)
    path = location(hub)
    assert (urlsplit(hub.url).hostname, urlsplit(hub.cdn).hostname) == ("127.0.0.1", "localhost")
    assert ask(hub.cdn, path)[2] == DATA
    assert ask(hub.cdn, path, Authorization=f"Bearer {hub.token}")[0] == 400
    assert ask(hub.cdn, path.partition("?")[0])[0] == 403
    assert [r.headers.get("authorization") for r in hub.requests[1:]] == [None, f"Bearer {hub.token}", None]


def test_what_the_client_learns(hub: Hub, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"gguf": {"total": 9, "architecture": "llama", "context_length": 64}, "likes": 5}
    card = {"license": "apache-2.0"}
    hub.add("owner/Tiny-Chat", {**FILES, "sub/a/x.bin": b"x"}, downloads=7, tags=("chat",), card=card, **facts)
    hub.add("other/tiny", {"model.onnx": b"o"}, downloads=9)
    hub.add("other/tiny-chat-gguf", {"m.gguf": b"m"}, downloads=99, private=True)
    hub.add("other/Chat-tiny", {"m.gguf": b"m"}, downloads=8)
    code = """
info = api.model_info('owner/Tiny-Chat', files_metadata=True)
seen.append([info.sha, info.gated, info.private, info.downloads, info.likes, info.pipeline_tag, info.library_name])
seen.append([info.tags, info.gguf, info.card_data.license, info.last_modified.year, info.created_at.year])
seen.append({s.rfilename: [s.size, s.blob_id, s.lfs and s.lfs.sha256] for s in info.siblings})
for more in ({}, {'recursive': True, 'expand': True}):
    tree = list(api.list_repo_tree('owner/Tiny-Chat', **more))
    seen.append([[e.path, e.lfs and e.lfs.sha256, bool(e.last_commit)] if isinstance(e, RepoFile) else e.path for e in tree])
seen.append([e.path for e in api.list_repo_tree('owner/Tiny-Chat', 'sub/a')])
for more in ({}, {'filter': ['gguf', 'chat']}, {'filter': 'gguf', 'token': TOKEN}, {'filter': 'gguf', 'limit': 1}):
    seen.append([m.id for m in api.list_models(search='tiny chat' if 'token' not in more else 'tiny', sort='downloads', **more)])
found, = api.list_models(author='owner', expand=['gguf', 'sha'])
seen.append([found.gguf, found.sha, found.downloads])
seen.append(api.model_info('owner/Tiny-Chat', expand=['gguf']).gguf)
seen.append(api.whoami(TOKEN)['name'])
"""
    seen = client(hub, tmp_path, code)
    sha = hub.repositories["owner/Tiny-Chat"].commit("main").id
    tags = ["chat", "gguf", "text-generation", "license:apache-2.0"]
    x_sha = hashlib.sha256(b"x").hexdigest()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 1\n" % x_sha.encode()
    x_oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
    assert seen[0] == [sha, False, False, 7, 5, "text-generation", "gguf"]
    assert seen[1] == [tags, facts["gguf"], "apache-2.0", 2025, 2025]
    assert seen[2]["README.md"] == [len(HELLO), HELLO_OID, None]
    assert seen[2]["sub/a/x.bin"] == [1, x_oid, x_sha]
    assert seen[2]["model-Q4_0.gguf"][::2] == [len(DATA), SHA256]
    assert seen[3] == [["README.md", None, False], ["model-Q4_0.gguf", SHA256, False], "sub"]
    files = [["README.md", None, True], ["model-Q4_0.gguf", SHA256, True], "sub", "sub/a", ["sub/a/x.bin", x_sha, True]]
    assert seen[4] == files
    assert seen[5] == ["sub/a/x.bin"]
    assert seen[6:8] == [["other/Chat-tiny", "owner/Tiny-Chat"], ["owner/Tiny-Chat"]]
    assert seen[8:10] == [["other/tiny-chat-gguf", "other/Chat-tiny", "owner/Tiny-Chat"], ["other/Chat-tiny"]]
    assert seen[10:] == [[facts["gguf"], sha, None], facts["gguf"], "tester"]


def test_refusals_have_the_clients_names(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/gated", FILES, gated="manual")
    hub.add("owner/private", FILES, private=True)
    hub.add("owner/repo", FILES)
    code = """
def attempt(what, *words, **more):
    try:
        what(*words, **more)
        seen.append('went well')
    except HfHubHTTPError as e:
        seen.append([type(e).__name__, e.response.status_code])
def head(repo, file='README.md', **more):
    get_hf_file_metadata(hf_hub_url(repo, file, revision=more.pop('revision', None)), **more)
for token in (None, 'hf_stranger', TOKEN):
    attempt(head, 'owner/gated', token=token); attempt(head, 'owner/private', token=token)
    attempt(head, 'owner/none', token=token); attempt(api.model_info, 'owner/private', token=token)
seen.append(api.model_info('owner/gated').gated)
attempt(head, 'owner/repo', 'none'); attempt(head, 'owner/repo', revision='none')
attempt(api.model_info, 'owner/repo', revision='none'); attempt(lambda: list(api.list_repo_tree('owner/repo', 'none')))
attempt(lambda: list(api.list_models(apps='ollama'))); attempt(api.whoami, 'hf_stranger')
"""
    seen = client(hub, tmp_path, code)
    missing = "RepositoryNotFoundError"
    assert seen[:4] == [["GatedRepoError", 401], [missing, 401], [missing, 401], [missing, 401]]
    assert seen[4:8] == [["GatedRepoError", 403], [missing, 404], [missing, 404], [missing, 404]]
    assert seen[8:13] == ["went well", "went well", [missing, 404], "went well", "manual"]
    assert seen[13:16] == [["RemoteEntryNotFoundError", 404], *[["RevisionNotFoundError", 404]] * 2]
    assert seen[16:] == [["RemoteEntryNotFoundError", 404], ["BadRequestError", 400], ["HfHubHTTPError", 401]]
    assert (
        ask(hub.url, "/owner/repo/resolve/main/none")[1]["X-Repo-Commit"]
        == hub.repositories["owner/repo"].refs["refs/heads/main"]
    )


@pytest.mark.slow
def test_the_client_retries_and_resumes(hub: Hub, tmp_path: Path) -> None:
    # The client reads pieces of 10 MiB, and at the end of a connection forgets the piece that it was in.
    piece = 10 * 1024 * 1024
    data = os.urandom(1024) * 25 * 1024
    hub.add("owner/repo", {"large.gguf": data})
    hub.fault("status", "hub HEAD", headers={"Retry-After": "0"})
    hub.fault("drop", "cdn GET", after=piece + 100_000)
    hub.fault("drop", "cdn GET", after=piece + 4_000_000, reset=True)
    code = """
found = get_hf_file_metadata(hf_hub_url('owner/repo', 'large.gguf'), retry_on_errors=True)
seen.append([found.size, found.etag])
file = io.BytesIO()
try:
    http_get(found.location, file, expected_size=found.size)
except httpx2.ReadError:
    seen.append(file.tell())
http_get(found.location, file, resume_size=file.tell(), expected_size=found.size)
seen.append(hashlib.sha256(file.getvalue()).hexdigest())
"""
    sha256 = hashlib.sha256(data).hexdigest()
    # The client itself mended the first end of the connection (FIN); the second (RST) came out as an error.
    assert client(hub, tmp_path, code) == [[len(data), sha256], 2 * piece, sha256]
    asked = [(r.status, r.sent, r.headers.get("range")) for r in hub.requests if r.host == "cdn"]
    assert asked == [
        (200, piece + 100_000, None),
        (206, piece + 4_000_000, f"bytes={piece}-"),
        (206, piece // 2, f"bytes={2 * piece}-"),
    ]
    assert [r.status for r in hub.requests if r.host == "hub"] == [503, 302]


@pytest.mark.parametrize(
    ("wanted", "status", "start", "stop"),
    [
        ("bytes=10-19", 206, 10, 20),
        ("bytes=299990-", 206, 299_990, 300_000),
        ("bytes=-7", 206, 299_993, 300_000),
        ("bytes=0-999999", 206, 0, 300_000),
        ("bytes=300000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=9-8", 200, 0, 300_000),
        ("bytes=0-1,5-6", 200, 0, 300_000),
    ],
)
@pytest.mark.parametrize("host", ["hub", "cdn"])
def test_ranges(hub: Hub, host: str, wanted: str, status: int, start: int, stop: int) -> None:
    hub.add("owner/repo", FILES, lfs=lambda name: host == "cdn")
    path = location(hub) if host == "cdn" else RESOLVE
    got, headers, body = ask(hub.cdn if host == "cdn" else hub.url, path, Range=wanted)
    assert (got, headers["Content-Length"]) == (status, str(len(body)))
    assert headers["Content-Range"] == {206: f"bytes {start}-{stop - 1}/300000", 416: "bytes */300000"}.get(status)
    if status != 416:
        assert body == DATA[start:stop]
        again = ask(hub.cdn if host == "cdn" else hub.url, path, Range="bytes=1-1", If_Range=headers["ETag"])
        assert (again[0], again[2]) == (206, DATA[1:2])
        assert ask(hub.cdn if host == "cdn" else hub.url, path, Range="bytes=1-1", If_Range='"other"')[0] == 200


def test_heads_have_no_body(hub: Hub) -> None:
    hub.add("owner/repo", FILES)
    status, headers, body = ask(hub.url, RESOLVE, "HEAD")
    assert (status, headers["X-Linked-Size"], headers["X-Linked-ETag"], body) == (302, "300000", f'"{SHA256}"', b"")
    status, headers, _ = ask(hub.url, "/owner/repo/resolve/main/README.md", "HEAD")
    assert (status, headers["Content-Length"], headers["ETag"]) == (200, "6", f'"{HELLO_OID}"')
    path = location(hub)
    status, headers, body = ask(hub.cdn, path, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "300000", b"")
    assert hub.sent("") == 0


def test_faults(hub: Hub) -> None:
    hub.add("owner/repo", FILES)
    path = location(hub)
    hub.fault("status", "cdn GET", status=429, headers={"Retry-After": "3"}, body=b"slow down")
    status, headers, body = ask(hub.cdn, path)
    assert (status, headers["Retry-After"], body) == (429, "3", b"slow down")

    hub.fault("corrupt", "model-Q4_0", at=70_000)
    assert ask(hub.cdn, path, Range="bytes=0-69999")[2] == DATA[:70_000]  # it waits for the range that it is in
    spoiled = ask(hub.cdn, path, Range="bytes=60000-")[2]
    assert [n + 60_000 for n in range(len(spoiled)) if spoiled[n] != DATA[n + 60_000]] == [70_000]

    hub.fault("no-range", times=2)
    assert ask(hub.cdn, path)[2] == DATA  # no range to ignore
    for _ in range(2):
        status, headers, body = ask(hub.cdn, path, Range="bytes=5-")
        assert (status, headers["Content-Range"], body) == (200, None, DATA)

    hub.fault("wrong-range")
    status, headers, body = ask(hub.cdn, path, Range="bytes=5-9")
    assert (status, headers["Content-Range"], body) == (206, "bytes 0-4/300000", DATA[:5])

    hub.fault("redirect", "hub HEAD", location="http://elsewhere/")
    status, headers, _ = ask(hub.url, RESOLVE, "HEAD")
    assert (status, headers["Location"]) == (302, "http://elsewhere/")

    hub.fault("drop", after=None, times=None)
    for _ in range(3):
        with pytest.raises(http.client.RemoteDisconnected):
            ask(hub.url, "/api/models/owner/repo")
    assert hub.requests[-1].status == 0
    with pytest.raises(ValueError, match="no such fault"):
        hub.fault("dorp")


def test_a_cut_and_a_reset(hub: Hub) -> None:
    hub.add("owner/repo", FILES)
    path = location(hub)
    hub.fault("drop", after=70_000)
    assert ask(hub.cdn, path, "HEAD")[0] == 200  # it waits for a body
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(hub.cdn, path)
    assert cut.value.partial == DATA[:70_000]
    assert hub.sent(".gguf") == 70_000
    hub.fault("drop", after=70_000, reset=True)
    with pytest.raises(ConnectionResetError):
        ask(hub.cdn, path)
    assert ask(hub.cdn, path)[2] == DATA


@pytest.mark.slow
def test_slowness(hub: Hub) -> None:
    hub.add("owner/repo", FILES)
    path = location(hub)
    started = time.monotonic()
    hub.fault("slow", rate=1_000_000)
    assert ask(hub.cdn, path)[2] == DATA
    assert time.monotonic() - started >= 0.3
    hub.fault("stall", after=100_000, seconds=0.3)
    started = time.monotonic()
    assert ask(hub.cdn, path)[2] == DATA
    assert time.monotonic() - started >= 0.3
    hub.rate = 600_000
    started = time.monotonic()
    assert ask(hub.cdn, path)[2] == DATA
    assert time.monotonic() - started >= 0.5


def test_nothing_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with serve() as hub:
        hub.add("owner/repo", FILES)
        path = location(hub)
        connections = [http.client.HTTPConnection(urlsplit(hub.cdn).netloc, timeout=10) for _ in range(3)]
        for connection in connections:  # one will stall, one will be slow, and one says nothing
            connection.connect()
        hub.fault("stall", after=70_000)
        connections[0].request("GET", path)
        wait(lambda: hub.sent(".gguf") == 70_000)
        hub.rate = 100_000
        connections[1].request("GET", path)
        wait(lambda: hub.sent(".gguf") > 70_000)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert threading.active_count() == before
    for connection in connections:
        connection.close()
    assert capfd.readouterr().err == ""


def test_a_client_may_dawdle_and_go_away(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.add("owner/repo", {"large.bin": bytes(16_000_000)})
    path = location(hub, "/owner/repo/resolve/main/large.bin")
    connection = http.client.HTTPConnection(urlsplit(hub.cdn).netloc, timeout=10)
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.request("GET", path)
    time.sleep(0.3)
    # What nobody reads is not counted, but for the buffers.
    assert 0 < hub.sent("large.bin") < 2_000_000
    connection.close()
    time.sleep(0.1)
    assert hub.sent("large.bin") < 2_000_000
    assert capfd.readouterr().err == ""


def test_connections_are_kept(hub: Hub) -> None:
    hub.add("owner/repo", FILES)
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    for path in ("/api/models/owner/repo", RESOLVE, "/owner/repo/resolve/main/none"):
        connection.request("GET", path)
        kept = connection.sock
        connection.getresponse().read()
        assert connection.sock is kept is not None
    connection.close()


def test_commits_and_names(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "disk.gguf").write_bytes(DATA)
    first = hub.add("owner/repo", {"disk.gguf": tmp_path / "disk.gguf"})
    hub.branch("owner/repo", "feature/x", first)
    hub.branch("owner/repo", "v1", first, tag=True)
    second = hub.add("owner/repo", {"../../evil.gguf": b"e", "README.md": HELLO})
    assert len({first, second}) == 2
    assert len(first) == 40

    def names(suffix: str) -> list[str]:
        return [
            sibling["rfilename"]
            for sibling in json.loads(ask(hub.url, f"/api/models/owner/repo{suffix}")[2])["siblings"]
        ]

    assert names("") == names(f"/revision/{second}") == ["../../evil.gguf", "README.md"]
    assert names("/revision/feature%2Fx") == names("/revision/v1") == names(f"/revision/{first}") == ["disk.gguf"]
    path = location(hub, "/owner/repo/resolve/feature%2Fx/disk.gguf")
    assert ask(hub.cdn, path)[2] == DATA
    assert ask(hub.cdn, path, Range="bytes=70000-70009")[2] == DATA[70_000:70_010]
    assert json.loads(ask(hub.url, "/api/models/owner/repo/refs")[2]) == {
        "branches": [
            {"name": "main", "ref": "refs/heads/main", "targetCommit": second},
            {"name": "feature/x", "ref": "refs/heads/feature/x", "targetCommit": first},
        ],
        "tags": [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": first}],
        "converts": [],
    }


def test_long_lists_come_in_pages(hub: Hub, tmp_path: Path) -> None:
    names = [f"{n:04}.txt" for n in range(1001)]
    hub.add("owner/repo", dict.fromkeys(names, b""))
    for number in range(3):
        hub.add(f"owner/m{number}", {"m.gguf": b""}, downloads=number)
    seen = client(hub, tmp_path, "seen = [e.path for e in api.list_repo_tree('owner/repo', recursive=True)]")
    assert seen == names
    assert len(hub.requests) == 2
    path, ids = "/api/models?filter=gguf&sort=downloads&limit=2", []
    while path:
        _, headers, body = ask(hub.url, path)
        ids.append([model["id"] for model in json.loads(body)])
        path = (headers["Link"] or "").partition(">")[0].removeprefix(f"<{hub.url}")
    assert ids == [["owner/m2", "owner/m1"], ["owner/m0"]]
