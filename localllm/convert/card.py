"""What the model card, the licence and the names tell, as general metadata; the gguf package reads the card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_KEPT = ("general.architecture", "general.type")
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def describe(writer: Any, folder: Path, name: str) -> None:
    """Add the metadata to a writer that knows the tensors already. A card that cannot be read is passed over.

    `name` is what the model is called ("owner/name" or a folder's name): a folder in the Hub's cache has none.
    """
    import gguf

    parameters, shared, expert, experts = writer.get_total_parameter_count()
    try:
        found = _metadata(folder, name, parameters)
        if found.size_label is None:
            found.size_label = gguf.size_label(parameters, shared, expert, experts)
        if found.name is None:
            found.name = name
        found.set_gguf_meta_model(writer)
    except Exception:  # it trusts the card, which is a stranger's prose; without it the model is the same
        _forget(writer, lambda _: True)
    _forget(writer, lambda value: not _can_be_written(value))
    if "general.name" not in writer.kv_data[0]:
        writer.add_name(name)


def _metadata(folder: Path, name: str, parameters: int) -> Any:
    from gguf import Metadata

    settings = Metadata.load_hf_parameters(folder)
    settings.pop("_name_or_path", None)  # often a path of the machine it was trained on
    found = Metadata.apply_metadata_heuristic(
        Metadata(), Metadata.load_model_card(folder), settings, Path(name), parameters
    )
    advised = Metadata.load_generation_config(folder)
    for theirs, ours in _SAMPLING.items():
        value = advised.get(theirs)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(found, f"sampling_{ours}", int(value) if ours == "top_k" else float(value))
    return found


def _forget(writer: Any, which: Callable[[Any], bool]) -> None:
    """Take out what a card left, but for the architecture and the type."""
    for table in writer.kv_data:
        ours = [key for key in table if key.startswith("general.") and key not in _KEPT]
        for key in [key for key in ours if which(table[key].value)]:
            del table[key]


def _can_be_written(value: Any) -> bool:
    """Whether it is a text, a number or a list of texts; the package notices only when it writes."""
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, (str, int, float))
