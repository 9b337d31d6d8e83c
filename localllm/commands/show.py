"""`localllm show`: what a model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.commands._options import JsonOption, ReferenceArgument
from localllm.errors import BadModelFile, UsageError

if TYPE_CHECKING:
    from localllm.formats.gguf import Header
    from localllm.hub.reference import Reference
    from localllm.hub.store import Installed

LONGEST = 200  # characters of a metadata value


def show(
    reference: ReferenceArgument,
    as_json: JsonOption = False,
    template: Annotated[bool, typer.Option("--template", help="Only the chat template, as it is.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor: name, type, shape, size.")] = False,
) -> None:
    """Show a model: architecture, parameters, context, quantization types, template, licence, tokenizer, checksums.

    Of a GGUF on the Hub that is not here the header is read, and nothing is kept.
    """
    import json

    from localllm.hub import store
    from localllm.hub.reference import parse

    parsed = store.dereference(parse(reference))
    model = store.find(parsed)
    header, place = _header(parsed) if model is None else (_read(model), _place(model))
    if template:
        own = header.metadata.get("tokenizer.chat_template")
        if not isinstance(own, str):
            raise UsageError(f"{parsed} has no chat template", "run --template NAME gives it one")
        print(json.dumps(own) if as_json else own)
        return
    if as_json:
        print(json.dumps(_summary(header, place) | {"metadata": _metadata(header)} | _tensors(header), indent=1))
        return
    _print(_summary(header, place), header, tensors=tensors)


def _read(model: Installed) -> Header:
    from localllm.formats.gguf import read_model

    if model.format == "onnx":
        return _of_onnx(model)
    return read_model(model.path) if model.format == "gguf" else _of_checkpoint(model)


def _of_onnx(model: Installed) -> Header:
    """An ONNX model's graph, configuration and constants, told in the words of a GGUF's header."""
    from localllm.engines.onnx_folder import read_folder
    from localllm.formats import gguf, onnx

    found, folder = onnx.read_model(model.path), read_folder(model.path)
    decoder = folder.genai["model"] if isinstance(folder.genai.get("model"), dict) else {}
    architecture = str(folder.config.get("model_type") or decoder.get("type") or "unknown")

    def values(ones: Any) -> str:
        return ", ".join(f"{v.name} {v.type} ({', '.join(str(n or '?') for n in v.shape)})" for v in ones)

    metadata: dict[str, Any] = {f"config.{key}": value for key, value in folder.config.items()}
    metadata |= {
        "general.architecture": architecture,
        f"{architecture}.context_length": folder.trained,
        f"{architecture}.block_count": folder.config.get("num_hidden_layers", 0),
        f"{architecture}.embedding_length": folder.config.get("hidden_size", 0),
        "onnx.parameters": found.parameters,
        "onnx.producer": found.producer,
        "onnx.opsets": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items()),
        "onnx.inputs": values(found.inputs),
        "onnx.outputs": values(found.outputs),
        "onnx.nodes": len(found.nodes),
    }
    if folder.template is not None:
        metadata["tokenizer.chat_template"] = folder.template
    places = {(t.file, t.offset, "" if t.file else t.name): t for t in found.tensors.values()}  # of several names one
    tensors = tuple(gguf.Tensor(t.name, t.shape[::-1], t.type, t.offset, t.size) for t in places.values())
    return gguf.Header(model.path, model.size, metadata, tensors)


def _of_checkpoint(model: Installed) -> Header:
    """A checkpoint's configuration and tensors, told in the words of a GGUF's header."""
    from localllm.formats import gguf, safetensors

    config = _json_beside(model, "config.json")
    architecture = str(config.get("model_type", "unknown"))
    metadata: dict[str, Any] = {f"config.{key}": value for key, value in config.items()}
    names = {"context_length": "max_position_embeddings", "block_count": "num_hidden_layers"}
    names |= {"embedding_length": "hidden_size"}
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    metadata |= {f"{architecture}.{ours}": text.get(theirs, 0) for ours, theirs in names.items()}
    metadata["general.architecture"] = architecture
    if (template := _template_beside(model)) is not None:
        metadata["tokenizer.chat_template"] = template
    rows = [t for f in model.files for t in safetensors.read_header(f.path).tensors]
    tensors = tuple(gguf.Tensor(t.name, t.shape[::-1], t.dtype, t.offset, t.size) for t in rows)
    return gguf.Header(model.path, model.size, metadata, tensors)


def _template_beside(model: Installed) -> str | None:
    for file in model.companions:
        if file.path.name == "chat_template.jinja":
            return file.path.read_text(encoding="utf-8", errors="replace")
    template = _json_beside(model, "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None


def _json_beside(model: Installed, name: str) -> dict[str, Any]:
    """An object in a file that came with a model; {} where there is none, or none that can be read."""
    import json

    path = next((f.path for f in model.companions if f.path.name == name), None)
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _place(model: Installed) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": str(model.path),
        "files": [
            {"path": str(f.path), "size": f.size, "sha256": f.checksum if len(f.checksum) == 64 else ""}
            for f in model.files
        ],
        "companions": [str(f.path) for f in model.companions],
        "source": model.source,
        "revision": model.revision,
        "how": model.how,
    }


def _header(reference: Reference) -> tuple[Header, dict[str, Any]]:
    """The header of a model that is not here, from the Hub."""
    from localllm.commands._model import plan_of
    from localllm.hub import preview

    plan = plan_of(reference)
    if plan.variant.format != "gguf":
        raise BadModelFile(f"{reference} is in {plan.variant.format}, and show knows GGUF so far")
    listing = plan.listing
    place = {
        "name": str(reference),
        "path": "(not here)",
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in plan.variant.files],
        "companions": [f.path for f in plan.variant.companions],
        "source": listing.repository,
        "revision": listing.commit,
        "how": "on the Hub",
    }
    return preview.remote_header(listing, plan.variant), place


def _summary(header: Header, place: dict[str, Any]) -> dict[str, Any]:
    """What people ask first; sizes in bytes."""
    types: dict[str, dict[str, int]] = {}
    for tensor in header.tensors:
        row = types.setdefault(tensor.type, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += tensor.size
    metadata = header.metadata
    # What is packed in an ONNX model has more numbers than its tensor has elements.
    parameters = metadata.get("onnx.parameters", header.parameters)
    size = sum(file["size"] for file in place["files"])
    return {
        **place,
        "architecture": header.architecture,
        "title": metadata.get("general.name", ""),
        "parameters": parameters,
        "context": header.get("context_length", 0),
        "layers": header.get("block_count", 0),
        "embedding": header.get("embedding_length", 0),
        "size": size,
        "bits_per_weight": round(8 * sum(t.size for t in header.tensors) / max(1, parameters), 2),
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
        "licence": metadata.get("general.license", ""),
        "tokenizer": metadata.get("tokenizer.ggml.model", ""),
        "pre_tokenizer": metadata.get("tokenizer.ggml.pre", ""),
        "vocabulary": _length(metadata.get("tokenizer.ggml.tokens")),
        "template": isinstance(metadata.get("tokenizer.chat_template"), str),
    }


def _length(value: Any) -> int:
    from localllm.formats.gguf_metadata import Array

    return value.length if isinstance(value, Array) else len(value) if isinstance(value, tuple) else 0


def _metadata(header: Header) -> dict[str, Any]:
    """All values but the long arrays, of which the length is told."""
    from localllm.formats.gguf_metadata import Array

    return {
        key: {"length": value.length} if isinstance(value, Array) else value
        for key, value in sorted(header.metadata.items())
    }


def _tensors(header: Header) -> dict[str, Any]:
    return {"tensors": [{"name": t.name, "type": t.type, "shape": t.shape, "size": t.size} for t in header.tensors]}


def _print(summary: dict[str, Any], header: Header, *, tensors: bool) -> None:
    from localllm.ui.render import visible
    from localllm.ui.table import print_table
    from localllm.ui.units import count, size

    types = ", ".join(f"{name} {row['tensors']} tensors {size(row['bytes'])}" for name, row in summary["types"].items())
    lines = {
        "name": summary["name"],
        "title": summary["title"],
        "architecture": summary["architecture"],
        "parameters": count(summary["parameters"]),
        "context": f"{summary['context']} tokens",
        "layers": f"{summary['layers']} of width {summary['embedding']}",
        "size": f"{size(summary['size'])}, {summary['bits_per_weight'] or '?'} bits per weight",
        "types": types,
        "tokenizer": f"{summary['tokenizer']} ({summary['pre_tokenizer']}), {summary['vocabulary']:,} tokens"
        * bool(summary["vocabulary"]),
        "template": "its own; --template shows it" if summary["template"] else "none",
        "licence": summary["licence"] or "not stated",
        "source": summary["source"] + f" {summary['revision']}" * (summary["revision"] not in summary["source"]),
        "made": summary["how"],
    }
    for key, value in lines.items():
        if value:
            print(visible(f"{key:13} {value}"))
    for file in summary["files"]:
        print(visible(f"{'file':13} {file['path']}"))
        print(f"{'sha256':13} {file['sha256'] or 'not recorded'}")
    for companion in summary["companions"]:
        print(visible(f"{'beside it':13} {companion}"))
    print()
    if tensors:
        rows = [(t.name, t.type, " x ".join(map(str, t.shape)), size(t.size)) for t in header.tensors]
        print_table(("tensor", "type", "shape", "size"), rows, right=(3,))
        return
    for key, value in _metadata(header).items():
        text = f"{value['length']:,} items" if isinstance(value, dict) and [*value] == ["length"] else str(value)
        cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"
        print(visible(f"{key} = {' '.join(cut.split())}"))
