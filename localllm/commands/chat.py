"""`localllm chat`: the conversation at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from localllm.commands._asking import Asking, advice
from localllm.commands._options import (
    EngineOption,
    ModelOption,
    SystemOption,
    VerboseOption,
    YesOption,
    with_options,
)
from localllm.errors import ModelNotFound, UsageError
from localllm.types import CacheOptions, ChatOptions, EngineOptions, Guessing, Keeping, Limits, Reasoning, Sampling

if TYPE_CHECKING:
    from localllm.commands._session import Session

Options = TypeVar("Options")


@with_options(
    Asking, ChatOptions, Keeping, Reasoning, Limits, Sampling, EngineOptions, Guessing, CacheOptions, without=("file",)
)
def chat(
    name: Annotated[
        str | None,
        typer.Argument(metavar="MODEL|ID", help="The model, the default one without it; with --resume a conversation."),
    ] = None,
    model: ModelOption = None,
    system: SystemOption = None,
    engine: EngineOption = "auto",
    last: Annotated[bool, typer.Option("--continue", help="Go on with the last conversation.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with conversation ID, or choose one.")] = False,
    yes: YesOption = False,
    verbose: VerboseOption = False,
    *,
    given: dict[str, Any],
) -> None:
    """Talk with a model at the terminal."""
    if last and resume:
        raise UsageError("--continue and --resume exclude each other")
    prefix = name or "" if resume else None
    named = model if resume else model or name
    open_chat(named, system, engine, yes=yes, verbose=verbose, given=given, prefix=prefix, last=last)


def open_chat(
    name: str | None,
    system: str | None,
    engine: str,
    *,
    yes: bool,
    verbose: bool,
    given: dict[str, Any],
    prefix: str | None = None,
    last: bool = False,
) -> None:
    """Open the model and hand it to the chat's loop; `prefix` and `last` are `_history.resume`'s."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the chat needs a terminal", "`localllm run` answers a prompt from a script or a pipe")
    from localllm.commands._history import is_kept, open_or_none, recorder, resume
    from localllm.commands._session import open_session
    from localllm.conversation import Conversation
    from localllm.hub.store import data_directory
    from localllm.settings import build, load_settings
    from localllm.signals import end_on_hangup
    from localllm.ui.chat.loop import run_chat
    from localllm.ui.chat.state import Chat

    end_on_hangup()
    settings = load_settings()
    history = open_or_none({**settings.given, **given})
    private = not is_kept({**settings.given, **given})
    if private:  # a prompt that is kept evaluated could be read out of its file
        given = {**given, "no_cache": True}
    resumed = resume(history, prefix, last=last)
    same_model = resumed is not None and name in (None, resumed.record.model)
    name = name or (resumed.record.model if resumed else None)
    asking = build(Asking, given)
    prompt = asking.load()
    system = system or asking.for_chat(prompt)

    def open_model(name: str | None, given: Mapping[str, Any]) -> Session:
        return open_session(name, engine, yes=yes, verbose=verbose, given=given, advice=advice(prompt))

    try:
        session = open_model(name, given)
    except ModelNotFound as error:
        if resumed is None or not same_model:
            raise
        again = "--continue" if last else f"--resume {resumed.record.id[:6]}"
        raise ModelNotFound(str(error), f"localllm chat {again} -m MODEL goes on with another one") from None

    def settled(today: Options) -> Options:
        return resumed.settle(today, given) if resumed and same_model else today

    conversation = Conversation(
        session.engine,
        settled(session.sampling),
        settled(session.limits),
        system or (resumed.record.system if resumed else None),
        reasoning=settled(session.reasoning),
        model=session.name,
        recorder=recorder(history, resumed),
        tree=resumed.tree if resumed else None,
    )
    display = build(ChatOptions, settings.given, given)
    chat = Chat(conversation, display, session.options, given, open_model, session.path, engine, history)
    try:
        typed = None if private else data_directory() / "chat-history"
        run_chat(chat, typed, resumed.record.title if resumed else None)
    finally:
        try:
            conversation.leave()
        finally:
            conversation.engine.close()
        if history is not None:
            history.close()
