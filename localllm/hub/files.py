"""What the files of a repository are: which belong together, which quantization they hold, which are never fetched.

Pure, and the same for a listing from the Hub and for a folder on this disk. File names come from strangers:
`check_path` stands before any use of one as a path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from localllm.errors import BadModelFile, DownloadError, ModelNotFound

Format = Literal["gguf", "safetensors", "onnx"]

# Formats whose readers execute what is in the file, and code itself: never fetched.
UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".keras", ".npy", ".npz", ".py", ".so")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

_COMPANIONS = re.compile(
    r"chat_template\.(jinja|json)|tokenizer(_config)?\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json"
    r"|generation_config\.json|licen[cs]e(\.(txt|md))?|use_policy\.md|notice(\.(txt|md))?",
    re.IGNORECASE,
)
_CHECKPOINT = re.compile(
    r"config\.json|vocab\.(json|txt)|merges\.txt|preprocessor_config\.json|modules\.json|config_sentence_transformers\.json"
    r"|sentence_bert_config\.json|adapter_config\.json|genai_config\.json|readme\.md|model\.safetensors\.index\.json"
    r"|quantization_config\.json",
    re.IGNORECASE,
)
MAX_COMPANION = 64 << 20  # bytes; a tokenizer of 262,144 tokens has 33 MB

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf|\.safetensors)", re.IGNORECASE)
_QUANT = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d_[0-9A-Z]+(?:_[0-9A-Z]+)*|TQ\d_\d|BF16|F16|F32|FP16|FP32|MXFP4(?:_MOE)?|NVFP4))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_UNQUANTIZED = ("F16", "BF16", "F32")
_PROJECTORS = ("F16", "BF16", "Q8_0", "F32")  # the order of preference: all are small, and F16 runs everywhere
_NO_MODEL = re.compile(r"mmproj|ggml-vocab|(.*[-_.])?imatrix(_[^-]*)?\.gguf$", re.IGNORECASE)
_ONNX_QUANT = re.compile(r"(?<![a-z0-9])(int4|int8|fp16|fp32|bf16|q4f16|q4|q8)(?![a-z0-9])")
# What transformers.js and transformers call a type, where neither a file nor its type is called so.
_ALSO_CALLED = {"FP32": "F32", "FP16": "F16", "Q8": "INT8"}
_ONNX_NAMES = {"quantized": "int8", "": "f32", "fp16": "f16"}


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository. `etag` is the name of its blob: the sha256 of an LFS file, the git blob id of another."""

    path: str
    size: int
    etag: str = ""

    @property
    def sha256(self) -> str:
        return self.etag if len(self.etag) == 64 else ""


@dataclass(frozen=True, slots=True)
class Variant:
    """What can be opened or converted: one model in one quantization. `files[0]` is what is opened."""

    quant: str
    format: Format
    files: tuple[RepoFile, ...]
    companions: tuple[RepoFile, ...]

    @property
    def path(self) -> str:
        return self.files[0].path

    @property
    def size(self) -> int:
        """Bytes of the model itself, all shards, without its companions."""
        return sum(file.size for file in self.files)


def check_path(path: str) -> None:
    """Raise DownloadError where a name is not safe."""
    if not is_safe(path):
        raise DownloadError(f"{path[:100]!r} is no safe name for a file", "do not trust where it comes from")


def is_safe(path: str) -> bool:
    """Whether a name stays inside its folder, and can be a file's, on every platform."""
    return not any(
        part in ("", ".", "..")
        or part.endswith((".", " "))
        or len(part.encode(errors="replace")) > 255
        or any(c in '\\:*?"<>|' or ord(c) < 32 or ord(c) == 127 for c in part)
        or part.partition(".")[0].rstrip().upper() in _RESERVED
        for part in path.split("/")
    )


_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {f"{p}{i}" for p in ("COM", "LPT") for i in range(10)}


def is_companion(name: str) -> bool:
    """Whether a file of this name belongs to a model and holds none of its weights."""
    return bool(_COMPANIONS.fullmatch(name) or _CHECKPOINT.fullmatch(name))


def quantization(path: str) -> str:
    """The quantization type that a file's name tells, in upper case, or ""; a folder's name is asked last."""
    stem = _SHARD.sub(r"\g<stem>", path)
    for part in reversed(PurePosixPath(stem).parts):
        if found := _QUANT.findall(part.removesuffix(".gguf")):
            quant = str(found[-1]).upper()
            return {"FP16": "F16", "FP32": "F32"}.get(quant, quant)
    return ""


def variants(files: Iterable[RepoFile]) -> list[Variant]:
    """All models among the files, the smallest first; incomplete sets of shards are left out."""
    known = {file.path: file for file in files if not file.path.lower().endswith(UNSAFE)}
    found = [*_ggufs(known), *_checkpoints(known), *_onnx(known)]
    return sorted(found, key=lambda v: (v.format, v.size, v.path))


def select(found: Sequence[Variant], quant: str, file: str) -> list[Variant]:
    """The variants that a reference's quantization or file means; without both, those of the preferred format."""
    if file:
        return [v for v in found if file in (f.path for f in v.files)]
    if quant:
        wanted = quant.upper()
        return _of_quantization(found, wanted) or _of_quantization(found, _ALSO_CALLED.get(wanted, wanted))
    for format in ("gguf", "safetensors", "onnx"):
        if chosen := [v for v in found if v.format == format]:
            return chosen
    return []


def _of_quantization(found: Sequence[Variant], wanted: str) -> list[Variant]:
    """The one variant of a quantization, in capitals; none where there is no such."""
    exact = [v for v in found if v.quant.upper() in (wanted, f"UD-{wanted}")]
    named = [v for v in found if PurePosixPath(v.path).stem.upper().endswith(_endings(v, wanted))]
    begins = [v for v in found if v.quant.upper().startswith(wanted + "_")]
    # Of several with one quantization the plainest name; of several that begin alike the best.
    plain = sorted(exact or named, key=lambda v: (v.quant.upper() != wanted, v.path.count("/"), len(v.path), v.path))
    return (plain or sorted(begins, key=lambda v: (-v.size, v.path)))[:1]


def _endings(variant: Variant, wanted: str) -> tuple[str, ...]:
    """How a file's name ends that says a quantization in other words: model_quantized.onnx."""
    return tuple(mark + wanted for mark in ("-._" if variant.format == "onnx" else "-."))


def best(found: Sequence[Variant], fits: Callable[[Variant], bool]) -> tuple[Variant, bool]:
    """The best variant that fits, and whether one does (else the smallest).

    More bytes are better up to Q8_0, whose loss cannot be seen; F16 and the like only where there is nothing else.
    """
    ranked = sorted(found, key=lambda v: (v.quant in _UNQUANTIZED, -v.size, v.path))
    for variant in ranked:
        if fits(variant):
            return variant, True
    return min(found, key=lambda v: v.size), False


def require(found: Sequence[Variant], repository: str, quant: str, file: str, paths: Sequence[str]) -> list[Variant]:
    """`select`, or an error that names what there is. Raises ModelNotFound, BadModelFile."""
    if chosen := select(found, quant, file):
        return chosen
    if file:
        if file in paths:
            raise BadModelFile(f"{file} of {repository} is not a complete model", "shards are missing there")
        raise ModelNotFound(f"{repository} has no file {file}", _there_is(found))
    if quant:
        raise ModelNotFound(f"{repository} has no {quant}", _there_is(found))
    if any(p.lower().endswith(_PICKLES) for p in paths):
        raise BadModelFile(
            f"{repository} holds pickles only, which run code when they are opened",
            "look for a GGUF or safetensors version: localllm search " + repository.partition("/")[2],
        )
    raise ModelNotFound(f"{repository} holds no GGUF, safetensors or ONNX model", "is it a dataset or an adapter?")


def _there_is(found: Sequence[Variant]) -> str:
    names = sorted({v.quant or v.path for v in found})
    return f"it has {', '.join(names)}" if names else "it holds no model at all"


def _ggufs(known: dict[str, RepoFile]) -> list[Variant]:
    ggufs = {p: f for p, f in known.items() if p.lower().endswith(".gguf")}
    projectors = [f for p, f in ggufs.items() if PurePosixPath(p).name.lower().startswith("mmproj")]
    extra = _companions(known, "", _COMPANIONS)
    if projectors:
        extra.append(min(projectors, key=_projector_rank))
    found = []
    for path in ggufs:
        if _NO_MODEL.match(PurePosixPath(path).name):
            continue
        shards = _shards(path, ggufs)
        if shards:
            found.append(Variant(quantization(path), "gguf", shards, tuple(extra)))
    return found


def _shards(path: str, known: dict[str, RepoFile]) -> tuple[RepoFile, ...]:
    """All shards of the set that `path` begins; () where it is not the first, or where one is missing."""
    match = _SHARD.fullmatch(path)
    if match is None:
        return (known[path],)
    count = int(match["count"])
    names = [f"{match['stem']}-{i:05}-of-{match['count']}{match['suffix']}" for i in range(1, count + 1)]
    complete = int(match["index"]) == 1 and count <= len(known) and all(name in known for name in names)
    return tuple(known[name] for name in names) if complete else ()


def _projector_rank(file: RepoFile) -> tuple[int, str]:
    quant = quantization(file.path)
    return (_PROJECTORS.index(quant) if quant in _PROJECTORS else len(_PROJECTORS), file.path)


def _checkpoints(known: dict[str, RepoFile]) -> list[Variant]:
    """The safetensors checkpoint at the top of the repository: whole, by its index or alone."""
    if "config.json" not in known:
        return []
    files: tuple[RepoFile, ...] = ()
    if "model.safetensors" in known:
        files = (known["model.safetensors"],)
    elif "model.safetensors.index.json" in known:
        first = next((p for p in sorted(known) if p.startswith("model-00001-of-") and "/" not in p), "")
        files = _shards(first, known) if first else ()
    if not files:
        return []
    extra = [*_companions(known, "", _COMPANIONS), *_companions(known, "", _CHECKPOINT), *_pooling(known)]
    return [Variant("safetensors", "safetensors", files, tuple(extra))]


def _pooling(known: dict[str, RepoFile]) -> list[RepoFile]:
    """How sentence-transformers pools, and what comes after."""
    return [f for p, f in known.items() if re.fullmatch(r"\d_\w+/config\.json", p)]


def _onnx(known: dict[str, RepoFile]) -> list[Variant]:
    """ONNX models with their external data; a folder with genai_config.json is one model, data and all."""
    found = []
    for path, file in known.items():
        pure = PurePosixPath(path)
        if pure.suffix.lower() != ".onnx" or _is_half(pure, known):
            continue
        folder = "" if str(pure.parent) == "." else f"{pure.parent}/"
        data = [f for p, f in known.items() if p != path and p.startswith((path + "_data", path + ".data"))]
        extra = [*_companions(known, "", _COMPANIONS), *_companions(known, "", _CHECKPOINT), *_pooling(known)]
        if folder:
            extra += [*_companions(known, folder, _COMPANIONS), *_companions(known, folder, _CHECKPOINT)]
        stem = pure.stem.lower().removeprefix("decoder_").removeprefix("model").removeprefix("_merged").lstrip("_-.")
        quant = _ONNX_NAMES.get(stem, stem)
        if not stem and f"{folder}genai_config.json" in known:  # such a folder holds any type under the plain name
            quant = next(iter(_ONNX_QUANT.findall(folder.lower())), "")
        found.append(Variant(quant, "onnx", (file, *data), tuple(extra)))
    return found


def _is_half(path: PurePosixPath, known: Collection[str]) -> bool:
    """Whether a model is one for the prompt alone or for single tokens alone, with one for both beside it.

    Optimum of some years ago exported decoders in these three ways at once.
    """
    both = re.sub(r"^decoder(_with_past)?_model(?!_merged)", "decoder_model_merged", path.name)
    return both != path.name and str(path.with_name(both)) in known


def _companions(known: dict[str, RepoFile], folder: str, names: re.Pattern[str]) -> list[RepoFile]:
    return [
        f
        for p, f in known.items()
        if p.startswith(folder) and names.fullmatch(p.removeprefix(folder)) and f.size <= MAX_COMPANION
    ]
