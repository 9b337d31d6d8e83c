"""The part of `localllm convert` that makes an ONNX model's folder."""

from __future__ import annotations

from pathlib import Path

from localllm.errors import UsageError


def export_onnx(
    source: str, quant: str, accuracy: int, output: Path | None, *, force: bool, yes: bool, quiet: bool
) -> None:
    """Export a checkpoint or a GGUF, fetched if need be, and print the folder's path."""
    from localllm.convert.onnx import beside, export
    from localllm.ui.progress import say, work_progress
    from localllm.whole import require_folder

    if quant not in export.QUANTS:
        raise UsageError(f"--quant {quant}: the types are {', '.join(export.QUANTS)}")
    if accuracy not in (export.EXACT, export.INT8):
        raise UsageError(f"--accuracy {accuracy}: it is {export.EXACT} or {export.INT8}")
    ours = beside.NAMES if force else frozenset[str]()
    if output is not None:
        require_folder(output, ours=ours)
    path, name = _find(source, quant, yes=yes, quiet=quiet)
    target = output or Path(f"{name}-onnx")
    require_folder(target, ours=ours)
    plan = export.plan(path, quant, accuracy)
    if not quiet:
        for notice in plan.notices:
            say(f"{name}: {notice}")
    with work_progress(target.name, "quiet" if quiet else "auto") as report:
        export.write(plan, target, report, force=force)
    print(target)


def _find(source: str, quant: str, *, yes: bool, quiet: bool) -> tuple[Path, str]:
    """The checkpoint's folder or the GGUF, and what the model is called with its type."""
    from localllm.commands._checkpoint import find_checkpoint
    from localllm.commands._gguf import gguf_of, is_checkpoint

    if is_checkpoint(source):
        folder, name = find_checkpoint(source, yes=yes, quiet=quiet)
        return folder, f"{name.rpartition('/')[2]}-{'f32' if quant == 'auto' else quant}"
    path, bare = gguf_of(source, yes=yes)
    return path, path.stem if quant == "auto" else f"{bare}-{quant}"
