"""Runs an exported decoder as whoever reads its graph would: past in, present out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

Past = list[np.ndarray]


class Runner:
    """`run` goes on where the last one stopped; `reset` begins anew."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        self.past: dict[str, np.ndarray] = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past"):
                shape = [1, value.shape[1], 0, value.shape[3]]
                kind = np.float16 if value.type == "tensor(float16)" else np.float32
                self.past[value.name] = np.zeros(shape, kind)

    @property
    def length(self) -> int:
        return int(next(iter(self.past.values())).shape[2])

    def run(self, tokens: list[int]) -> np.ndarray:
        """The logits of each token: (tokens, vocabulary)."""
        mask = np.ones((1, self.length + len(tokens)), np.int64)
        feed = {"input_ids": np.array([tokens], np.int64), "attention_mask": mask, **self.past}
        logits, *present = self.session.run(None, feed)
        self.past = dict(zip(self.past, present, strict=True))
        return np.asarray(logits[0])

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens that follow."""
        logits, found = self.run(tokens), []
        for _ in range(count):
            found.append(int(logits[-1].argmax()))
            logits = self.run(found[-1:])
        return found
