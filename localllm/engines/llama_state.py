"""What llama.cpp holds of a sequence of tokens, out of a context and into another, and what it depends on."""

from __future__ import annotations

import ctypes
from typing import Any

from localllm.engines import native
from localllm.types import EngineOptions


def take_state(api: Any, context: Any) -> memoryview:
    """A copy of the state of sequence 0, the only one."""
    state = bytearray(api.llama_state_seq_get_size(context, 0))
    taken = api.llama_state_seq_get_data(context, _pointer(state), len(state), 0)
    return memoryview(state)[:taken]


def put_state(api: Any, context: Any, state: memoryview) -> bool:
    """Whether sequence 0 has the state now. It must be one that `take_state` gave: llama.cpp trusts it."""
    return bool(api.llama_state_seq_set_data(context, _pointer(state), len(state), 0) == len(state))


def settings_of_state(
    api: Any, model: Any, options: EngineOptions, adapters: list[str], gpu_layers: int, length: int
) -> str:
    """Everything but model and tokens that decides what a state in a context of `length` tokens is."""
    parts = [
        native.version(),
        api.llama_print_system_info().decode(),
        options.cache_type_k,
        options.cache_type_v,
        options.flash_attention,
        str(gpu_layers),
        *adapters,
        str(_long_factors(api, model, length)),
    ]
    return "\n".join(parts)


def _long_factors(api: Any, model: Any, length: int) -> bool:
    """Whether rotary embeddings are scaled by the factors for long contexts (Phi-3's; arXiv 2402.13753)."""
    architecture = _metadata(api, model, "general.architecture")
    original = _metadata(api, model, f"{architecture}.rope.scaling.original_context_length")
    return original.isdecimal() and length > int(original)


def _metadata(api: Any, model: Any, key: str) -> str:
    buffer = ctypes.create_string_buffer(256)
    api.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace")


def _pointer(data: bytearray | memoryview) -> Any:
    return (ctypes.c_uint8 * len(data)).from_buffer(data)
