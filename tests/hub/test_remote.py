"""How long a server is waited for, and what is asked again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from localllm.errors import Unreachable
from localllm.hub.remote import Later, page, persist, retry_after, seconds_to_wait


def test_retry_after() -> None:
    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"Retry-After": "0"}) == 0
    assert retry_after({"Retry-After": formatdate(0)}) == 0
    seconds = retry_after({"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    assert seconds == pytest.approx(100, abs=5)


@pytest.mark.parametrize("header", ["", "soon", "-5", "1e9"])
def test_retry_after_of_nonsense(header: str) -> None:
    assert retry_after({"Retry-After": header}) is None


def test_each_wait_is_longer_until_it_is_enough() -> None:
    later = Later(Unreachable("down"))
    said: list[str] = []
    assert [seconds_to_wait(later, n, said.append) for n in range(1, 8)] == [1, 2, 4, 8, 16, 16, 16]
    assert said[0] == "down; again in 1 s"
    assert seconds_to_wait(Later(Unreachable("busy"), 30.0), 1, said.append) == 30
    with pytest.raises(Unreachable):
        seconds_to_wait(Later(Unreachable("busy"), 3600.0), 1, said.append)


def test_a_server_that_cannot_be_reached_is_asked_once() -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise Later(Unreachable("no route"), connected=False)

    with pytest.raises(Unreachable, match="no route"):
        persist(ask, lambda _: None)
    assert len(asked) == 1


def test_what_comes_at_the_third_time_is_the_answer() -> None:
    asked = []

    def ask() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise Later(Unreachable("busy"), 0.0)
        return "here"

    assert persist(ask, lambda _: None) == "here"
    asked.clear()
    with pytest.raises(Unreachable):
        persist(ask, lambda _: None, tries=2)


@contextmanager
def odd_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """A real server that answers every GET in its own way; its address and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def run(code: str, endpoint: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """huggingface_hub reads its endpoint when it is imported. Waits are not slept through: they are not the question."""
    start = "import time; time.sleep = lambda _: None\nfrom pathlib import Path; from localllm.errors import *\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_header_that_ends_too_early_is_not_asked_for_without_end(tmp_path: Path) -> None:
    def nothing(handler: BaseHTTPRequestHandler) -> None:
        start = handler.headers["Range"].partition("=")[2].partition("-")[0]
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{start}/100")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    code = (
        "from localllm.hub.files import RepoFile; from localllm.hub.remote import RemoteBytes\n"
        "try: RemoteBytes('o/r', '0' * 40, RepoFile('m.gguf', 100)).grow(50)\n"
        "except DownloadError as error: print(error)"
    )
    with odd_server(nothing) as (url, asked):
        done = run(code, url, tmp_path)
    assert done.stdout == "m.gguf ended after 0 of 100 bytes\n", done.stderr
    assert 1 < len(asked) < 10


def test_a_server_that_never_comes_further_is_given_up(tmp_path: Path) -> None:
    """It ignores ranges and breaks at the same place each time, as a proxy with a bound does."""

    def breaks(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5000000")
        handler.end_headers()
        handler.wfile.write(bytes(3_000_000))
        handler.close_connection = True

    code = (
        "from localllm.hub.cache import CachedRepository; from localllm.hub.files import RepoFile\n"
        "from localllm.hub.download import Download\n"
        f"home = CachedRepository(Path({str(tmp_path)!r}), 'o/r'); file = RepoFile('m.gguf', 5_000_000, 'a' * 64)\n"
        "try: Download(home, 'main', '0' * 40, file, lambda _: None, lambda _: None).run()\n"
        "except (DownloadError, ModelNotFound) as error: print(error)"
    )
    with odd_server(breaks) as (url, asked):
        done = run(code, url, tmp_path)
    assert done.stdout.startswith("the Hugging Face Hub cannot be reached"), done.stderr
    assert 1 < len(asked) < 10


def test_a_password_in_the_endpoint_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://user:secret@hub.example/")
    assert page("owner/repo") == "https://hub.example/owner/repo"
