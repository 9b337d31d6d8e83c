"""The part of `localllm quantize` that works on ONNX models: a file, or a folder with what lies beside it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.errors import BadModelFile, UsageError

if TYPE_CHECKING:
    from localllm.jobs.quantize_onnx import Quantized

# Where a model lies in a folder, and what comes along from beside it.
_PLACES = ("model.onnx", "onnx/model.onnx")
_KEPT = (".json", ".jinja", ".txt", ".model", ".md")
_STEP = re.compile(r"\d_\w+")  # folders in which sentence-transformers notes what follows the model: 1_Pooling


def is_onnx(source: str) -> bool:
    """Whether a word means an ONNX file, or a folder with one and no checkpoint."""
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        return True
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return False
    return any(found for pattern in ("*.onnx", "onnx/*.onnx") for found in path.glob(pattern))


def quantize_onnx(source: Path, types: list[str], output: Path | None, *, force: bool, quiet: bool) -> None:
    """Quantize to each type, tell the sizes and print the paths: of files for a file, of folders for a folder."""
    from localllm.jobs.quantize_onnx import find_kind

    kinds = list(dict.fromkeys(map(find_kind, types)))
    if len(kinds) > 1 and output is not None and not output.is_dir():
        raise UsageError(f"{output} is not a folder, and {len(kinds)} models are to be written", "-o FOLDER")
    whole = source.is_dir()
    model = _model_in(source) if whole else source
    for kind in kinds:
        name = f"{source.resolve().name}-{kind}" if whole else f"{source.stem}_{kind}.onnx"
        into = output if output is not None and output.is_dir() and (len(kinds) > 1 or not whole) else None
        target = into / name if into else output or Path(name)
        make = _folder if whole else _file
        found = make(model, target, kind, force=force, quiet=quiet)
        if not quiet:
            _tell(target, found)
        print(target, flush=True)


def _model_in(folder: Path) -> Path:
    """The model of a folder. Raises BadModelFile where it is not clear which one that is."""
    for place in _PLACES:
        if (folder / place).is_file():
            return folder / place
    found = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:4])
        raise BadModelFile(f"{folder} has {len(found)} ONNX models and no model.onnx: {names}", "name one of them")
    return found[0]


def _file(model: Path, target: Path, kind: str, *, force: bool, quiet: bool) -> Quantized:
    from localllm.jobs.quantize_onnx import data_of
    from localllm.whole import require_target

    require_target(target, force=force)
    require_target(data_of(target), force=force)
    return _run(model, target, kind, target.name, quiet=quiet)


def _folder(model: Path, target: Path, kind: str, *, force: bool, quiet: bool) -> Quantized:
    """A folder with the quantized model under the name that the settings beside it may mention."""
    from localllm.jobs.quantize_onnx import data_of
    from localllm.whole import replacing_folder

    place = model.absolute().parent
    home = place.parent if place.name == "onnx" else place
    kept = [path.relative_to(home) for path in _kept(home)]
    ours = {model.name, data_of(model).name, f"{model.name}.data", *(path.as_posix() for path in kept)}
    with replacing_folder(target, ours if force else ()) as folder:
        found = _run(model, folder / model.name, kind, target.name, quiet=quiet)
        for path in kept:
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(home / path, folder / path)
    return found


def _kept(home: Path) -> list[Path]:
    """The files that tell about the model of a folder, how its vectors are pooled among them."""
    beside = [path for path in home.iterdir() if path.suffix in _KEPT]
    steps = [path for path in home.glob("*/config.json") if _STEP.fullmatch(path.parent.name)]
    return [path for path in sorted(beside + steps) if path.is_file()]


def _run(model: Path, target: Path, kind: str, name: str, *, quiet: bool) -> Quantized:
    from localllm.jobs.quantize_onnx import quantize, size_of
    from localllm.ui.progress import work_progress

    with work_progress(name, "quiet" if quiet else "auto", unit="matrices") as report:
        return quantize(model, size_of(model), target, kind, report)


def _tell(target: Path, found: Quantized) -> None:
    from localllm.ui.progress import say
    from localllm.ui.units import size

    ratio = found.before / max(1, found.after)
    matrices = "1 matrix" if found.matrices == 1 else f"{found.matrices} matrices"
    say(f"{target.name}: {matrices} quantized, {size(found.before)} -> {size(found.after)} ({ratio:.1f} times smaller)")
