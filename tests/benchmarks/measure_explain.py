"""How long `explain` takes for 512 tokens, as a whole process, where the time goes, and what a long text needs.

python -m tests.benchmarks.measure_explain [MODEL]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from localllm.engines import open_text_model
from localllm.jobs.calibration import evaluation_text
from localllm.jobs.explain import PRECISE, collect, explain
from localllm.types import EngineOptions
from tests.support.command import COMMAND

RUNS = 5
TOKENS = (512, 2048, 8192)


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    with tempfile.TemporaryDirectory() as place:
        for count in TOKENS:
            text = Path(place) / "text.txt"
            text.write_text(_text(model, count), encoding="utf-8")
            seconds = sorted(_whole(model, text) for _ in range(RUNS if count == TOKENS[0] else 1))
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(
                f"{count} tokens: {seconds[0]:.2f} to {seconds[-1]:.2f} s the whole process, peak {peak:.0f} MiB so far"
            )


def _whole(model: str, text: Path) -> float:
    started = time.perf_counter()
    command = [*COMMAND, "explain", "-m", model, "--file", str(text), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _text(model: str, count: int) -> str:
    """The beginning of a text, repeated, that has so many tokens or some fewer."""
    from localllm.commands._model import resolve

    with closing(open_text_model(resolve(model, yes=False).path, EngineOptions(**PRECISE))) as opened:
        tokens = opened.tokenize(evaluation_text() * 8, begin=False, special=False)[:count]
        if count == TOKENS[0]:
            started, processor = time.perf_counter(), time.process_time()
            collect(explain(opened, tokens))
            print(
                f"{count} tokens: {time.perf_counter() - started:.2f} s without the start, "
                f"{time.process_time() - processor:.2f} s of processors"
            )
        return b"".join(opened.piece(token) for token in tokens).decode(errors="ignore")


if __name__ == "__main__":
    main()
