"""A GGUF -> the same in another quantization type, by llama.cpp's own quantizer.

The file is byte for byte llama-quantize's. It is made beside its target by a child process (`quantize_worker.py`), then
checked, synced and renamed, so that Ctrl-C, a kill and a full disk leave the target absent or whole.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localllm.engines.native import llama
from localllm.errors import BadModelFile, EngineError, LocalLLMError, UsageError
from localllm.formats.gguf import TENSOR_TYPES, TYPE_IDS, Header, read_header, read_model
from localllm.jobs.quantize_worker import Task, work
from localllm.whole import replacing

Report = Callable[[int, int], None]

_PREFIX = "LLAMA_FTYPE_"
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_BEGUN = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- ")
_WHOLE_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- .* MiB(?: \((\w+)\))?$")
_FALLBACK = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
_BLOCKS = {name: (elements, size) for name, elements, size in TENSOR_TYPES.values()}
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """How a file is quantized. `tensors` are PATTERN=TYPE, the patterns searched in a tensor's name (ECMAScript)."""

    imatrix: str = ""
    tensors: tuple[str, ...] = ()
    keep_output: bool = False
    pure: bool = False
    requantize: bool = False
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a quantization will come to: bytes of the file, and each tensor's type."""

    type: str
    size: int
    parameters: int
    tensors: dict[str, str]

    @property
    def bits_per_weight(self) -> float:
        return self.size * 8 / self.parameters


def file_types() -> dict[str, int]:
    """The types that this llama.cpp knows, by name -> llama_ftype."""
    api = llama()
    names = [n for n in vars(api) if n.startswith(_PREFIX) and n != f"{_PREFIX}GUESSED"]
    found = {n.removeprefix(_PREFIX).removeprefix("ALL_").removeprefix("MOSTLY_"): getattr(api, n) for n in names}
    return dict(sorted(found.items(), key=lambda row: row[1]))


def find_type(name: str) -> str:
    """A type by its name, in capitals or not. Raises UsageError."""
    known = file_types()
    wanted = _ALIASES.get(name.upper(), name.upper())
    if wanted not in known:
        raise UsageError(f"{name!r} is not a quantization type", f"the types are {', '.join(known)}")
    return wanted


def quantize(source: Path, target: Path, kind: str, choice: Choice, report: Report) -> list[str]:
    """Write `source` in the type `kind`; returns what the user should know. `report` hears of bytes read and of all.

    Raises LocalLLMError's children.
    """
    header = read_model(source)
    free = shutil.disk_usage(target.parent).free
    # To foresee the size takes half a second, which is saved where it cannot matter.
    if header.file_size > free and (needed := foresee(source, kind, choice).size) > free:
        raise LocalLLMError(
            f"{target.name} needs {needed >> 20} MiB, and {target.parent} has {free >> 20} MiB left",
            "free some, choose a smaller type, or name a FILE elsewhere with -o",
        )
    notices, done = [], 0
    sizes = {tensor.name: tensor.size for tensor in header.tensors}
    total = sum(sizes.values())
    with replacing(target) as beside:
        for text in _run(_task(source, str(beside), kind, choice)):
            if match := _BEGUN.match(text):
                report(done, total)
                done += sizes.get(match[1], 0)
            elif match := _FALLBACK.search(text):
                what = f"{match[1]} of {len(sizes)} tensors got a larger type"
                notices.append(f"{what}: their rows do not divide into the blocks of {kind}")
        report(total, total)
        made = read_header(beside)
        if len(made.tensors) != len(header.tensors):
            raise EngineError(f"llama.cpp wrote {len(made.tensors)} of {len(header.tensors)} tensors")
    return notices


def foresee(source: Path, kind: str, choice: Choice) -> Foreseen:
    """What it will come to, without doing it. Raises as `quantize`."""
    header = read_model(source)
    types = {}
    for line in _lines(_run(_task(source, "", kind, choice, dry_run=True))):
        if match := _WHOLE_LINE.match(line):
            types[match[1]] = match[2] or ""
    sizes, final = 0, {}
    for tensor in header.tensors:
        final[tensor.name] = kind_of = types.get(tensor.name, "").upper() or tensor.type
        elements, size = _BLOCKS[kind_of]
        sizes += -(-tensor.parameters // elements * size // _ALIGNMENT) * _ALIGNMENT
    # The header stays as it is, but for a few numbers.
    return Foreseen(kind, sizes + _header_size(header), header.parameters, final)


def _header_size(header: Header) -> int:
    first = min((tensor.offset for tensor in header.tensors), default=header.file_size)
    return first if len({t.offset for t in header.tensors}) == len(header.tensors) else 0


def _task(source: Path, target: str, kind: str, choice: Choice, *, dry_run: bool = False) -> Task:
    return Task(
        str(source), target, file_types()[kind], choice.threads, choice.imatrix, tuple(map(_override, choice.tensors)),
        choice.keep_output, choice.pure, choice.requantize, dry_run,
    )  # fmt: skip


def _override(text: str) -> tuple[str, int]:
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern or name.upper() not in TYPE_IDS:
        raise UsageError(f"--tensor {text!r} is not PATTERN=TYPE", "for example --tensor 'ffn_down=q6_k'")
    return pattern, TYPE_IDS[name.upper()]


def _run(task: Task) -> Iterator[str]:
    """What llama.cpp logs, in pieces. The child ends with this generator, however that ends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(task, there), daemon=True)
    process.start()
    there.close()
    try:
        while True:
            try:
                kind, value = here.recv()
            except EOFError:
                process.join()
                raise EngineError(f"llama.cpp's quantizer was ended by {_cause(process.exitcode)}") from None
            if kind == "log":
                yield value
            elif kind == "error":
                raise value
            else:
                break
        if value:
            raise _error(task, value)
    finally:
        process.kill()
        process.join()
        here.close()


def _cause(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _error(task: Task, text: str) -> LocalLLMError:
    reason = text.rpartition("failed to quantize: ")[2] or text
    if "requantizing" in reason:
        return BadModelFile(
            f"{task.source} is quantized already ({reason})",
            "start from F16, BF16 or F32; --allow-requantize does it all the same, at a loss",
        )
    if "requires an imatrix" in reason or "Missing importance matrix" in reason:
        kind = next(name for name, number in file_types().items() if number == task.file_type)
        return UsageError(f"{kind} needs an importance matrix", "--imatrix auto computes one, --imatrix FILE reads one")
    return EngineError(f"{task.source} could not be quantized: {reason}", "check the disk's space and the model")


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    yield rest
