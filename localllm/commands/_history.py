"""Where the history lies, whether it is kept, and which conversation is meant."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from localllm.errors import HistoryError, UsageError
from localllm.history import History, Record, Recorder, open_history
from localllm.hub.store import data_directory
from localllm.settings import build
from localllm.tree import Tree
from localllm.types import Keeping
from localllm.ui.progress import say

_Options = TypeVar("_Options")


@dataclass(frozen=True, slots=True)
class Resumed:
    """A conversation that is taken up again."""

    record: Record
    tree: Tree

    def settle(self, today: _Options, given: Mapping[str, Any]) -> _Options:
        """The options as they were, but for what is now given; `today`'s where they make no sense (any more)."""
        kept = {k: tuple(v) if isinstance(v, list) else v for k, v in self.record.settings.items()}
        try:
            return build(type(today), kept, given)
        except (UsageError, TypeError):
            say("the options of that conversation cannot be read; going on with today's")
            return today


def history_path() -> Path:
    return data_directory() / "history.db"


def is_kept(given: Mapping[str, Any]) -> bool:
    """Whether conversations are to be kept, by the options and the environment."""
    refused = os.environ.get("LOCALLLM_NO_HISTORY", "").lower() not in ("", "0", "no", "off", "false")
    return build(Keeping, given).history and not refused


def open_or_none(given: Mapping[str, Any]) -> History | None:
    """The history; None where none is to be kept or none can be, which is then said."""
    if not is_kept(given):
        return None
    try:
        return open_history(history_path())
    except HistoryError as error:
        say(f"localllm: {error}; nothing of this chat is kept", error=True)
        return None


def resume(history: History | None, prefix: str | None, *, last: bool) -> Resumed | None:
    """The last conversation, the one whose id begins so, or one that the user picks; None for a new one.

    One of which all was taken back is the last only where there is no other. Raises HistoryError where there is none.
    """
    if not last and prefix is None:
        return None
    if history is None:
        raise HistoryError("without a history no conversation can be taken up again", "leave out --no-history")
    if prefix:
        record = history.find(prefix)
    elif records := history.records():
        going = next((record for record in records if record.leaf is not None), records[0])
        record = going if last else pick(records)
    else:
        raise HistoryError("there is no conversation yet", "localllm chat begins one")
    return Resumed(record, history.tree(record))


def recorder(history: History | None, resumed: Resumed | None) -> Recorder | None:
    if history is None:
        return None
    return Recorder(history, resumed.record, resumed.tree) if resumed else Recorder(history)


def pick(records: list[Record]) -> Record:
    """Have the user choose. Raises UsageError where he does not."""
    from localllm.ui.chat.picker import pick as choose

    record = choose(records)
    if record is None:
        raise UsageError("no conversation was chosen", "localllm history list has their ids")
    return record
