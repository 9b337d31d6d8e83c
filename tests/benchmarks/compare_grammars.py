"""What drawing a token costs under a GBNF grammar: these masks against llama.cpp's own grammar sampler, in turns.

Both stand before the same chain with the same seed; CPU time of the drawing alone, without the model's evaluation.

python -m tests.benchmarks.compare_grammars MODEL.gguf [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localllm.engines.llama_masked import masked_draw
from localllm.engines.llama_model import LlamaModel
from localllm.text.constrain import Matcher, compile_constraint, make_tokenizer
from localllm.types import Constraint, EngineOptions, Sampling

TOKENS = 60
JSON = r"""root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

GRAMMAR = Constraint("grammar", JSON)


class Bench:
    def __init__(self, path: Path) -> None:
        self.model = LlamaModel(path, EngineOptions(context=1024), gpu_layers=0, threads=1)
        self.api: Any = self.model._llama
        self.prompt = self.model.tokenize("Write a JSON object that describes a book:\n", begin=True)
        self.tokenizer = make_tokenizer(self.model)

    def chain(self, *first: Any) -> Any:
        chain = self.api.llama_sampler_chain_init(self.api.llama_sampler_chain_default_params())
        for link in (*first, *self.model._chain(Sampling(seed=1), False)):
            self.api.llama_sampler_chain_add(chain, link)
        return chain

    def masks(self) -> tuple[float, str]:
        matcher = Matcher(self.tokenizer, compile_constraint(GRAMMAR), GRAMMAR)
        chain = self.chain()

        def draw() -> int:
            token = masked_draw(self.api, chain, self.model.logits, matcher.mask)
            matcher.accept(token)
            return token

        return self.answer(draw)

    def native(self) -> tuple[float, str]:
        grammar = self.api.llama_sampler_init_grammar(self.model._vocabulary, JSON.encode(), b"root")
        chain = self.chain(grammar)
        return self.answer(lambda: int(self.api.llama_sampler_sample(chain, self.model._context, -1)))

    def answer(self, draw: Callable[[], int]) -> tuple[float, str]:
        """The median time of a draw in seconds, and the text."""
        self.model.prefill(self.prompt)
        seconds, text = [], b""
        for _ in range(TOKENS):
            began = time.process_time()
            token = draw()
            seconds.append(time.process_time() - began)
            if self.model.is_end(token):
                break
            text += self.model.piece(token)
            self.model.feed(token)
        return statistics.median(seconds), text.decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = Bench(options.model)
    for _ in range(options.rounds):
        (ours, text), (theirs, other) = bench.masks(), bench.native()
        same = "the same text" if text == other else f"other texts: {text!r}, {other!r}"
        print(f"{ours * 1000:.2f} ms a token, llama.cpp {theirs * 1000:.2f} ms, ratio {ours / theirs:.3f}; {same}")


if __name__ == "__main__":
    main()
