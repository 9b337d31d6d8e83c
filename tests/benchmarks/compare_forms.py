"""What holding an answer to a form costs: decoding with and without one, in turns, the median of the ratios.

python -m tests.benchmarks.compare_forms MODEL.gguf [--rounds 7] [--tokens 100] [--engine llama.cpp]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from localllm.engines import open_engine
from localllm.types import Constraint, EngineOptions, Limits, Message, Request, Sampling

ANY = Constraint("schema", '{"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}, "minItems": 90}')  # fmt: skip
FORMS = {"any text": Constraint("regex", "(?s:.){5000}"), "JSON": ANY, "none again": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    engine = open_engine(options.engine, options.model, EngineOptions(context=2048, threads=options.threads))
    plain = Request(
        (Message("user", "Write a list of books."),), Sampling(seed=1), Limits(options.tokens, ignore_eos=True)
    )

    def rate(form: Constraint | None) -> float:
        request = Request(plain.messages, plain.sampling, plain.limits, form)
        *_, last = engine.stream(request)
        assert last.usage is not None
        return last.usage.completion_tokens / last.usage.decode_seconds

    began = time.perf_counter()
    rate(ANY)
    print(f"the first answer, with the vocabulary read: {time.perf_counter() - began:.2f} s")
    for name, form in FORMS.items():
        found = [rate(form) / rate(None) for _ in range(options.rounds)]
        print(f"{name}: speed {statistics.median(found):.3f} of none, from {min(found):.3f} to {max(found):.3f}")


if __name__ == "__main__":
    main()
