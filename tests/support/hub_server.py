"""A real HTTP server on loopback that answers as the Hugging Face Hub and its storage do, and fails when told to.

The Hub (`hub.url`) knows repositories and hands out plain git files. For a large (LFS) file it answers with a signed
address in the storage (`hub.cdn`), which is another host and must never see the token.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

Data = bytes | Path
PIECE = 64 * 1024
LFS_ENDINGS = (".gguf", ".safetensors", ".onnx", ".onnx_data", ".bin", ".model")
LFS_SIZE = 10_000_000
FAULTS = ("status", "redirect", "drop", "stall", "slow", "corrupt", "no-range", "wrong-range")
LISTED = ("id", "modelId", "likes", "private", "downloads", "tags", "pipeline_tag", "library_name", "createdAt")
LISTED_IN_FULL = (*LISTED, "author", "gated", "lastModified", "sha", "siblings")
FILTERS = {"search", "filter", "author", "pipeline_tag", "gated"}
LIST_OPTIONS = FILTERS | {"sort", "direction", "limit", "cursor", "full", "cardData", "expand"}


@dataclass
class Request:
    """A request as it came, and what became of it."""

    host: str  # "hub" or "cdn"
    method: str
    path: str  # with the query, as sent
    headers: dict[str, str]  # lower-case names
    status: int = 0  # 0: no status line was sent
    sent: int = 0  # bytes of the body that the socket took
    file: str = ""  # "owner/repo/path" when the body is that file or a range of it


@dataclass
class Answer:
    """The body is data[start:stop]; `size` and `file` speak of the whole file."""

    status: int
    headers: dict[str, str]
    data: Data = b""
    start: int = 0
    stop: int = 0
    size: int = 0
    file: str = ""


@dataclass
class Fault:
    """What goes wrong with the next `times` answers that it can act on and whose request contains `match`."""

    kind: str
    match: str = ""
    times: int | None = 1  # None: for ever
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    location: str = ""  # redirect
    after: int | None = 0  # drop and stall: bytes of body before it; None: before the status line
    reset: bool = False  # drop: by RST; otherwise by FIN
    seconds: float = 3600.0  # stall
    rate: float = 1000.0  # slow: bytes per second
    at: int = 0  # corrupt: offset in the file

    def acts_on(self, asked: Request, answer: Answer) -> bool:
        if self.match not in f"{asked.host} {asked.method} {asked.path}":
            return False
        if self.kind in ("status", "redirect") or (self.kind in ("drop", "stall") and self.after is None):
            return True
        if asked.method == "HEAD" or answer.status not in (200, 206):
            return False
        if self.kind == "corrupt":
            return answer.file != "" and answer.start <= self.at < answer.stop
        return answer.status == 206 or self.kind not in ("no-range", "wrong-range")

    def apply(self, answer: Answer) -> Answer:
        """The answer to give instead; the other kinds spoil its body on the way."""
        if self.kind == "status":
            return text(self.status, self.headers, self.body)
        if self.kind == "redirect":
            return text(302, {"Location": self.location}, b"")
        if self.kind == "no-range":
            return replace(answer, status=200, start=0, stop=answer.size)
        if self.kind == "wrong-range":  # of the right length: only Content-Range and the bytes tell
            start = 0 if answer.start else 1
            return replace(answer, start=start, stop=min(start + answer.stop - answer.start, answer.size))
        return answer


class Refused(Exception):
    """An error; each host words it in its own way."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


@dataclass(frozen=True)
class File:
    data: Data
    size: int
    sha256: str
    oid: str  # git's id of the blob: the file itself, or the pointer that stands for an LFS file
    pointer_size: int  # 0: a plain git file

    def described(self, hash_name: str) -> dict[str, Any]:
        """Size and, of an LFS file, the hash, which the Hub calls sha256 in one place and oid in another."""
        lfs = {hash_name: self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {"size": self.size, **({"lfs": lfs} if self.pointer_size else {})}


@dataclass(frozen=True)
class Commit:
    id: str
    date: str
    files: dict[str, File]


@dataclass(frozen=True)
class Repository:
    id: str
    commits: dict[str, Commit]
    refs: dict[str, str]  # "refs/heads/main" -> commit
    gated: bool | str = False  # True is "auto"
    private: bool = False
    tags: tuple[str, ...] = ()
    pipeline: str | None = "text-generation"
    downloads: int = 0
    likes: int = 0
    gguf: dict[str, Any] | None = None
    card: dict[str, Any] | None = None

    def commit(self, revision: str) -> Commit:
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if commit := self.commits.get(self.refs.get(name, name)):
                return commit
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def described(self, commit: Commit, blobs: bool = False) -> dict[str, Any]:
        """What the Hub's API says of a model; it leaves out what it does not know."""
        card = self.card or {}
        formats = [kind for kind in ("gguf", "onnx") if any(name.endswith(f".{kind}") for name in commit.files)]
        # The Hub adds these tags itself.
        derived = [*formats, self.pipeline, f"license:{card['license']}" if "license" in card else None]
        facts = {
            "id": self.id,
            "modelId": self.id,
            "author": self.id.partition("/")[0],
            "sha": commit.id,
            "lastModified": commit.date,
            "createdAt": min(known.date for known in self.commits.values()),
            "private": self.private,
            "gated": "auto" if self.gated is True else self.gated,
            "downloads": self.downloads,
            "likes": self.likes,
            "trendingScore": self.likes,
            "tags": list(dict.fromkeys([*self.tags, *filter(None, derived)])),
            "pipeline_tag": self.pipeline,
            "library_name": card.get("library_name", formats[0] if formats else None),
            "cardData": self.card,
            "gguf": self.gguf,
            "siblings": [
                {"rfilename": name, **({"blobId": file.oid, **file.described("sha256")} if blobs else {})}
                for name, file in sorted(commit.files.items())
            ],
        }
        return {key: value for key, value in facts.items() if value is not None}


class Hub:
    """What the tests set up and look at."""

    def __init__(self) -> None:
        self.url = self.cdn = ""
        self.terse = False  # whether a model's description leaves sizes and checksums to the tree, as mirrors do
        self.token: str | None = "hf_of_the_tests"  # opens gated and private repositories; None: all are open
        self.rate: float | None = None  # bytes per second of each file's body
        self.requests: list[Request] = []
        self.repositories: dict[str, Repository] = {}
        self.signature = secrets.token_hex(32)
        self.lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(
        self, name: str, files: Mapping[str, Data], *, lfs: Callable[[str], bool] | None = None, **facts: Any
    ) -> str:
        """A new commit on main that holds exactly these files; `facts` are fields of Repository."""
        old = self.repositories.get(name) or Repository(name, {}, {})
        number = sum(len(known.commits) for known in self.repositories.values())
        date = datetime(2025, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=number)
        content = {path: as_git_keeps(path, data, lfs) for path, data in files.items()}
        commit = hashlib.sha1(f"{number} {name} {[file.oid for file in content.values()]}".encode()).hexdigest()
        commits = {**old.commits, commit: Commit(commit, f"{date:%Y-%m-%dT%H:%M:%S}.000Z", content)}
        self.repositories[name] = Repository(name, commits, {**old.refs, "refs/heads/main": commit}, **facts)
        return commit

    def branch(self, repository: str, name: str, commit: str, *, tag: bool = False) -> None:
        self.repositories[repository].refs[f"refs/{'tags' if tag else 'heads'}/{name}"] = commit

    def sent(self, path_suffix: str) -> int:
        """Bytes of the files whose path ends so that were handed to sockets, by either host."""
        return sum(asked.sent for asked in list(self.requests) if asked.file and asked.file.endswith(path_suffix))

    def heal(self) -> None:
        """Forget the faults that have not come yet."""
        with self.lock:
            self._faults.clear()

    def fault(self, kind: str, match: str = "", times: int | None = 1, **details: Any) -> None:
        """Queue a fault; `details` are fields of Fault. An answer takes the first that can act on it."""
        if kind not in FAULTS:
            raise ValueError(f"no such fault: {kind}")
        with self.lock:
            self._faults.append(Fault(kind, match, times, **details))

    def take_fault(self, asked: Request, answer: Answer) -> Fault | None:
        with self.lock:
            fault = next((fault for fault in self._faults if fault.acts_on(asked, answer)), None)
            if fault and fault.times is not None:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
            return fault


def pieces(data: Data, start: int, stop: int, step: int = PIECE) -> Iterator[bytes | memoryview]:
    if isinstance(data, bytes):
        view = memoryview(data)
        for offset in range(start, stop, step):
            yield view[offset : min(offset + step, stop)]
        return
    with data.open("rb") as file:
        file.seek(start)
        for offset in range(start, stop, step):
            yield file.read(min(step, stop - offset))


def as_git_keeps(path: str, data: Data, lfs: Callable[[str], bool] | None) -> File:
    size = len(data) if isinstance(data, bytes) else data.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for piece in pieces(data, 0, size):
        sha256.update(piece)
        blob.update(piece)
    if not (lfs(path) if lfs else path.endswith(LFS_ENDINGS) or size > LFS_SIZE):
        return File(data, size, sha256.hexdigest(), blob.hexdigest(), 0)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize {size}\n".encode()
    oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
    return File(data, size, sha256.hexdigest(), oid, len(pointer))


def text(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return Answer(status, headers, body, stop=len(body))


def as_json(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> Answer:
    return text(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


def only(facts: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key == "id" or key in names}


class Host(BaseHTTPRequestHandler):
    """The transport of both hosts: records the request, sends the answer, commits the fault."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    name: str
    server: Listener

    def answer(self) -> Answer:
        raise NotImplementedError

    def refusal(self, refused: Refused) -> Answer:
        raise NotImplementedError

    def as_file(self, name: str, file: File, headers: dict[str, str]) -> Answer:
        """The file, or the range of it that was asked for. As HTTP has it, a range that makes no sense is ignored."""
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.asked.headers.get("range", ""))
        first, last = found.groups() if found else ("", "")
        changed = self.asked.headers.get("if-range", headers["ETag"]) != headers["ETag"]
        if changed or not (first or last) or (first and last and int(first) > int(last)):
            return Answer(200, headers, file.data, 0, file.size, file.size, name)
        start = int(first) if first else max(0, file.size - int(last))
        stop = min(int(last) + 1, file.size) if first and last else file.size
        if start >= stop:
            raise Refused(416, "InvalidRange", "Range Not Satisfiable", {"Content-Range": f"bytes */{file.size}"})
        return Answer(206, headers, file.data, start, stop, file.size, name)

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away, or a fault ended the connection
            super().handle()

    def do_GET(self) -> None:
        self.hub = self.server.hub
        path, _, query = self.path.partition("?")
        self.steps, self.options = [unquote(step) for step in path.strip("/").split("/")], parse_qs(query)
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.asked = Request(self.name, self.command, self.path, headers)
        with self.hub.lock:
            self.hub.requests.append(self.asked)
        try:
            answer = self.answer()
        except Refused as refused:
            answer = self.refusal(refused)
        fault = self.hub.take_fault(self.asked, answer)
        self.send(fault.apply(answer) if fault else answer, fault)

    do_HEAD = do_GET

    def send(self, answer: Answer, fault: Fault | None) -> None:
        cut = None
        if fault and fault.kind in ("drop", "stall"):
            if fault.after is None:
                self.interrupt(fault)
            else:
                cut = min(answer.start + fault.after, answer.stop)
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        if answer.status == 206:
            self.send_header("Content-Range", f"bytes {answer.start}-{answer.stop - 1}/{answer.size}")
        self.send_header("Content-Length", str(answer.stop - answer.start))
        self.end_headers()
        self.asked.status = answer.status
        if self.command == "HEAD":
            return
        self.asked.file = answer.file
        if fault and cut is not None:
            self.send_body(replace(answer, stop=cut), fault)
            self.interrupt(fault)
            answer = replace(answer, start=cut)
        self.send_body(answer, fault)

    def send_body(self, answer: Answer, fault: Fault | None) -> None:
        rate = fault.rate if fault and fault.kind == "slow" else self.hub.rate if answer.file else None
        step = min(PIECE, max(1, int(rate / 20))) if rate else PIECE
        offset = answer.start
        for piece in pieces(answer.data, answer.start, answer.stop, step):
            if rate:
                self.pause(len(piece) / rate)
            left = memoryview(piece)
            if fault and fault.kind == "corrupt" and offset <= fault.at < offset + len(piece):
                left = memoryview(bytearray(piece))
                left[fault.at - offset] ^= 0xFF
            offset += len(piece)
            while left:
                taken = self.connection.send(left)
                self.asked.sent += taken
                left = left[taken:]

    def interrupt(self, fault: Fault) -> None:
        if fault.kind == "stall":
            self.pause(fault.seconds)
            return
        if fault.reset:
            self.pause(0.1)  # a reset overtakes the bytes that the client has not got yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionAbortedError

    def pause(self, seconds: float) -> None:
        if self.server.stopping.wait(seconds):
            raise ConnectionAbortedError


class StorageHost(Host):
    """/repos/{owner}/{repo}/{commit}/{path}?...&Signature=..."""

    name = "cdn"

    def answer(self) -> Answer:
        if "authorization" in self.asked.headers:
            raise Refused(400, "InvalidArgument", "Only one auth mechanism allowed")
        if self.options.get("Signature") != [self.hub.signature]:
            raise Refused(403, "AccessDenied", "Access Denied")
        _, owner, name, commit, *path = self.steps
        file = self.hub.repositories[f"{owner}/{name}"].commits[commit].files["/".join(path)]
        # The storage's ETag is of its own making and says nothing about the sha256.
        return self.as_file("/".join([owner, name, *path]), file, {"ETag": f'"{file.sha256[:32]}-1"'})

    def refusal(self, refused: Refused) -> Answer:
        xml = f"<Error><Code>{refused.code}</Code><Message>{refused.message}</Message></Error>"
        return text(refused.status, {"Content-Type": "application/xml", **refused.headers}, xml.encode())


class HubHost(Host):
    """The API under /api, and files under /{owner}/{repo}/resolve/{revision}/{path}."""

    name = "hub"

    def answer(self) -> Answer:
        match self.steps:
            case ["api", "whoami-v2"] if "authorization" in self.asked.headers and self.admitted():
                auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "read"}}
                return as_json({"type": "user", "id": "1", "name": "tester", "orgs": [], "auth": auth})
            case ["api", "whoami-v2"]:
                raise Refused(401, "", "Invalid username or password.")
            case ["api", "models"]:
                return self.list_models()
            case ["api", "models", owner, name, "tree", revision, *folder]:
                return self.list_tree(self.repository(owner, name).commit(revision), "/".join(folder))
            case ["api", "models", owner, name, "refs"]:
                return self.list_refs(self.repository(owner, name))
            case ["api", "models", owner, name] | ["api", "models", owner, name, "revision", _]:
                repository = self.repository(owner, name)
                commit = repository.commit("main" if len(self.steps) == 4 else self.steps[-1])
                facts = repository.described(commit, self.option("blobs") and not self.hub.terse)
                return as_json(only(facts, self.options.get("expand", list(facts))))
            case [owner, name, "resolve", revision, *path]:
                return self.resolve(self.repository(owner, name), revision, "/".join(path))
        raise Refused(404, "", "Sorry, we can't find the page you are looking for.")

    def refusal(self, refused: Refused) -> Answer:
        # A message quotes the request; escaped, it fits into a header whatever it holds.
        errors = {"X-Error-Message": ascii(refused.message)[1:-1], "X-Request-Id": f"Root=1-{secrets.token_hex(12)}"}
        if refused.code:
            errors["X-Error-Code"] = refused.code
        return as_json({"error": refused.message}, {**refused.headers, **errors}, refused.status)

    def option(self, name: str) -> bool:
        return self.options.get(name, [""])[0].lower() in ("true", "1")

    def admitted(self) -> bool:
        return self.hub.token is None or self.asked.headers.get("authorization") == f"Bearer {self.hub.token}"

    def repository(self, owner: str, name: str) -> Repository:
        """To a stranger a private repository is as good as missing."""
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository and (not repository.private or self.admitted()):
            return repository
        if "authorization" in self.asked.headers:
            raise Refused(404, "RepoNotFound", "Repository not found")
        raise Refused(401, "RepoNotFound", "Invalid username or password.")

    def resolve(self, repository: Repository, revision: str, path: str) -> Answer:
        """The only place where a gate is shut: everybody may read what the API says of a gated repository."""
        if repository.gated and not self.admitted():
            restricted = f"Access to model {repository.id} is restricted"
            if "authorization" in self.asked.headers:
                raise Refused(403, "GatedRepo", f"{restricted} and you are not in the authorized list.")
            raise Refused(401, "GatedRepo", f"{restricted}. You must have access to it and be authenticated.")
        commit = repository.commit(revision)
        headers = {"X-Repo-Commit": commit.id}
        file = commit.files.get(path)
        if not file:
            raise Refused(404, "EntryNotFound", "Entry not found", headers)
        headers["ETag"] = f'"{file.oid}"'
        if not file.pointer_size:
            return self.as_file(f"{repository.id}/{path}", file, headers)
        signed = {"Expires": int(time.time()) + 3600, "Signature": self.hub.signature, "Key-Pair-Id": "KTESTS"}
        location = f"{self.hub.cdn}/repos/{repository.id}/{commit.id}/{quote(path)}?{urlencode(signed)}"
        headers |= {"Location": location, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
        return text(302, headers, f"Found. Redirecting to {location}".encode())

    def list_models(self) -> Answer:
        if unknown := self.options.keys() - LIST_OPTIONS:
            raise Refused(400, "", f"the tests' Hub cannot honour {unknown}")
        fields = [*(LISTED_IN_FULL if self.option("full") else LISTED), *(["cardData"] * self.option("cardData"))]
        found = [
            repository.described(repository.commit("main"))
            for repository in [*self.hub.repositories.values()]
            if not repository.private or self.admitted()
        ]
        found = [facts for facts in found if self.is_wanted(facts)]
        sort = self.options.get("sort", ["trendingScore"])[0]
        found.sort(key=lambda facts: facts[sort], reverse=self.options.get("direction") != ["1"])
        items = [only(facts, self.options.get("expand", fields)) for facts in found]
        return self.page(items, int(self.options.get("limit", ["1000"])[0]))

    def is_wanted(self, facts: dict[str, Any]) -> bool:
        words = self.options.get("search", [""])[0].lower().split()
        return (
            all(word in facts["id"].lower() for word in words)
            and all(tag in facts["tags"] for tag in self.options.get("filter", []))
            and all(self.options.get(key, [facts.get(key)]) == [facts.get(key)] for key in ("author", "pipeline_tag"))
            and ("gated" not in self.options or self.option("gated") == bool(facts["gated"]))
        )

    def list_tree(self, commit: Commit, folder: str) -> Answer:
        prefix = f"{folder}/" if folder else ""
        last = {"lastCommit": {"id": commit.id, "title": "add", "date": commit.date}} if self.option("expand") else {}
        entries: dict[str, dict[str, Any]] = {}
        for name, file in commit.files.items():
            if not name.startswith(prefix):
                continue
            steps = name[len(prefix) :].split("/")
            paths = [prefix + "/".join(steps[:depth]) for depth in range(1, len(steps) + 1)]
            for path in paths if self.option("recursive") else paths[:1]:
                tree = {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
                blob = {"type": "file", "oid": file.oid, **file.described("oid")}
                entries[path] = {**(blob if path == name else tree), "path": path, **last}
        if folder and not entries:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist on this revision")
        return self.page([entries[path] for path in sorted(entries)], 50 if last else 1000)

    def list_refs(self, repository: Repository) -> Answer:
        listed: dict[str, list[dict[str, str]]] = {"heads": [], "tags": []}
        for ref, commit in repository.refs.items():
            _, kind, name = ref.split("/", 2)
            listed[kind].append({"name": name, "ref": ref, "targetCommit": commit})
        return as_json({"branches": listed["heads"], "tags": listed["tags"], "converts": []})

    def page(self, items: list[dict[str, Any]], size: int) -> Answer:
        """Some of the items, and in a header the address of the next."""
        start = int(self.options.get("cursor", ["0"])[0])
        headers = {}
        if start + size < len(items):
            query = urlencode({**self.options, "cursor": [start + size]}, doseq=True)
            headers["Link"] = f'<{self.hub.url}{self.path.partition("?")[0]}?{query}>; rel="next"'
        return as_json(items[start : start + size], headers)


class Listener(ThreadingHTTPServer):
    """One host. Knows its connections, so that it can end them all."""

    request_queue_size = 64

    def __init__(self, hub: Hub, host: type[Host]) -> None:
        super().__init__(("127.0.0.1", 0), host)
        self.hub, self.stopping = hub, threading.Event()
        self._connections: list[tuple[socket.socket, threading.Thread]] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.stopping.set()
        for connection, thread in self._connections:
            with suppress(OSError):  # most are closed by now
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        # A small buffer: what the socket took is about what the client got.
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections.append((request, thread))
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # the usual shutdown would send FIN before the RST of a fault


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    api, storage = Listener(hub, HubHost), Listener(hub, StorageHost)
    hub.url, hub.cdn = f"http://127.0.0.1:{api.server_port}", f"http://localhost:{storage.server_port}"
    try:
        yield hub
    finally:
        api.stop()
        storage.stop()
