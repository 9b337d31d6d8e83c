"""From what the user wrote to a model file, fetching it where he agrees."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound, Unreachable, UsageError
from localllm.hub import catalogue, store
from localllm.hub.catalogue import DEFAULT_EMBEDDER, DEFAULT_MODEL, Entry, HubSource
from localllm.hub.reference import HubReference, ModelName, Reference, looks_like_model, parse

if TYPE_CHECKING:
    from localllm.hub.pull import Plan
    from localllm.hub.remote import Listing
    from localllm.ui.progress import Style


@dataclass(frozen=True, slots=True)
class Model:
    """A model file with the name it was asked for by, what its catalogue entry advises for sampling, and what `tune`
    found for the engine."""

    name: str
    path: Path
    sampling: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


def split_words(words: list[str], model: str | None) -> tuple[str | None, str]:
    """The model and the prompt that the words of a command line mean. Raises ModelNotFound."""
    name, rest = split_model(words, model)
    return name, " ".join(rest)


def split_model(words: list[str], model: str | None) -> tuple[str | None, list[str]]:
    """The model that the words of a command line mean, and the other words. Raises ModelNotFound."""
    if model is not None or not words:
        return model, words
    first = words[0]
    try:
        known = store.is_known(parse(first))
    except UsageError:
        known = False
    if known:
        return first, words[1:]
    if looks_like_model(first):
        if first.lower().endswith((".gguf", ".onnx")) and first.count("/") != 2:
            raise ModelNotFound(f"no such file: {first}", "localllm list shows what is here")
        raise ModelNotFound(
            f"{first!r} looks like a model, and there is none of that name here",
            f"-m {first} fetches it if it is on the Hub; -m MODEL before a prompt makes every word prompt",
        )
    return None, words


def resolve(name: str | None, *, yes: bool) -> Model:
    """The file of a model, or of the default one; asks before it fetches. Raises ModelNotFound, DownloadError."""
    reference = store.dereference(parse(name)) if name else DEFAULT_MODEL
    entry = catalogue.find(reference) if isinstance(reference, ModelName) else None
    found = store.find(reference)
    path = found.path if found else _fetch(reference, entry, yes=yes)
    return Model(
        entry.name if entry else str(reference), path, entry.sampling if entry else {}, found.options if found else {}
    )


def _fetch(reference: Reference, entry: Entry | None, *, yes: bool) -> Path:
    from localllm.ui.progress import say

    if entry is not None:
        say(f"{entry.title} ({entry.name}) is not here yet: {describe_entry(entry)}.")
        agree(entry.name, yes)
        return fetch_entry(entry)
    assert isinstance(reference, HubReference)
    plan = make_plan(reference)
    if plan.variant.format == "safetensors":
        raise BadModelFile(
            f"{reference} is a checkpoint, and GGUF and ONNX models run",
            f"localllm convert {reference.repository} makes one; localllm search {reference.repo} looks for one",
        )
    say(f"{reference} is not here yet: {describe_plan(plan)}.")
    agree(str(reference), yes)
    return fetch_plan(plan)


def make_plan(reference: HubReference, style: Style = "auto") -> Plan:
    """What a reference to the Hub means; the rule by which a quantization was chosen is told on stderr."""
    from localllm.hub import preview, pull
    from localllm.ui.progress import say

    notify = (lambda _: None) if style == "quiet" else say
    plan = pull.plan(reference, lambda listing, found: preview.choose(listing, found, gpu_free(), notify), notify)
    if plan.reason and style == "auto":
        say(f"{reference.repository}: {plan.reason}")
    return plan


def gpu_free() -> int:
    """Bytes that are free on all GPUs together."""
    from localllm.engines import native

    return sum(d.memory_free for d in native.devices() if d.kind in ("gpu", "igpu"))


def plan_of(reference: Reference) -> Plan:
    """What a reference to something that is not here would fetch from the Hub. Raises ModelNotFound."""
    if isinstance(reference, HubReference):
        return make_plan(reference)
    from localllm.hub import pull
    from localllm.ui.progress import say

    return pull.plan_source(_hub_source(reference), say)


def listing_of(reference: Reference) -> tuple[Listing, str, str]:
    """The repository that holds a model which is not here, with the quantization and the file that are meant."""
    from localllm.hub import remote
    from localllm.ui.progress import say
    from localllm.ui.units import size

    if isinstance(reference, HubReference):
        listing = remote.listing(reference.repository, reference.revision or "main", say)
        return listing, reference.quant, reference.file
    source = _hub_source(reference)
    try:
        return remote.listing(source.repository, source.revision, say), "", source.file
    except (Unreachable, ModelNotFound) as error:
        assert isinstance(reference, ModelName), "`_hub_source` has looked"
        entry = catalogue.get(reference)
        hint = f"the catalogue says it needs {size(entry.memory)}; localllm pull {entry.name} tries its other sources"
        raise type(error)(str(error), hint) from None


def _hub_source(reference: Reference) -> HubSource:
    assert isinstance(reference, ModelName), "a path is here, or an error"
    entry = catalogue.get(reference)
    for source in entry.sources:
        if isinstance(source, HubSource):
            return source
    raise ModelNotFound(f"{entry.name} is not on the Hub", f"localllm pull {entry.name} fetches it")


def fetch_plan(plan: Plan, style: Style = "auto") -> Path:
    """Fetch with progress shown."""
    from localllm.hub import pull
    from localllm.ui.progress import download_progress

    with download_progress(len(plan.files), plan.size, style) as report:
        return pull.fetch(plan, report)


def fetch_entry(entry: Entry, style: Style = "auto") -> Path:
    """Fetch a catalogue entry from the first of its sources that has it, with progress shown."""
    from localllm.hub import pull
    from localllm.ui.progress import download_progress, say

    with download_progress(1, max(s.download_size for s in entry.sources), style) as report:
        return pull.fetch_entry(
            entry, report, lambda error: None if style == "quiet" else say(f"{error}; trying the next source")
        )


def describe_entry(entry: Entry) -> str:
    from localllm.ui.units import size

    largest = max((s.download_size for s in entry.sources), default=0)
    return f"{size(largest) if largest else 'size unknown'}, licence {entry.licence}, by {entry.publisher}"


def describe_plan(plan: Plan) -> str:
    from localllm.ui.units import size

    variant, listing = plan.variant, plan.listing
    extra = plan.size - variant.size
    beside = f" and {size(extra)} beside it" if extra else ""
    shards = f" in {len(variant.files)} files" if len(variant.files) > 1 else ""
    return f"{variant.path}, {size(variant.size)}{shards}{beside}, licence {listing.licence or 'not stated'}"


def agree(name: str, yes: bool) -> None:
    if yes:
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        if not ask("Fetch it? [Y/n] ", default=True):
            raise LocalLLMError(f"{name} was not fetched", "--yes fetches without asking")
    elif name not in (str(DEFAULT_MODEL), str(DEFAULT_EMBEDDER)):
        # Nobody is there to ask: only the default models may come by themselves.
        raise ModelNotFound(f"{name} is not on this machine", "--yes fetches it, and so does localllm pull")


def ask(question: str, *, default: bool) -> bool:
    """Ask on the terminal; Ctrl-D is no."""
    sys.stderr.write(question)
    sys.stderr.flush()
    line = sys.stdin.readline()
    answer = line.strip().lower()
    return answer in ("y", "yes") or (default and bool(line) and not answer)
