"""`localllm explain`: what a model thought of every token of a text."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import typer

from localllm.commands._options import JsonOption, ModelOption, SystemOption, YesOption, with_options
from localllm.commands.tokenize import (
    ChatOption,
    FileOption,
    WordsArgument,
    conversation,
    read_text,
    require_chat,
)
from localllm.errors import UsageError
from localllm.settings import build, load_settings
from localllm.types import EngineOptions, Sampling

ATTENTION = "Attention"


@with_options(Sampling, EngineOptions)
def explain(
    words: WordsArgument = None,
    model: ModelOption = None,
    file: FileOption = None,
    chat: ChatOption = False,
    system: SystemOption = None,
    top: Annotated[int, typer.Option("--top", min=1, max=100, help="How many alternatives of each token.")] = 3,
    more: Annotated[
        int, typer.Option("--continue", min=0, metavar="N", help="Let the model add N tokens, and explain those too.")
    ] = 0,
    against: Annotated[
        str, typer.Option("--compare", metavar="MODEL2", help="Put a second model beside it; ≠ is where they part.")
    ] = "",
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Show which earlier tokens each token looks at.", rich_help_panel=ATTENTION),
    ] = False,
    layer: Annotated[
        int | None,
        typer.Option("--layer", min=0, help="One layer, from 0; all without it.", rich_help_panel=ATTENTION),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option("--head", min=0, help="One query head, from 0; all without it.", rich_help_panel=ATTENTION),
    ] = None,
    combine: Annotated[
        str,
        typer.Option("--combine", help="Several layers and heads as mean, max or rollout.", rich_help_panel=ATTENTION),
    ] = "mean",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write it as .html, .svg or .npz.", rich_help_panel=ATTENTION),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out's file.", rich_help_panel=ATTENTION)] = False,
    as_json: JsonOption = False,
    yes: YesOption = False,
    *,
    given: dict[str, Any],
) -> None:
    """Show how probable a model found each token of a text, what it would have said instead, and what it looked at."""
    from localllm.commands._attention import View, show_attention
    from localllm.commands._model import resolve, split_words
    from localllm.engines import open_text_model
    from localllm.jobs.explain import PRECISE, collect, explain
    from localllm.ui import heat

    view = View(layer, head, combine, out, force, as_json)
    if more and against:
        raise UsageError("--continue with --compare: one of them", "explain what the one added, then compare")
    if attention and (more or against):
        raise UsageError("--attention is of one text and one model", "leave --continue and --compare out")
    if not attention and view != View(as_json=as_json):
        raise UsageError("--layer, --head, --combine, --out and --force belong to --attention", "add --attention")
    view.check()
    if attention and given.get("flash_attention", "off") != "off":
        raise UsageError("flash attention has no weights to show", "leave --flash-attention out")
    require_chat(chat, system, "template" in given)
    name, text = split_words(words or [], model)
    text = read_text(text, file)
    settings = load_settings()
    found = resolve(name or settings.model, yes=yes)
    own = settings.of(found.name, name or settings.model)
    others = [resolve(against, yes=yes)] if against else []
    options = build(EngineOptions, found.options, PRECISE, own, given)
    sampling = build(Sampling, found.sampling, own, given)
    tokens = tokens_of(found.path, text, options.template if chat else None, system)
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(open_text_model(one.path, options))) for one in (found, *others)]
        stack.enter_context(opened[0].interruptible())
        if attention:
            show_attention(opened[0], tokens, found.name, view)
            return
        if others:
            opened[0].abort.followers.append(opened[1].abort)  # Ctrl-C ends whichever is at work
        steps = explain(opened[0], tokens, top=top, more=more, sampling=sampling)
        if not others:
            explained = collect(steps) if as_json else heat.stream(steps)
            if as_json:
                print(heat.to_json({"model": found.name, **heat.as_dict(explained)}))
            else:
                heat.show(explained)
            return
        from localllm.jobs.compare import compare

        told = compare(
            opened[0], opened[1], tokens,
            lambda: tokens_of(others[0].path, text, options.template if chat else None, system), top=top,
        )  # fmt: skip
    names = found.name, others[0].name
    if as_json:
        print(heat.to_json(heat.comparison_dict(told, names)))
    else:
        heat.show_comparison(told, names)


def tokens_of(path: Path, text: str, template: str | None, system: str | None) -> list[int]:
    """A text as the ids a model reads, put through a chat template where one is named."""
    from localllm.engines import open_tokenizer
    from localllm.ui.progress import say

    with closing(open_tokenizer(path, template or "none")) as prompter:
        if template is None:
            return list(prompter.vocabulary.tokenize(text, begin=True))
        for notice in prompter.notices:
            say(f"localllm: {notice}")
        return list(prompter.tokens(conversation(text, system)))
