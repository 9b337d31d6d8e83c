"""Turns checkpoints as Hugging Face has them into files that the engines read, with numpy alone.

`gguf.convert()` is the way in: `checkpoint.py` opens what is there, `architectures/` knows what a family needs,
`vocabulary.py` reads its tokenizer. Nothing from a checkpoint is ever executed.
"""
