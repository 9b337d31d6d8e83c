"""`localllm run`: one prompt, one answer; without a prompt, on a terminal, the chat."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from localllm.commands._asking import Asking, advice
from localllm.commands._form import Form
from localllm.commands._input import read_whole
from localllm.commands._options import (
    EngineOption,
    ModelOption,
    QuietOption,
    SystemOption,
    VerboseOption,
    YesOption,
    with_options,
)
from localllm.commands._output import Output
from localllm.errors import UsageError
from localllm.settings import build
from localllm.signals import deadline
from localllm.types import CacheOptions, EngineOptions, Guessing, Limits, Reasoning, Request, Sampling


@with_options(Asking, Output, Form, Limits, Sampling, Reasoning, EngineOptions, Guessing, CacheOptions)
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL PROMPT", help="The first word is the model if it is one; the rest is the prompt."
        ),
    ] = None,
    model: ModelOption = None,
    system: SystemOption = None,
    engine: EngineOption = "auto",
    yes: YesOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    *,
    given: dict[str, Any],
) -> None:
    """Answer one prompt and exit; standard input is appended to it. Without a prompt, open the chat."""
    from localllm.ui.progress import be_quiet

    if quiet:
        be_quiet()
    with deadline(given.get("timeout")):
        _run(words or [], model, system, engine, yes=yes, verbose=verbose, given=given)


def _run(
    words: list[str],
    model: str | None,
    system: str | None,
    engine: str,
    *,
    yes: bool,
    verbose: bool,
    given: dict[str, Any],
) -> None:
    from localllm.commands._model import split_words

    name, prompt = split_words(words, model)
    if not sys.stdin.isatty():
        piped = read_whole(sys.stdin.buffer, "standard input", "utf-8-sig")
        prompt = "\n\n".join(part for part in (prompt, piped) if part.strip())
    elif not prompt and not given.get("file") and sys.stdout.isatty():
        from localllm.commands.chat import open_chat

        open_chat(name, system, engine, yes=yes, verbose=verbose, given=given)
        return
    if not prompt.strip() and not given.get("file"):
        raise UsageError("there is no prompt", "write it after the command, or pipe it in")
    answer(name, prompt, system, engine, yes=yes, verbose=verbose, given=given)


def answer(
    name: str | None, prompt: str, system: str | None, engine: str, *, yes: bool, verbose: bool, given: dict[str, Any]
) -> None:
    """Open the model, write the answer to stdout, close the model."""
    from localllm.commands._output import give_answers
    from localllm.commands._session import open_session
    from localllm.ui.progress import say

    started = time.perf_counter()
    output, constraint = build(Output, given), build(Form, given).checked()
    if output.no_template:
        given = {**given, "template": "none"}
    asking = build(Asking, given)
    named = asking.load()
    told = asking.messages(named, system, prompt)
    session = open_session(name, engine, yes=yes, verbose=verbose, given=given, single=True, advice=advice(named))
    request = Request(told, session.sampling, session.limits, constraint, reasoning=session.reasoning)
    try:
        last = give_answers(session, request, output, engine, started)
        context = session.engine.context
    finally:
        session.engine.close()
    if last.finish == "length" and last.usage and last.usage.completion_tokens != session.limits.max_tokens:
        say(f"localllm: the answer was cut: the context of {context} tokens is full (--on-overflow shift, or -c)")
    elif last.finish == "length" and output.style == "text" and sys.stdout.isatty() and sys.stderr.isatty():
        say("(cut: the limit of tokens was reached)", dim=True)
    if verbose and last.usage is not None:
        session.report(last.usage)
