"""Progress of downloads and conversions: bars on a terminal, plain lines elsewhere, JSON events, or silence."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from localllm.ui.render import dimming, visible
from localllm.ui.units import size

if TYPE_CHECKING:
    from localllm.hub.download import Event, Report

Style = Literal["auto", "quiet", "json"]

_PLAIN_STEPS = 4
_JSON_SECONDS = 0.2  # between two events of a file


def be_quiet() -> None:
    """From here on nothing is written to stderr but errors: what `--quiet` and LOCALLLM_QUIET ask for."""
    os.environ["LOCALLLM_QUIET"] = "1"


def is_quiet() -> bool:
    return os.environ.get("LOCALLLM_QUIET", "").lower() not in ("", "0", "no", "off", "false")


def say(line: str, *, error: bool = False, dim: bool = False) -> None:
    """A line for the user, on stderr; only one about an `error` is written where it is to be quiet."""
    if error or not is_quiet():
        before, after = dimming() if dim and sys.stderr.isatty() else ("", "")
        sys.stderr.write(f"{before}{visible(line)}{after}\n")
        sys.stderr.flush()


def _draws() -> bool:
    """Whether stderr is a terminal on which bars can move."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def download_progress(files: int, total: int, style: Style = "auto", *, plain: bool = True) -> Iterator[Report]:
    """A function that hears of `files` files of `total` bytes together; `plain` is whether lines are written elsewhere.

    On a terminal it has a line a file, and a line for all of several.
    """
    style = "quiet" if style == "auto" and is_quiet() else style
    if style == "quiet" or not (plain or style == "json" or _draws()):
        yield lambda _: None
    elif style == "json":
        yield _events()
    elif _draws():
        with _bars(files, total) as report:
            yield report
    else:
        yield _lines()


@contextmanager
def work_progress(name: str, style: Style = "auto", *, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, silence elsewhere: a function that hears what is done and what is to do.

    Without a `unit` these are bytes.
    """
    if style != "auto" or is_quiet() or not _draws():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = [MofNCompleteColumn(), TextColumn(unit)] if unit else [DownloadColumn()]
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(None),
        *amount,
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True, transient=True) as progress:
        task = progress.add_task(visible(name), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def rows_progress(total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, silence elsewhere: a function that hears how many rows are done, and of how many tokens."""
    if is_quiet() or not sys.stderr.isatty():
        yield lambda _rows, _tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TextColumn("{task.fields[speed]:.0f} tokens/s"),
        TimeRemainingColumn(compact=True),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), expand=True, transient=True) as progress:
        task = progress.add_task("", total=total, speed=0.0)
        yield lambda rows, tokens: progress.update(
            task, completed=rows, speed=tokens / max(1e-3, time.monotonic() - started)
        )


def _events() -> Report:
    told: dict[str, float] = {}

    def report(event: Event) -> None:
        now = time.monotonic()
        if event.note:
            emit("note", file=event.file, note=event.note)
        elif event.done == event.total or now - told.get(event.file, 0.0) > _JSON_SECONDS:
            told[event.file] = now
            emit("progress", file=event.file, done=event.done, total=event.total)

    return report


def emit(event: str, **values: object) -> None:
    """One JSON object a line on stdout."""
    sys.stdout.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _lines() -> Report:
    shown: dict[str, int] = {}

    def report(event: Event) -> None:
        if event.note:
            say(event.note)
            return
        step = event.done * _PLAIN_STEPS // event.total if event.total else 0
        if step > shown.get(event.file, 0):
            shown[event.file] = step
            say(f"{event.file}: {size(event.done)} of {size(event.total)}")

    return report


@contextmanager
def _bars(files: int, total: int) -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    console = Console(stderr=True)
    name = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (
        name,
        BarColumn(max(6, min(24, console.width - 68))),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        tasks: dict[str, TaskID] = {}
        done: dict[str, int] = {}
        overall = progress.add_task("total", total=total, visible=files > 1)

        def report(event: Event) -> None:
            if event.note:
                progress.console.print(visible(event.note), markup=False, highlight=False)
                return
            if event.file not in tasks:
                # What an earlier process fetched counts, but not into the speed.
                label = visible(event.file.rpartition("/")[2])
                tasks[event.file] = progress.add_task(label, total=event.total, completed=event.done)
            done[event.file] = event.done
            progress.update(tasks[event.file], completed=event.done)
            progress.update(overall, completed=min(total, sum(done.values())))

        yield report
