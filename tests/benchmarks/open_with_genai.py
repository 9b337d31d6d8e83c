"""Opens exported folders with onnxruntime-genai and lets it answer: the graph, the settings and the tokenizer are read.

Run by hand, by a Python that has onnxruntime-genai: python tests/benchmarks/open_with_genai.py FOLDER...
Each folder's line has its model type, the ids of a text and what follows it; with `tokenizers` installed the ids are
compared with those that it makes of the same tokenizer.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime_genai as genai

TEXT = "The capital of France is"


def main() -> None:
    for word in sys.argv[1:]:
        model = genai.Model(word)
        tokenizer = genai.Tokenizer(model)
        ids = [int(i) for i in tokenizer.encode(TEXT)]
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + 16, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(ids)
        found = []
        while not generator.is_done():
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        print(f"{Path(word).name}: {model.type}, {ids} -> {found} {tokenizer.decode(found)!r}{_compared(word, ids)}")


def _compared(folder: str, ids: list[int]) -> str:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return ""
    own = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(TEXT).ids
    return "" if own == ids else f" (tokenizers: {own})"


if __name__ == "__main__":
    main()
