"""A conversation as a document: Markdown to read, JSON with every branch, a line of messages for other programs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from localllm.errors import UsageError
from localllm.history import Record
from localllm.text.attachments import Attachment
from localllm.tree import Node, NodeKind, Tree, messages

FORMATS = ("markdown", "json", "jsonl")
_KINDS: dict[str, NodeKind] = {"user": "user", "assistant": "assistant", "summary": "summary"}


def written(conversations: Sequence[tuple[Record, Tree]], form: str) -> str:
    """Conversations in one of FORMATS, ending in a newline."""
    if form == "json":
        found = [as_object(record, tree) for record, tree in conversations]
        return json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False, indent=1) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(_line(r, t), ensure_ascii=False) + "\n" for r, t in conversations)
    return "\n".join(markdown(record, tree) for record, tree in conversations)


def markdown(record: Record, tree: Tree) -> str:
    """The active path, for people."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
    parts = [f"# {record.title or 'Conversation'}", f"{record.model_name}, {when}"]
    if record.system:
        parts += ["## System", record.system]
    for node in tree.path():
        parts += _section(node, replace(record, model=node.model).model_name)
    return "\n\n".join(parts) + "\n"


def as_object(record: Record, tree: Tree) -> dict[str, Any]:
    """Everything, with all branches; ids are hexadecimal, for JSON's numbers do not hold them."""
    return {
        "id": record.id,
        "title": record.title,
        "model": record.model,
        "system": record.system,
        "settings": dict(record.settings),
        "created": record.created,
        "updated": record.updated,
        "leaf": _name(tree.leaf),
        "messages": [_message(node) for node in tree.nodes.values()],
    }


def read_object(found: Any) -> tuple[Record, Tree]:
    """What `as_object` wrote. Raises UsageError where it is something else."""
    try:
        nodes = [_node(message) for message in found["messages"]]
        tree = Tree(nodes, _id(found.get("leaf")))
        settings = {str(k): v for k, v in dict(found.get("settings") or {}).items()}
        system = found.get("system")
        record = Record(
            str(found.get("id", "")), str(found.get("title", "")), str(found.get("model", "")),
            None if system is None else str(system), settings, tree.leaf,
            _seconds(found, "created"), _seconds(found, "updated"), len(nodes),
        )  # fmt: skip
        tree.check()
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UsageError(
            f"this is no conversation that localllm wrote ({type(error).__name__}: {error})",
            "localllm history export --format json writes one",
        ) from None
    return record, tree


def _section(node: Node, model: str) -> list[str]:
    title = {"user": "You", "assistant": model or "Answer", "summary": "Summary of what was said before"}[node.kind]
    parts = [f"## {title}"]
    if node.attachments:
        parts.append("Attached: " + ", ".join(f"`{file.name}`" for file in node.attachments))
    if node.thinking:
        parts.append(f"<details><summary>Thinking</summary>\n\n{node.thinking}\n\n</details>")
    return [*parts, node.content]


def _line(record: Record, tree: Tree) -> dict[str, Any]:
    """The active path as other programs take a chat: roles and contents, files within the questions."""
    path = [node for node in tree.path() if node.kind != "summary"]
    told = [{"role": m.role, "content": m.content} for m in messages(record.system, "", path)]
    return {"id": record.id, "title": record.title, "model": record.model, "messages": told}


def _message(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": _name(node.id),
        "parent": _name(node.parent),
        "kind": node.kind,
        "content": node.content,
        "created": node.created,
    }
    if node.kind != "user":
        found |= {"model": node.model, "thinking": node.thinking}
    if node.kind == "summary":
        found["first"] = _name(node.first)
    if node.attachments:
        found["attachments"] = [{"name": file.name, "text": file.text} for file in node.attachments]
    return found


def _node(found: Any) -> Node:
    id = _id(found["id"])
    if id is None or not isinstance(found["content"], str):
        raise ValueError("a message has an id and a text")
    files = tuple(Attachment(str(file["name"]), str(file["text"])) for file in found.get("attachments", ()))
    return Node(
        id, _id(found.get("parent")), _KINDS[found["kind"]], found["content"], str(found.get("thinking", "")),
        str(found.get("model", "")), _id(found.get("first")), files, _seconds(found, "created"),
    )  # fmt: skip


def _seconds(found: Any, name: str) -> float:
    seconds = float(found.get(name, 0))
    if not math.isfinite(seconds):  # which JSON writes as NaN and Infinity in Python alone, and SQLite as nothing
        raise ValueError(f"{name} is no time")
    return seconds


def _name(id: int | None) -> str | None:
    return None if id is None else f"{id:x}"


def _id(name: str | None) -> int | None:
    """Ids as `tree.py` gives them: SQLite's numbers have 64 bits."""
    if name is None:
        return None
    id = int(name, 16)
    if not 0 <= id < 1 << 62:
        raise ValueError(f"{name} is no id")
    return id
