"""Evaluated prompts on disk: what a model computed of a long text is there when the text comes again.

A file holds the tokens of a prompt (and of the answer to it) and the state that the engine had after them. It is found
by the sha256 of the first BLOCK tokens and of everything that the state depends on, and of those that share it the one
with the longest common beginning is taken. What a chat has evaluated is found by the chat's name too, so that it goes
on from exactly there. The user's texts can be read out of it: files are of mode 0600.

    magic (8 bytes)   HMAC-SHA256 of all that follows, with a secret of this folder (32)
    length of the description (uint32, little endian)   the description, JSON: key, model, tokens, state
    tokens (int32, little endian)   the engine's state

Native code reads a state without distrust, so no byte of it gets there before the HMAC was seen to be right: what is
torn, damaged, or was put there by somebody else is removed, and the prompt is evaluated as if nothing had been there.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.whole import scratch

BLOCK = 256  # tokens; a shorter prompt is sooner evaluated than looked for
_MAGIC = b"LLMKV\0\1\n"
_MAC = 32
_MOST_DESCRIPTION = 4096
_CHAT = "chat-"
_DISK_SHARE = 10  # the files never take more than this part of the disk's free space


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens, and the engine's state after them."""

    tokens: Sequence[int]
    state: memoryview


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache; `used` in seconds since 1970."""

    path: Path
    model: str
    tokens: int
    size: int
    used: float


class PrefixCache:
    """The prefixes of one model. `digest(compute)` is its sha256; None where it is unknown and not to be computed.

    `limit` is what all files of the folder may take together, in bytes.
    """

    def __init__(self, folder: Path, model: str, digest: Callable[[bool], str | None], limit: int) -> None:
        self._folder, self._model, self._digest, self._limit = folder, model, digest, limit

    def find(self, tokens: Sequence[int], settings: str, reused: int, most: int) -> Prefix | None:
        """What begins as `tokens` do for at least BLOCK tokens more than the `reused` that are here already.

        It holds `most` tokens at most, for all of them must be taken up.
        """
        if len(tokens) - reused <= BLOCK or (digest := self._digest(False)) is None:
            return None
        key = _key(digest, settings)
        wanted = _bytes(tokens)
        candidates = []
        for path in self._folder.glob(f"{_beginning(key, tokens)}-*.kv"):
            held = _read_tokens(path, key)
            if held is None:
                _discard(path)
            elif len(held) <= 4 * most and (same := _common(held, wanted)) >= reused + BLOCK:
                candidates.append((-same, len(held), path))
        for *_, path in sorted(candidates):
            if found := self._read(path, key):
                with suppress(OSError):
                    os.utime(path)
                return found
            _discard(path)
        return None

    def find_chat(self, name: str, settings: str, most: int) -> Prefix | None:
        """What was kept last under a chat's name, if it was by this model and with these settings."""
        if (digest := self._digest(False)) is None:
            return None
        key = _key(digest, settings)
        for path in _of_chat(self._folder, name):
            held = _read_tokens(path, key)
            if held is not None and len(held) <= 4 * most and (found := self._read(path, key)):
                with suppress(OSError):
                    os.utime(path)
                return found
        return None

    def save(self, tokens: Sequence[int], settings: str, state: memoryview, chat: str = "") -> None:
        """Keep a state; the least recently used ones make room for it. A full or read-only disk is no error.

        A short one is worth its file under the name of a `chat` only, in the place of what was kept under it before.
        """
        with suppress(OSError):
            self._save(tokens, settings, state, chat)

    def _save(self, tokens: Sequence[int], settings: str, state: memoryview, chat: str) -> None:
        digest = self._digest(True)
        if digest is None or (len(tokens) < BLOCK and not chat):
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key, packed = _key(digest, settings), _bytes(tokens)
        described = {"key": key, "model": self._model, "tokens": len(tokens), "state": len(state)}
        description = json.dumps(described).encode()
        head = struct.pack("<I", len(description)) + description + packed
        if not self._make_room(_MAC + len(_MAGIC) + len(head) + len(state)):
            return
        beginning = _beginning(key, tokens)
        ending = _ending(chat) if chat else hashlib.sha256(packed).hexdigest()[:16]
        path = self._folder / f"{beginning}-{ending}.kv"
        with scratch(path) as beside:
            _write_private(beside, _MAGIC + self._mac(head, state) + head, state)
            beside.replace(path)  # a crash may leave it torn, which shows when it is read
        for other in _of_chat(self._folder, chat) if chat else ():
            if other != path:
                other.unlink(missing_ok=True)
        for other in self._folder.glob(f"{beginning}-*.kv"):
            if other == path or _CHAT in other.name:
                continue
            held = _read_tokens(other, key)
            if held is not None and packed.startswith(held):  # the new one can do what it can
                other.unlink(missing_ok=True)

    def forget(self, chat: str) -> None:
        """Remove what was kept under a chat's name."""
        forget(self._folder, [chat])

    def _read(self, path: Path, key: str) -> Prefix | None:
        """The prefix of a file, None where it is not whole and ours."""
        try:
            with path.open("rb") as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                if file.readinto(data) != len(data):
                    return None
            head = _parse(bytes(data[: _HEAD + _MOST_DESCRIPTION]), len(data), key)
            if head is None:
                return None
            start, count = head
            view = memoryview(data)
            body = view[len(_MAGIC) + _MAC :]
            if not hmac.compare_digest(view[len(_MAGIC) : len(_MAGIC) + _MAC], self._mac(body)):
                return None
            end = start + 4 * count
            return Prefix(_unpack(view[start:end]), view[end:])
        except (OSError, MemoryError):
            return None

    def _mac(self, *parts: Any) -> bytes:
        made = hmac.new(self._secret(), digestmod="sha256")
        for part in parts:
            made.update(part)
        return made.digest()

    def _secret(self) -> bytes:
        """32 random bytes that only this user can read, made with the first file."""
        path = self._folder / "secret"
        if not path.exists():
            with scratch(path) as beside:
                _write_private(beside, os.urandom(_MAC))
                with suppress(FileExistsError):  # another process was first
                    os.link(beside, path)
        return path.read_bytes()

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used files until `size` bytes may be added; False where they never may."""
        files = sorted(entries(self._folder), key=lambda entry: entry.used)
        held = sum(entry.size for entry in files)
        limit = min(self._limit, (shutil.disk_usage(self._folder).free + held) // _DISK_SHARE)
        if size > limit:
            return False
        for entry in files:
            if held + size <= limit:
                break
            entry.path.unlink(missing_ok=True)
            held -= entry.size
        return True


def _write_private(path: Path, *parts: bytes | memoryview) -> None:
    """A new file that nobody else could read at any time."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for part in parts:
            file.write(part)


def _discard(path: Path) -> None:
    """Remove what is damaged or foreign; where that cannot be done, it is passed over every time."""
    with suppress(OSError):
        path.unlink()


def entries(folder: Path) -> Iterator[Entry]:
    """The files of a cache, with what each says of itself."""
    for path in folder.glob("*.kv"):
        with suppress(OSError):
            status = path.stat()
            described = _describe(path)
            yield Entry(
                path, str(described.get("model", "?")), int(described.get("tokens", 0)), status.st_size, status.st_mtime
            )


def clear(folder: Path) -> int:
    """Remove every file of a cache; returns how many bytes that frees."""
    freed = 0
    for path in [*folder.glob("*.kv"), *folder.glob(".*.kv.*.part")]:
        with suppress(FileNotFoundError):  # another process was first
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def forget(folder: Path, chats: Iterable[str]) -> None:
    """Remove what was kept under the names of these chats."""
    for chat in chats:
        for path in _of_chat(folder, chat):
            path.unlink(missing_ok=True)


def _of_chat(folder: Path, chat: str) -> list[Path]:
    return list(folder.glob(f"*-{_ending(chat)}.kv"))


def _ending(chat: str) -> str:
    """What the name of a chat's file ends with; a hash, for the name may come from a file that is not ours."""
    return f"{_CHAT}{hashlib.sha256(chat.encode()).hexdigest()[:16]}"


_HEAD = len(_MAGIC) + _MAC + 4


def _parse(head: bytes, size: int, key: str) -> tuple[int, int] | None:
    """Where the tokens start and how many they are, of a file of `size` bytes that begins with `head`."""
    if len(head) < _HEAD or not head.startswith(_MAGIC):
        return None
    (length,) = struct.unpack_from("<I", head, _HEAD - 4)
    described = _object(head[_HEAD : _HEAD + length]) if length <= _MOST_DESCRIPTION else {}
    count, state = described.get("tokens"), described.get("state")
    if described.get("key") != key or not isinstance(count, int) or not isinstance(state, int):
        return None
    start = _HEAD + length
    return (start, count) if count > 0 and state > 0 and start + 4 * count + state == size else None


def _read_tokens(path: Path, key: str) -> bytes | None:
    try:
        with path.open("rb") as file:
            place = _parse(file.read(_HEAD + _MOST_DESCRIPTION), os.fstat(file.fileno()).st_size, key)
            if place is None:
                return None
            file.seek(place[0])
            return file.read(4 * place[1])
    except OSError:
        return None


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        head = file.read(_HEAD + _MOST_DESCRIPTION)
    (length,) = struct.unpack_from("<I", head.ljust(_HEAD, b"\0"), _HEAD - 4)
    return _object(head[_HEAD : _HEAD + min(length, _MOST_DESCRIPTION)])


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(digest: str, settings: str) -> str:
    return hashlib.sha256(f"{digest}\n{settings}".encode()).hexdigest()


def _beginning(key: str, tokens: Sequence[int]) -> str:
    return hashlib.sha256(key.encode() + _bytes(tokens[:BLOCK])).hexdigest()[:32]


def _bytes(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


def _unpack(data: memoryview) -> Sequence[int]:
    return struct.unpack(f"<{len(data) // 4}i", data)


def _common(one: bytes, other: bytes) -> int:
    """How many tokens two packed lists have in common from the start on."""
    low, high = 0, min(len(one), len(other)) // 4
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[: 4 * middle] == other[: 4 * middle] else (low, middle - 1)
    return low
