"""The Hugging Face Hub over the network, through huggingface_hub: listings, search, files by ranges of bytes.

All that this package sends over the network to the Hub goes through `connect()`, which refuses where the user forbade
the network. Errors of the library become ours, with the page to visit; none of them carries the user's token.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from localllm.errors import DownloadError, LocalLLMError, ModelNotFound, Unreachable
from localllm.hub.files import RepoFile, is_safe

SECONDS = 5.0  # to wait for the first answer
READ_SECONDS = 30.0  # to wait for more bytes of an answer that has begun
TRIES = 6  # in a row, none of which brought a byte
LONGEST_WAIT = 300.0  # what a server may ask for; more is a refusal
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_T = TypeVar("_T")

Notify = Callable[[str], None]
"""Hears in one line why something is tried again."""


class Later(Exception):
    """What was asked for may come when it is asked again, after `seconds`; `error` is what to raise if it does not.

    `connected` tells whether the server was reached at all.
    """

    def __init__(self, error: LocalLLMError, seconds: float | None = None, *, connected: bool = True) -> None:
        super().__init__(str(error))
        self.error, self.seconds, self.connected = error, seconds, connected


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit; `unsafe` are names that no file can have here, which are passed over."""

    repository: str
    revision: str
    commit: str
    files: tuple[RepoFile, ...]
    licence: str = ""
    unsafe: tuple[str, ...] = ()

    @property
    def paths(self) -> list[str]:
        return [file.path for file in self.files]


@dataclass(frozen=True, slots=True)
class Found:
    """A repository that a search found."""

    repository: str
    downloads: int
    likes: int
    tags: tuple[str, ...]
    modified: float


def offline() -> bool:
    """Whether the user forbade the network."""
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("LOCALLLM_OFFLINE", "HF_HUB_OFFLINE")
    )


def require_network() -> None:
    if offline():
        raise Unreachable(
            "the network was forbidden (--offline, LOCALLLM_OFFLINE or HF_HUB_OFFLINE)", "unset it to download"
        )


def connect() -> Any:
    """huggingface_hub, quiet and without telemetry. Raises Unreachable where the user forbade the network."""
    require_network()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return huggingface_hub


def page(repository: str) -> str:
    """The address of a repository's page, for people."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return re.sub(r"//[^/@]*@", "//", endpoint) + f"/{repository}"  # without a password that stands in it


def listing(repository: str, revision: str = "main", notify: Notify = lambda _: None, tries: int = TRIES) -> Listing:
    """The files of a repository with sizes and checksums, in one request.

    Raises ModelNotFound, DownloadError, Unreachable.
    """
    hub = connect()

    def ask() -> Listing:
        with errors(repository), _understood():
            info = hub.HfApi().model_info(
                repository, revision=None if revision == "main" else revision, files_metadata=True, timeout=SECONDS
            )
            return _listing(repository, revision, info)

    return persist(ask, notify, tries)


def _listing(repository: str, revision: str, info: Any) -> Listing:
    if not _COMMIT.fullmatch(info.sha or ""):
        raise DownloadError(f"the Hub names no commit of {repository}", "is HF_ENDPOINT set to a Hub?")
    rows = [(s.rfilename, s.size, s.lfs, s.blob_id) for s in info.siblings or ()]
    if any(size is None or not (lfs or blob) for _, size, lfs, blob in rows):
        rows = _tree(repository, info.sha)  # a mirror that keeps its answer short
    files, unsafe = [], []
    for path, size, lfs, blob in rows:
        if not is_safe(path):
            unsafe.append(path)
            continue
        etag = str(lfs["sha256"]) if lfs else str(blob or "")
        if not _ETAG.fullmatch(etag) or not isinstance(size, int) or size < 0:
            raise DownloadError(
                f"the Hub gives no size or checksum of {path} in {repository}", f"see {page(repository)}"
            )
        files.append(RepoFile(path, size, etag))
    card = info.card_data or {}
    licence = card.get("license_name") or card.get("license") or ""
    return Listing(repository, revision, info.sha, tuple(files), str(licence), tuple(unsafe))


def _tree(repository: str, commit: str) -> list[tuple[str, int, Any, str]]:
    entries = connect().HfApi().list_repo_tree(repository, recursive=True, revision=commit)
    return [(e.path, e.size, e.lfs, e.blob_id) for e in entries if hasattr(e, "size")]


def search(text: str, limit: int, sort: str, notify: Notify = lambda _: None) -> list[Found]:
    """Repositories of GGUF and ONNX models whose names hold `text`, most of `sort` first."""
    hub = connect()

    def ask() -> list[Found]:
        found: dict[str, Any] = {}
        with errors("a search"), _understood():
            # A GGUF need not say what it is for; an ONNX model must be one that generates text.
            for kind in (["gguf"], ["onnx", "text-generation"]):
                expand = ["downloads", "likes", "tags", "lastModified"]
                models = hub.HfApi().list_models(search=text, filter=kind, sort=sort, limit=limit, expand=expand)
                found |= {model.id: model for model in models}
        return [
            Found(
                m.id,
                m.downloads or 0,
                m.likes or 0,
                tuple(m.tags or ()),
                m.last_modified.timestamp() if m.last_modified else 0,
            )
            for m in found.values()
        ]

    ranked = sorted(persist(ask, notify), key=lambda f: getattr(f, {"last_modified": "modified"}.get(sort, sort)))
    return ranked[::-1][:limit]


@contextmanager
def stream(repository: str, url: str, start: int, stop: int | None = None) -> Iterator[Any]:
    """A response that brings the bytes from `start` on (and none at or after `stop`).

    Raises Later for what may pass: a status of `RETRIED_STATUS`, a connection that fails or breaks while it is read.
    """
    hub = connect()
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    with (
        errors(repository),
        hub.get_session().stream("GET", url, headers=headers, timeout=_timeouts()) as response,
    ):
        hf_raise_for_status(response)
        yield response


def _timeouts() -> Any:
    connect, read = SECONDS, READ_SECONDS
    return (connect, read, read, connect)


def continues(response: Any, position: int) -> bool:
    """Whether the server sends what it was asked for; raises DownloadError where it sends some other part."""
    if response.status_code != 206:
        return False
    sent = response.headers.get("Content-Range", "")
    if not sent.startswith(f"bytes {position}-"):
        raise DownloadError(f"the server was asked for bytes from {position} and sends {sent!r}")
    return True


class RemoteBytes:
    """A file on the Hub, read by ranges of bytes as they are asked for; `[a:b]` and `len()` as of bytes."""

    def __init__(self, repository: str, commit: str, file: RepoFile, notify: Notify = lambda _: None) -> None:
        self._repository, self._file, self._notify = repository, file, notify
        self._url = connect().hf_hub_url(repository, file.path, revision=commit)
        self.prefix = bytearray()
        self.block = 1 << 20

    def __len__(self) -> int:
        return self._file.size

    def grow(self, minimum: int) -> None:
        """Make the first `minimum` bytes of the file stand in `prefix` (all of them, where the file is shorter)."""
        # Twice as much each time: few requests for a long header, few bytes for a short one.
        stop = min(self._file.size, max(minimum, len(self.prefix) + max(self.block, len(self.prefix))))
        while len(self.prefix) < min(minimum, self._file.size):
            persist(lambda: self._read(stop), self._notify)

    def _read(self, stop: int) -> None:
        start = len(self.prefix)
        with stream(self._repository, self._url, start, stop) as response:
            if not continues(response, start):
                self.prefix.clear()  # the server sends the file from its beginning
            for block in response.iter_bytes(1 << 16):
                self.prefix += block
                if len(self.prefix) >= stop:
                    return
        raise Later(DownloadError(f"{self._file.path} ended after {len(self.prefix):,} of {self._file.size:,} bytes"))


def persist(ask: Callable[[], _T], notify: Notify, tries: int = TRIES) -> _T:
    """The answer of `ask`, which raises Later when it should be asked again: after 1, 2, 4... seconds.

    A server that cannot even be reached is not asked again: nobody wants to wait for a network that is not there.
    """
    attempt = 0
    while True:
        try:
            return ask()
        except Later as later:
            attempt += 1
            if attempt == tries or not later.connected:
                raise later.error from None
            time.sleep(seconds_to_wait(later, attempt, notify))


def seconds_to_wait(later: Later, attempt: int, notify: Notify) -> float:
    """As long as the server asks for, or twice as long each time; raises the error where that is too long."""
    seconds = min(2.0 ** (attempt - 1), 16.0) if later.seconds is None else later.seconds
    if seconds > LONGEST_WAIT:
        raise later.error
    notify(f"{later}; again in {seconds:.0f} s")
    return seconds


@contextmanager
def errors(repository: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours, or into Later where another try may help."""
    from huggingface_hub import errors as theirs

    where = page(repository)
    try:
        yield
    except theirs.GatedRepoError:
        raise DownloadError(
            f"{repository} is gated: its owner wants you to accept a licence", f"visit {where}, then: hf auth login"
        ) from None
    except theirs.DisabledRepoError:
        raise DownloadError(f"{repository} was disabled by the Hub", f"see {where}") from None
    except theirs.RevisionNotFoundError:
        raise ModelNotFound(f"{repository} has no such revision", f"see {where}/commits/main") from None
    except theirs.EntryNotFoundError:
        raise ModelNotFound(f"{repository} has no such file", f"see {where}/tree/main") from None
    except theirs.RepositoryNotFoundError:
        raise ModelNotFound(
            f"the Hub has no repository {repository}, or it is private", f"see {where}; if private: hf auth login"
        ) from None
    except theirs.HFValidationError:
        raise ModelNotFound(f"{repository} cannot be a repository's name") from None
    except theirs.OfflineModeIsEnabled:
        raise Unreachable("the network was forbidden (HF_HUB_OFFLINE)", "unset it to download") from None
    except theirs.HfHubHTTPError as error:
        raise _status(repository, error) from None
    except Exception as error:
        # httpx and its successor raise their own transport errors; they share no base with the standard library's.
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            text = f"the Hugging Face Hub cannot be reached ({_plain(error)})"
            raise Later(Unreachable(text), connected="Connect" not in type(error).__name__) from None
        raise


@contextmanager
def _understood() -> Iterator[None]:
    """Where a login page or something else answers in the Hub's place, its library fails in many ways."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if type(error).__module__.startswith("huggingface_hub"):
            raise
        raise Unreachable(
            "the Hub's answer cannot be understood", "is there a login page in between, is HF_ENDPOINT a Hub?"
        ) from None


def _status(repository: str, error: Any) -> Exception:
    response = error.response
    status = response.status_code if response is not None else 0
    if status in RETRIED_STATUS:
        return Later(Unreachable(f"the Hub answered {repository} with status {status}"), retry_after(response.headers))
    if status in (401, 403):
        return DownloadError(
            f"the Hub refuses {repository} to you (status {status})", f"visit {page(repository)}, then: hf auth login"
        )
    return DownloadError(f"the Hub answered {repository} with status {status}", f"see {page(repository)}")


def retry_after(headers: Any) -> float | None:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3), a number or a date; None without one."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _plain(error: Exception) -> str:
    """An error's text without what a header may have brought into it."""
    return re.sub(r"(Bearer\s+)?hf_\w+", "***", str(error)) or type(error).__name__
