"""The sha256 of a model's file, computed once: a file of 5 GB is not read again to be named in an answer.

What was found is kept by the file's path, size, time of change and inode, in `digests.json` of the data directory.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from localllm.hub import store
from localllm.hub.local import write_whole

_CHUNK = 1 << 20
_MOST = 500  # digests that are kept
_SAMPLES, _SAMPLE = 64, 1 << 16  # parts of a file that are looked at, and the bytes of each


def file_sha256(path: Path) -> str | None:
    """The sha256 of a regular file in hexadecimal, from what is kept or from its bytes; None for anything else."""
    path = path.resolve()
    if not path.is_file():
        return None
    key, place = _identity(path), _place()
    kept = _load(place)
    if key not in kept:
        kept[key] = _hash(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, json.dumps(dict(list(kept.items())[-_MOST:])))
        except OSError:
            pass  # a disk that is full or read-only makes the next one slower, and no more
    return kept[key]


def known_sha256(path: Path) -> str | None:
    """The sha256 of a file where it was computed before, and not else."""
    try:
        path = path.resolve()
        return _load(_place()).get(_identity(path))
    except OSError:
        return None


def fingerprint(path: Path) -> str:
    """What tells one model from another without reading it all: the sizes of its files, and 4 MB spread over each.

    Training changes nearly every weight. Raises BadModelFile where the model cannot be read, and OSError.
    """
    parts = [path]
    if path.suffix.lower() == ".gguf":
        from localllm.formats.gguf import read_shards

        parts = [shard.path for shard in read_shards(path)]
    elif path.suffix.lower() == ".onnx":
        from localllm.formats.onnx import read_model

        parts += read_model(path).external
    digest = hashlib.sha256()
    for part in parts:
        size = part.stat().st_size
        digest.update(f"{size}\n".encode())
        with part.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(size * index // _SAMPLES)
                digest.update(file.read(min(_SAMPLE, -(-size // _SAMPLES))))
    return digest.hexdigest()


def _place() -> Path:
    return store.data_directory() / "digests.json"


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{path}\n{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _load(place: Path) -> dict[str, str]:
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        return {key: value for key, value in kept.items() if isinstance(value, str) and len(value) == 64}
    except (OSError, ValueError, AttributeError):
        return {}
