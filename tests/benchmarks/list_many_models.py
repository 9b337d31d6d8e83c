"""How long `list` takes with many models in the cache, against Python starting and the bare `--help`, in turns.

    python tests/benchmarks/list_many_models.py [COUNT] [GGUF]

COUNT repositories (200), each with a file of its own in the Hub's layout: a tiny GGUF, or hard links to one that is
given. The first listing reads every header; the others know them.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.gguf_files import gguf

ROUNDS = 9


def fill(cache: Path, count: int, source: Path | None) -> None:
    for number in range(count):
        data = gguf() + number.to_bytes(4, "little")
        etag = hashlib.sha256(data).hexdigest()
        home = cache / f"models--owner{number % 20}--model-{number}-GGUF"
        snapshot = home / "snapshots" / hashlib.sha1(data).hexdigest()
        for folder in (home / "blobs", home / "refs", snapshot):
            folder.mkdir(parents=True)
        (home / "refs" / "main").write_text(snapshot.name)
        if source is None:
            (home / "blobs" / etag).write_bytes(data)
        else:
            os.link(source, home / "blobs" / etag)
        for name in ("model-Q4_K_M.gguf", "README.md", "tokenizer.json"):
            (snapshot / name).symlink_to(f"../../blobs/{etag}")


def seconds(words: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "localllm", *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    source = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(dir=source.parent if source else None) as folder:
        environment = {**os.environ, "HF_HUB_CACHE": f"{folder}/hub", "LOCALLLM_HOME": f"{folder}/data"}
        fill(Path(folder) / "hub", count, source)
        print(f"first listing of {count} models: {seconds(['list'], environment):.3f} s")
        pairs = [(seconds(["list"], environment), seconds(["--help"], environment)) for _ in range(ROUNDS)]
        lists, helps = zip(*pairs, strict=True)
        print(f"later: {statistics.median(lists):.3f} s ({min(lists):.3f} to {max(lists):.3f})")
        ratios = [a / b for a, b in pairs]
        print(f"against --help: {statistics.median(helps):.3f} s, ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
