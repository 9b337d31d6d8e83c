"""LoRA adapters (arXiv 2106.09685) as llama.cpp adds them to a model while it computes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localllm.engines.native import log
from localllm.errors import BadModelFile
from localllm.formats.gguf import read_header


class Adapters:
    """The adapters of a model, each named as FILE[:SCALE]; llama.cpp frees them with the model. Raises BadModelFile.

    `names` tell them from any others, without reading all of them.
    """

    def __init__(self, api: Any, model: Any, model_path: Path, texts: Sequence[str]) -> None:
        self._api = api
        named = [parse(text) for text in texts]
        self._loaded = [(_load(api, model, model_path, path), scale) for path, scale in named]
        self.names = [_name(path, scale) for path, scale in named]

    def use(self, context: Any) -> None:
        """Have a context compute with all of them."""
        if self._loaded:
            count, api = len(self._loaded), self._api
            adapters = (api.llama_adapter_lora_p_ctypes * count)(*(a for a, _ in self._loaded))
            scales = (ctypes.c_float * count)(*(scale for _, scale in self._loaded))
            api.llama_set_adapters_lora(context, adapters, count, scales)


def _load(api: Any, model: Any, model_path: Path, path: Path) -> Any:
    if read_header(path).metadata.get("general.type") != "adapter":
        raise BadModelFile(f"{path} is no LoRA adapter", "localllm convert --lora makes one")
    adapter = api.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        reason = "; ".join(log.take_errors()).rpartition("adapter: ")[2] or "no reason was logged"
        raise BadModelFile(f"{path} does not fit {model_path.name}: {reason}", "name an adapter of this model")
    return adapter


def parse(text: str) -> tuple[Path, float]:
    """FILE[:SCALE], where no file has the whole as its name."""
    name, _, scale = text.rpartition(":")
    if name and not Path(text).exists():
        try:
            return Path(name).expanduser(), float(scale)
        except ValueError:
            pass
    return Path(text).expanduser(), 1.0


def _name(path: Path, scale: float) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {scale}"
