"""A GGUF that holds a vocabulary and no tensor, as llama.cpp's own ggml-vocab files do."""

from __future__ import annotations

import struct
from pathlib import Path

from localllm.formats.gguf import read_header
from tests.support.gguf_files import text


def strip_weights(model: Path, target: Path) -> Path:
    """The metadata of `model` alone."""
    with model.open("rb") as file:
        data = file.read(read_header(model).tensors[0].offset)
    end = min(data.index(text(tensor.name)) for tensor in read_header(model).tensors)
    target.write_bytes(data[:8] + struct.pack("<Q", 0) + data[16:end])
    return target
