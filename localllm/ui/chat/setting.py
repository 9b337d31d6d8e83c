"""Commands on the model, the system prompt and the options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from localllm.errors import OutOfMemory, UsageError
from localllm.fields import Option, options
from localllm.types import ChatOptions, EngineOptions, Limits, Reasoning, Sampling
from localllm.ui.chat.command import Candidates, Command
from localllm.ui.chat.state import Chat, Opened

_PARTS: dict[type, str] = {
    Sampling: "Sampling",
    Limits: "Length of the answer",
    Reasoning: "Thinking",
    EngineOptions: "Engine (a change loads the model again)",
    ChatOptions: "This chat",
}
_ASSIGNMENT = re.compile(r"([^\s=]+)(?:=|\s+)(.*)", re.DOTALL)  # the value may hold a = itself
_LEVELS = ("minimal", "low", "medium", "high")


def _model(chat: Chat, name: str) -> str:
    if not name:
        return f"{chat.conversation.model} ({chat.engine_kind}, context {chat.context})"
    with chat.aside():  # it may ask whether to fetch the model
        reopen(chat, name, chat.given)
    return f"Now {chat.conversation.model}; the conversation goes on."


def reopen(chat: Chat, name: str, given: dict[str, Any]) -> None:
    """Open a model in the place of the present one, which stays where that fails.

    Where there is no memory for both, the present one is closed first, and opened again after a failure.
    """
    conversation, before = chat.conversation, chat.conversation.model
    conversation.leave()
    try:
        opened = chat.open_model(name, given)
        conversation.engine.close()
    except OutOfMemory:
        conversation.engine.close()
        try:
            opened = chat.open_model(name, given)
        except BaseException:
            _take(chat, chat.open_model(before, chat.given))
            raise
    _take(chat, opened)
    chat.given = given


def _take(chat: Chat, opened: Opened) -> None:
    """The same model, loaded again, keeps the conversation's options, which may be those of a resumed one."""
    conversation = chat.conversation
    chat.options, chat.path = opened.options, opened.path
    if opened.name != conversation.model:
        conversation.sampling, conversation.limits = opened.sampling, opened.limits
        conversation.reasoning = opened.reasoning
    conversation.switch(opened.engine, opened.name)


def _system(chat: Chat, text: str) -> str:
    if text:
        chat.conversation.instruct(None if text == "none" else text)
    return f"System prompt: {chat.conversation.system or '(none)'}"


def _set(chat: Chat, text: str) -> str:
    match = _ASSIGNMENT.match(text)
    if match is None or not match[2].strip():
        raise UsageError("/set NAME VALUE, for example /set temperature 0.2 (/show lists the names)")
    name, value = match.groups()
    part, option = _find(name)
    parsed = _default(option) if value.strip() == "none" else _read(option, value)
    given = {**chat.given, option.name: parsed}
    if part is EngineOptions:
        reopen(chat, chat.conversation.model, given)
    else:
        _put(chat, part, replace(_values(chat, part), **{option.name: parsed}))
        chat.given = given
    return f"{option.name} = {_shown(getattr(_values(chat, part), option.name))}"


def _show(chat: Chat, name: str) -> str:
    if name:
        part, option = _find(name)
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        return f"{option.name} = {_shown(getattr(_values(chat, part), option.name))}\n{option.help}{choices}"
    width = max(len(o.name) for _, o in settable())
    lines = []
    for part, title in _PARTS.items():
        lines += ["", title]
        lines += [f"  {n:<{width}}  {_shown(getattr(_values(chat, part), n))}" for n in options(part)]
    return "\n".join(lines[1:])


def _think(chat: Chat, word: str) -> str:
    reasoning = chat.conversation.reasoning
    if word in ("show", "hide"):
        chat.display = replace(chat.display, show_thinking=word == "show")
    elif word in ("on", "off"):
        chat.conversation.reasoning = replace(reasoning, think=word == "on")
        chat.given = {**chat.given, "think": word == "on"}
    elif word in _LEVELS:
        chat.conversation.reasoning = replace(reasoning, effort=word)
        chat.given = {**chat.given, "effort": word}
    elif word:
        raise UsageError(f"/think {word}: show, hide, on, off, {', '.join(_LEVELS)}")
    reasoning = chat.conversation.reasoning
    wanted = {None: "as the model's template has it", True: "on", False: "off"}[reasoning.think]
    level = f", {reasoning.effort}" if reasoning.effort else ""
    return f"Thinking: {wanted}{level}; {'shown' if chat.display.show_thinking else 'hidden'}."


def _multiline(chat: Chat, _: str) -> str:
    chat.display = replace(chat.display, multiline=not chat.display.multiline)
    if chat.display.multiline:
        return "Enter begins a new line, Alt-Enter sends; /multiline ends this."
    return "Enter sends, Alt-Enter begins a new line."


def settable() -> Iterator[tuple[type, Option]]:
    """Every option that /set knows, with its class."""
    return ((part, option) for part in _PARTS for option in options(part).values())


def _find(name: str) -> tuple[type, Option]:
    wanted = name.lstrip("-").replace("-", "_").lower()
    for part, option in settable():
        if option.name == wanted:
            return part, option
    from difflib import get_close_matches

    near = get_close_matches(wanted, [option.name for _, option in settable()], 1)
    raise UsageError(f"there is no option {name!r}", f"{near[0]}? /show lists them" if near else "/show lists them")


def _values(chat: Chat, part: type) -> Any:
    conversation = chat.conversation
    return {
        Sampling: conversation.sampling,
        Limits: conversation.limits,
        Reasoning: conversation.reasoning,
        EngineOptions: chat.options,
        ChatOptions: chat.display,
    }[part]


def _put(chat: Chat, part: type, values: Any) -> None:
    if part is Sampling:
        chat.conversation.sampling = values
    elif part is Limits:
        chat.conversation.limits = values
    elif part is Reasoning:
        chat.conversation.reasoning = values
    else:
        chat.display = values


def _read(option: Option, value: str) -> Any:
    parsed = option.parse(value.strip())
    option.check(parsed)
    return parsed


def _default(option: Option) -> Any:
    return option.default


def _shown(value: Any) -> str:
    if value in (None, ()):
        return "(not set)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def _option_words(_: Chat, text: str) -> Candidates:
    """Names of options, and then their values."""
    match = _ASSIGNMENT.match(text)
    if match is None:
        return [(option.name, option.help) for _, option in settable()]
    try:
        option = _find(match[1])[1]
    except UsageError:
        return []
    words = option.choices or (("yes", "no") if option.type is bool else ())
    return [*((word, "") for word in words), ("none", "its default")]


def _option_names(_: Chat, text: str) -> Candidates:
    return [(option.name, option.help) for _, option in settable()]


def _models(_: Chat, __: str) -> Candidates:
    from localllm.hub import catalogue, store
    from localllm.ui.units import size

    here = {model.name: f"{model.quant} {size(model.size)}" for model in store.everything()}
    known = {str(entry.name): "not here yet" for entry in catalogue.everything()}
    return [*here.items(), *((name, what) for name, what in known.items() if name not in here)]


def _think_words(_: Chat, __: str) -> Candidates:
    levels = ((level, "how much to think, where the template asks") for level in _LEVELS)
    shown = (("show", "thinking is shown"), ("hide", "thinking is a line"))
    return [*shown, ("on", "think"), ("off", "do not think"), *levels]


COMMANDS = [
    Command("/model [NAME]", "go on with another model", _model, _models),
    Command("/system [TEXT|none]", "show, set or remove the system prompt", _system),
    Command("/set NAME VALUE", "set an option (none: its default)", _set, _option_words),
    Command("/show [NAME]", "show the options, or one with what it does", _show, _option_names),
    Command("/think [WORD]", "show or hide thinking; on, off, or a level", _think, _think_words),
    Command("/multiline", "have Enter begin a new line, or send again", _multiline),
]
