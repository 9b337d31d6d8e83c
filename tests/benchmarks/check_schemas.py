"""Answers under the 300 schemas of the tests at temperature 1: how many end, and how many of those are valid.

python -m tests.benchmarks.check_schemas MODEL.gguf [--tokens 300] [--threads 2] [--every 1]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jsonschema

from localllm.engines import open_engine
from localllm.text.constrain import is_sound
from localllm.types import Constraint, EngineOptions, Limits, Message, Request, Sampling
from tests.support.schemas import COUNT, schemas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    engine = open_engine(options.engine, options.model, EngineOptions(context=4096, threads=options.threads))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    ended = valid = tokens = 0
    seconds = 0.0
    all_ = schemas()
    for index in range(0, COUNT, options.every):
        schema = all_[index]
        text = json.dumps(schema, ensure_ascii=False)
        ask = (Message("user", f"Write JSON that is valid under this JSON Schema, with made-up values:\n{text}"),)
        sampling, limits = Sampling(temperature=options.temperature, seed=index), Limits(max_tokens=options.tokens)
        request = Request(ask, sampling, limits, Constraint("schema", text))
        began = time.perf_counter()
        chunks = list(engine.stream(request))
        seconds += time.perf_counter() - began
        answer = "".join(chunk.text for chunk in chunks)
        usage = chunks[-1].usage
        assert usage is not None
        tokens += usage.completion_tokens
        if not chunks[-1].fulfilled:
            print(index, "cut", answer[:60].replace("\n", " "), flush=True)
            continue
        ended += 1
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        problems = [e.message for e in kind(schema, format_checker=checker).iter_errors(json.loads(answer))]
        if problems or not is_sound(answer, text):
            print(index, "INVALID", problems, answer, text, flush=True)
        else:
            valid += 1
    print(f"{ended} ended, {valid} of them valid; {tokens} tokens in {seconds:.0f} s")


if __name__ == "__main__":
    main()
