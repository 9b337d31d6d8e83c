"""A document asked about twice by `localllm run`: the time to the first token with nothing kept, and with its prefix.

    python tests/benchmarks/compare_second_time.py MODEL.gguf [--tokens N] [--rounds N]

Every run is a process of its own. The prompt's own time (from tokenizing to the first token) is given, and that of the
whole process. A ratio below 1 means that the second time is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

QUESTIONS = ("What is this text about?", "What is this text about?", "Which words does it explain? Name three.")


def ask(model: str, document: Path, question: str, home: str) -> tuple[float, float, dict[str, Any]]:
    """Seconds of the prompt, of the process, and what it printed."""
    words = ["run", "-m", model, "-n", "32", "--temperature", "0", "--json", "--file", str(document), question]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "localllm", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LOCALLLM_HOME": home, "LOCALLLM_NO_CACHE": "0"},
    )
    found = json.loads(done.stdout)
    return found["timings"]["time_to_first_token"], time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=3400)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    text = " ".join(topics.values())[: int(given.tokens * 4.25)]
    prompts: list[list[float]] = [[], [], []]
    wholes: list[list[float]] = [[], [], []]
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as home:
            document, texts = Path(home, "document.txt"), []
            document.write_text(text, encoding="utf-8")
            for index, question in enumerate(QUESTIONS):
                prompt, whole, found = ask(given.model, document, question, home)
                prompts[index].append(prompt)
                wholes[index].append(whole)
                texts.append(found["text"])
                print(found["usage"]["prompt_tokens"], found["usage"]["reused_tokens"], f"{prompt:.3f} s {whole:.3f} s")
            print("the same answer" if texts[0] == texts[1] else f"another answer: {texts[:2]}")
    for name, times in (("to the first token", prompts), ("whole process", wholes)):
        for index, question in ((1, "the same question"), (2, "another question")):
            ratios = [b / a for a, b in zip(times[0], times[index], strict=True)]
            print(
                f"| {name}, {question} | {statistics.median(times[index]):.3f} s | {statistics.median(times[0]):.3f} s "
                f"| {statistics.median(ratios):.4f} | {min(ratios):.4f} to {max(ratios):.4f} |"
            )


if __name__ == "__main__":
    main()
