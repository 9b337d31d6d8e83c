"""Commands that tell what the conversation costs."""

from __future__ import annotations

from localllm.errors import UsageError
from localllm.types import Message, Request
from localllm.ui.chat.command import Command
from localllm.ui.chat.state import Chat

_BAR = 30  # columns of a full bar


def _context(chat: Chat, _: str) -> str:
    report = chat.conversation.context_report()
    rows = [
        ("system", report.system),
        ("summary", report.summary),
        ("attachments", report.attachments),
        ("history", report.history),
        ("free", max(0, report.free)),
    ]
    lines = [f"{report.used} of {report.size} tokens, {percent(report.used, report.size)} %"]
    lines += [f"  {name:<12}{count:>8}  {meter(count, report.size, _BAR)}" for name, count in rows if count]
    summary, _nodes = chat.conversation.tree.told()
    return "\n".join([*lines, *(["", "Summary of what came before:", summary] if summary else [])])


def _tokens(chat: Chat, text: str) -> str:
    if text:
        return f"{_count(chat, text)} tokens"
    if chat.usage is None:
        raise UsageError("there is no answer yet", "/tokens TEXT counts a text")
    u = chat.usage
    return f"last answer: {u.completion_tokens} tokens, after {u.prompt_tokens} of prompt ({u.reused_tokens} reused)"


def _count(chat: Chat, text: str) -> int:
    """The tokens of a text, without those of the template around it."""
    engine = chat.conversation.engine
    bare, with_text = (engine.count(Request((Message("user", content),))) for content in (".", f".\n{text}"))
    return with_text - bare


def _stats(chat: Chat, _: str) -> str:
    t = chat.totals
    if not t.answers:
        raise UsageError("there is no answer yet", "ask something first")
    import psutil

    from localllm.ui.units import size

    rows = [
        ("answers", str(t.answers)),
        ("prompt", f"{t.prompt} tokens, {t.reused} of them reused, {rate(t.prompt - t.reused, t.prompt_seconds)}"),
        ("answered", f"{t.completion} tokens, {rate(t.completion, t.decode_seconds)}"),
        ("memory", size(psutil.Process().memory_info().rss)),
    ]
    if chat.usage is not None:
        last = chat.usage
        rows.insert(
            3,
            (
                "last answer",
                f"{last.completion_tokens} tokens, first after {last.prompt_seconds:.2f} s, "
                f"{rate(last.completion_tokens, last.decode_seconds)}",
            ),
        )
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def rate(tokens: int, seconds: float) -> str:
    return f"{tokens / max(seconds, 1e-9):.0f} tokens/s" if seconds > 0 else "0 tokens/s"


def percent(used: int, size: int) -> int:
    return min(999, round(100 * used / max(size, 1)))


def meter(used: int, size: int, width: int) -> str:
    """How full something is, as a bar; what is there at all shows at least a little."""
    full = min(width, round(width * used / max(size, 1)))
    return "█" * max(full, 1 if used else 0)


COMMANDS = [
    Command("/context", "what fills the context", _context),
    Command("/tokens [TEXT]", "the tokens of the last answer, or of TEXT", _tokens),
    Command("/stats", "tokens and speeds of this chat", _stats),
]
