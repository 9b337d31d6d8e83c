"""One file per family; the class of transformers that a configuration names leads to it, imported on use."""

from __future__ import annotations

import re
from importlib import import_module

from localllm.convert.checkpoint import Checkpoint
from localllm.convert.family import Family
from localllm.errors import UnknownArchitecture

_MODULES = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "MistralForCausalLM", "MixtralForCausalLM"),
    "smollm3": ("SmolLM3ForCausalLM",),
    "qwen": ("Qwen2ForCausalLM", "Qwen2Model", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3Model",
             "Qwen3MoeForCausalLM"),
    "gemma": ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    "phi": ("Phi3ForCausalLM",),
    "stablelm": ("StableLmForCausalLM",),
    "olmo": ("Olmo2ForCausalLM",),
    "granite": ("GraniteForCausalLM", "GraniteMoeForCausalLM"),
    "gpt": ("GPT2LMHeadModel", "GPT2Model", "GPTNeoXForCausalLM"),
    "falcon": ("FalconForCausalLM", "RWForCausalLM"),
    "starcoder": ("Starcoder2ForCausalLM",),
    "bert": ("BertModel", "BertForMaskedLM", "NomicBertModel"),
}  # fmt: skip


def family_of(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint. Raises UnknownArchitecture for one that is not converted, BadModelFile."""
    name = checkpoint.architecture
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise _unknown(checkpoint, name)
    found = import_module(f"{__name__}.{module}")
    kind = next(each for each in found.FAMILIES if name in each.names)
    family: Family = kind(checkpoint)
    family.check()
    return family


def known() -> list[str]:
    """The classes of transformers that can be converted."""
    return [name for names in _MODULES.values() for name in names]


def _unknown(checkpoint: Checkpoint, name: str) -> UnknownArchitecture:
    if checkpoint.config.runs_code:
        return UnknownArchitecture(
            f"{checkpoint.folder} is a {name[:60]}, whose definition is Python code in the checkpoint (auto_map): "
            "it is never run",
            "look for a GGUF of the model: localllm search NAME",
        )
    if _llama_cpp_runs(name):
        return UnknownArchitecture(
            f"llama.cpp runs the architecture {name[:60]}, but this version does not convert it",
            "its own convert_hf_to_gguf.py does; or look for a GGUF of the model: localllm search NAME",
        )
    return UnknownArchitecture(
        f"the architecture {name[:60]} is not converted, and llama.cpp is not known to run it",
        "is the model of another kind (images, sound)? localllm search NAME looks for a GGUF of it",
    )


def _llama_cpp_runs(name: str) -> bool:
    """Whether the gguf package has an architecture of that name, in whichever spelling."""
    import gguf

    base = re.sub(r"(For\w+|LMHeadModel|Model)$", "", name).lower()
    return base in {re.sub("[-_]", "", known) for known in gguf.MODEL_ARCH_NAMES.values()}
