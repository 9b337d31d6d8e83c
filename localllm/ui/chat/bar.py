"""The line at the bottom: model, engine, how full the context is, tokens a second."""

from __future__ import annotations

from prompt_toolkit.formatted_text import StyleAndTextTuples

from localllm.ui.chat.facts import meter, percent
from localllm.ui.chat.state import Chat
from localllm.ui.render import visible

_NEARLY_FULL = 80  # per cent
_BAR = 10


def bottom_bar(chat: Chat) -> StyleAndTextTuples:
    """As much of it as the terminal is wide for; the context comes first."""
    share = percent(chat.used, chat.context)
    bar = meter(chat.used, chat.context, _BAR).ljust(_BAR, "░")
    style = "class:full" if share >= _NEARLY_FULL else ""
    engine = chat.engine_kind
    speed = ""
    if chat.usage is not None and chat.usage.decode_seconds > 0:
        speed = f"{chat.usage.completion_tokens / chat.usage.decode_seconds:.0f} tokens/s"
    waiting = f"{len(chat.pending)} file{'s' * (len(chat.pending) != 1)} attached" if chat.pending else ""
    marks = [
        waiting,
        "multiline" if chat.display.multiline else "",
        "thinking shown" if chat.display.show_thinking else "",
    ]
    context = f"context {bar} {chat.used}/{chat.context} {share} %"
    room = chat.console.width - len(context) - 2
    parts: list[tuple[str, str]] = []
    name = visible(chat.conversation.model)
    name = name if len(name) <= 32 else "…" + name[-31:]
    for text in (name, engine, speed, *filter(None, marks)):
        if text and len(text) + 3 <= room:
            room -= len(text) + 3
            parts.append(("", text))
    parts.insert(min(2, len(parts)), (style, context))
    joined: StyleAndTextTuples = [("", " ")]
    for index, part in enumerate(parts):
        joined += [("", " │ "), part] if index else [part]
    return joined
