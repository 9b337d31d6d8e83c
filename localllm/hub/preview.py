"""What a model would need on this machine, before it is downloaded: headers read by ranges, sizes from the listing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from localllm import fit, hardware
from localllm.errors import BadModelFile, DownloadError, ModelNotFound, OutOfMemory
from localllm.formats import gguf
from localllm.formats.gguf import Header
from localllm.hub.cache import CachedRepository
from localllm.hub.files import RepoFile, Variant, best
from localllm.hub.remote import Listing, Notify, RemoteBytes
from localllm.hub.store import Installed, hub_cache, hub_models

SHARE = 0.8
"""Of the machine's memory, what a model that is chosen for the user may take."""

CHECKPOINT_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
"""What `fit` shows for a checkpoint: the types that a conversion would most likely choose."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A quantization that exists (or that a checkpoint could be converted to), with its size in bytes."""

    quant: str
    size: int
    path: str
    need: fit.NeedAt
    trained: int


def of_listing(listing: Listing, variants: list[Variant], notify: Notify = lambda _: None) -> list[Candidate]:
    """Candidates of a repository, of which one header and the listing tell all. Raises BadModelFile, DownloadError."""
    ggufs = [v for v in variants if v.format == "gguf"]
    if ggufs:
        return _of_ggufs(listing, ggufs, notify)
    checkpoints = [v for v in variants if v.format == "safetensors"]
    if not checkpoints:
        raise ModelNotFound(
            f"{listing.repository} has neither GGUF nor safetensors, whose memory could be estimated",
            "pull an ONNX model, and try it",
        )
    config = next(f for f in checkpoints[0].companions if f.path == "config.json")
    values = _json(RemoteBytes(listing.repository, listing.commit, config, notify), config)
    return of_checkpoint(values, checkpoints[0].size)


def of_installed(model: Installed) -> list[Candidate]:
    """The one candidate that an installed GGUF is, or what an installed checkpoint could become."""
    if model.format == "gguf":
        header = gguf.read_model(model.path)
        return [_candidate(model.quant, model.size, str(model.path), header)]
    if model.format == "safetensors":
        config = model.path.parent / "config.json"
        try:
            return of_checkpoint(json.loads(config.read_text(encoding="utf-8")), model.size)
        except (OSError, ValueError, RecursionError) as error:
            raise BadModelFile(f"{config} cannot be read: {error}") from None
    raise BadModelFile(f"the memory that {model.name} needs cannot be estimated: it is an ONNX model")


def of_checkpoint(config: Any, size: int) -> list[Candidate]:
    """What a checkpoint of `size` bytes would need as each of CHECKPOINT_TYPES. Raises BadModelFile."""
    if not isinstance(config, dict):
        raise BadModelFile("config.json is no object")
    inner: dict[str, Any] = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    dtype = str(config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or "bfloat16")
    parameters = size // (4 if dtype == "float32" else 2)
    trained = inner.get("max_position_embeddings", 0)
    trained = trained if isinstance(trained, int) and trained > 0 else fit.DEFAULT_CONTEXT

    def need_as(name: str) -> fit.NeedAt:
        repacked = hardware.repacked_types()
        return lambda context, k, v: fit.estimate_checkpoint(
            config, parameters, name, context, k, v, repacked_types=repacked
        )

    return [
        Candidate(name, need_as(name)(512, "f16", "f16").weights, "", need_as(name), trained)
        for name in CHECKPOINT_TYPES
    ]


def choose(
    listing: Listing, variants: list[Variant], gpu_free: int = 0, notify: Notify = lambda _: None
) -> tuple[Variant, str]:
    """The one that is here already, else the best that this machine can hold; and the rule in words."""
    here = {
        m.path.relative_to(m.folder).as_posix() for m in hub_models(CachedRepository(hub_cache(), listing.repository))
    }
    if known := [v for v in variants if v.path in here]:
        variant, _ = best(known, lambda _: True)
        return variant, f"{_title(variant)}, which is here already"
    if variants[0].format != "gguf":
        return variants[0], f"{_title(variants[0])}, the first of {len(variants)}"
    # A share of all there is, not of what happens to be free: the choice is the same tomorrow.
    total = hardware.memory().total
    budget = hardware.Memory(total, int(total * SHARE))

    def fits_here(candidate: Candidate) -> bool:
        need = candidate.need(min(candidate.trained, fit.DEFAULT_CONTEXT), "f16", "f16")
        return fit.verdict(need, budget, fit.layers_on_gpu(need, gpu_free)) is fit.Verdict.FITS

    try:
        fits = {c.path: fits_here(c) for c in of_listing(listing, variants, notify)}
    except BadModelFile:  # the one whose header was read is no sound model; that need not be true of the others
        fits = {v.path: fits_by_size(v.size, budget) for v in variants}
    variant, found = best(variants, lambda v: fits.get(v.path, False))
    gpu = f" and {gpu_free / 1e9:.1f} GB free on the GPU" if gpu_free else ""
    rule = f"{SHARE:.0%} of this machine's {total / 1e9:.1f} GB{gpu} with a context of {fit.DEFAULT_CONTEXT}"
    if not found:
        return variant, f"{_title(variant)}, the smallest of {len(variants)}: none fits into {rule}"
    return variant, f"{_title(variant)}, the best of {len(variants)} up to Q8_0 that fits into {rule}"


def _title(variant: Variant) -> str:
    return variant.quant or variant.path


def warning(listing: Listing, variant: Variant, gpu_free: int, notify: Notify = lambda _: None) -> str:
    """Why `run` would refuse a GGUF of this repository here, by the same numbers, with the way out; or ""."""
    if variant.format != "gguf":
        return ""
    try:
        (candidate,) = of_listing(listing, [variant], notify)
        context = min(candidate.trained, fit.DEFAULT_CONTEXT)
        on_gpu = fit.layers_on_gpu(candidate.need(context, "f16", "f16"), gpu_free)
        fit.require_memory(variant.path, candidate.need, context, ("f16", "f16"), on_gpu, hardware.memory())
    except DownloadError:
        return ""  # the download itself will tell
    except (BadModelFile, OutOfMemory) as error:
        return f"this will not run here: {error} ({error.hint})"
    return ""


def fits_by_size(size: int, memory: hardware.Memory) -> bool:
    """Whether a file of `size` bytes runs here, guessed: a tenth more than the weights for everything else."""
    return size * 1.1 + (256 << 20) <= memory.available


def _of_ggufs(listing: Listing, ggufs: list[Variant], notify: Notify) -> list[Candidate]:
    # Whichever is read, the others differ in nothing but the size of their tensors: the fewest shards make it easiest.
    sample = min(ggufs, key=lambda v: (len(v.files), v.size))
    header = remote_header(listing, sample, notify)
    sampled = _candidate(sample.quant, sample.size, sample.path, header)
    overhead = sample.size - sum(tensor.size for tensor in header.tensors)
    found = [sampled]
    for variant in ggufs:
        if variant is not sample:
            need = _as_other(sampled.need, header, variant.quant, variant.size - overhead)
            found.append(Candidate(variant.quant, variant.size, variant.path, need, sampled.trained))
    return sorted(found, key=lambda c: (c.size, c.path))


def remote_header(listing: Listing, variant: Variant, notify: Notify = lambda _: None) -> Header:
    """The header of a GGUF on the Hub, with the tensors of all its shards; no more of it is fetched."""

    def read(file: RepoFile) -> Header:
        data = RemoteBytes(listing.repository, listing.commit, file, notify)
        if file is not variant.files[0]:
            data.block = 1 << 16  # a later shard's header is short: it names its tensors and no vocabulary
        return gguf.read_remote_header(data, file.path)

    with ThreadPoolExecutor(8) as pool:
        return gguf.merged(list(pool.map(read, variant.files)))


def _as_other(need_at: fit.NeedAt, header: Header, quant: str, weights: int) -> fit.NeedAt:
    """What the model of a header needs in another quantization, of which the listing tells no more than the size."""
    embedding = sum(t.parameters for t in header.tensors if t.name == "token_embd.weight")
    repacked = 0
    for name in hardware.repacked_types():
        if quant.removeprefix("UD-").startswith(name):
            mixed = 0.73 if name.endswith("_K") and not quant.endswith("_S") else 1.0  # some tensors get more bits
            repacked = int(max(0, weights) * mixed * (1 - embedding / max(1, header.parameters)))

    def need(context: int, type_k: str, type_v: str) -> fit.Need:
        one = need_at(context, type_k, type_v)
        active = int(one.active * weights / max(1, one.weights))
        return replace(one, weights=weights, active=active, repacked=repacked)

    return need


def _candidate(quant: str, size: int, path: str, header: Header) -> Candidate:
    trained = int(header.get("context_length", fit.DEFAULT_CONTEXT))
    repacked = hardware.repacked_types()
    return Candidate(
        quant, size, path, lambda context, k, v: fit.estimate(header, context, k, v, repacked_types=repacked), trained
    )


def _json(data: RemoteBytes, file: RepoFile) -> Any:
    data.grow(file.size)
    try:
        return json.loads(data.prefix)
    except (ValueError, RecursionError):
        raise BadModelFile(f"{file.path} is not JSON") from None
