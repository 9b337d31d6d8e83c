"""`localllm convert`: a Hugging Face checkpoint -> a GGUF file; it or a GGUF -> a folder with an ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localllm.commands._options import QuietOption, YesOption
from localllm.errors import UsageError

OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to write; the model's name in this folder without it."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace FILE where it is there already.")]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A folder with config.json and safetensors, or owner/repo; for onnx also a GGUF."
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="The format: gguf or onnx.")] = "gguf",
    dtype: Annotated[
        str, typer.Option("--dtype", help="f32, f16, bf16, q8_0, or auto: the checkpoint's own type in 16 bits.")
    ] = "auto",
    quant: Annotated[
        str, typer.Option("--quant", help="For onnx: q4, q8, f16, f32, or auto: a GGUF's own blocks, else f32.")
    ] = "auto",
    accuracy: Annotated[
        int, typer.Option("--accuracy", help="For onnx: 4 rounds activations to 8 bits, as llama.cpp; 0 does not.")
    ] = 4,
    lora: Annotated[bool, typer.Option("--lora", help="SRC is a PEFT LoRA adapter.")] = False,
    base: Annotated[str, typer.Option("--base", metavar="FOLDER", help="With --lora, the model it belongs to.")] = "",
    output: OutputOption = None,
    force: ForceOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert a Hugging Face checkpoint, or a LoRA adapter, into a GGUF file, without PyTorch; its path is printed.

    --to onnx makes a folder with an ONNX model, its tokenizer and its chat template, also out of a GGUF.
    """
    from localllm.commands._checkpoint import find_checkpoint
    from localllm.convert import gguf
    from localllm.ui.progress import say, work_progress
    from localllm.whole import require_target

    if to.lower() == "onnx":
        if lora or dtype != "auto":
            raise UsageError("--lora and --dtype are for --to gguf", "--quant q4|q8|f16|f32 is for ONNX")
        from localllm.commands._export import export_onnx

        export_onnx(source, quant.lower(), accuracy, output, force=force, yes=yes, quiet=quiet)
        return
    if to.lower() != "gguf":
        raise UsageError(f"--to {to}: the formats are gguf and onnx")
    if quant != "auto" or accuracy != 4:
        raise UsageError("--quant and --accuracy are for --to onnx", "--dtype, or localllm quantize, is for GGUF")
    if dtype not in gguf.ASKED:
        raise UsageError(f"--dtype {dtype}: the types are {', '.join(gguf.TYPES)} and auto")
    if output is not None:
        require_target(output, force=force)
    folder, name = find_checkpoint(source, yes=yes, quiet=quiet)
    base_folder = _base(base, folder) if lora else None
    plan = gguf.plan_lora(folder, base_folder, dtype, name) if base_folder else gguf.plan(folder, dtype, name)
    target = output or Path(f"{name.rpartition('/')[2]}-{'LoRA-' * lora}{plan.dtype.upper()}.gguf")
    require_target(target, force=force)
    if not quiet:
        for notice in plan.notices:
            say(f"{name}: {notice}")
    with work_progress(target.name, "quiet" if quiet else "auto") as report:
        gguf.write(plan, target, report)
    print(target)


def _base(named: str, adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to: the one that was named, or the one the adapter names."""
    from localllm.commands._checkpoint import local_checkpoint
    from localllm.convert.lora import base_of
    from localllm.errors import LocalLLMError, ModelNotFound

    name = named or base_of(adapter)
    try:
        folder = local_checkpoint(name) if name else None
    except LocalLLMError:
        folder = None
    if folder is None:
        said = f"{name!r}, which is not here" if name else "nothing of its base"
        raise ModelNotFound(f"{adapter} says {said}", "--base FOLDER names the folder with the base's config.json")
    return folder
