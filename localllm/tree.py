"""The messages of a conversation as a tree, so that nothing that was said is lost.

Taking a question back, asking for another answer and editing a question all begin a new branch beside the earlier one.
`leaf` is the message that the conversation has arrived at; what leads to it from the root is the active path. A summary
stands on the path where it was made, and says from which message on the ones before it are still told to the model.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from localllm.text.attachments import Attachment, with_attachments
from localllm.types import Message

NodeKind = Literal["user", "assistant", "summary"]


@dataclass(frozen=True, slots=True)
class Node:
    """One message. `content` is what was typed or answered; `first` is a summary's: the id of the first message that is
    still told in its own words, or None for none of those before. `created` is in seconds since 1970."""

    id: int
    parent: int | None
    kind: NodeKind
    content: str
    thinking: str = ""
    model: str = ""
    first: int | None = None
    attachments: tuple[Attachment, ...] = ()
    created: float = field(default_factory=time.time)


class Tree:
    def __init__(self, nodes: Iterable[Node] = (), leaf: int | None = None) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.leaf = leaf

    def add(
        self,
        kind: NodeKind,
        content: str,
        *,
        thinking: str = "",
        model: str = "",
        first: int | None = None,
        attachments: tuple[Attachment, ...] = (),
    ) -> Node:
        """A new leaf below the present one. Ids are random, so that two processes never give the same."""
        node = Node(secrets.randbits(62), self.leaf, kind, content, thinking, model, first, attachments)
        self.nodes[node.id] = node
        self.leaf = node.id
        return node

    def remove(self, node: Node) -> None:
        """Take back a message that nothing stands below."""
        del self.nodes[node.id]
        if self.leaf == node.id:
            self.leaf = node.parent

    def copy(self) -> Tree:
        """The active path alone, with ids of its own."""
        return Tree(self.path(), self.leaf).renamed()

    def renamed(self) -> Tree:
        """All of it, with ids of its own."""
        ids: dict[int | None, int] = {id: secrets.randbits(62) for id in self.nodes}
        nodes = self.nodes.values()
        copies = [replace(n, id=ids[n.id], parent=ids.get(n.parent), first=ids.get(n.first)) for n in nodes]
        return Tree(copies, ids.get(self.leaf))

    def check(self) -> None:
        """Raise ValueError where a message is missing, or the messages go round in a circle."""
        known = {node.id for node in self.nodes.values()} | {None}
        if self.leaf not in known or any(node.parent not in known for node in self.nodes.values()):
            raise ValueError("messages are missing")
        sound: set[int | None] = {None}
        for node in self.nodes.values():
            walked: set[int | None] = set()
            at: int | None = node.id
            while at not in sound:
                if at in walked or at is None:
                    raise ValueError("the messages go round in a circle")
                walked.add(at)
                at = self.nodes[at].parent
            sound |= walked

    def path(self, leaf: int | None = None) -> list[Node]:
        """From the root to the leaf, the present one without a name."""
        found = []
        at = self.leaf if leaf is None else leaf
        while at is not None:
            found.append(self.nodes[at])
            at = found[-1].parent
        return found[::-1]

    def told(self) -> tuple[str, list[Node]]:
        """What the model is told of the active path: a summary of its begin, or "", and the messages after it."""
        path = self.path()
        last = next((i for i in reversed(range(len(path))) if path[i].kind == "summary"), None)
        if last is None:
            return "", path
        summary = path[last]
        begin = next((i for i in range(last) if path[i].id == summary.first), last)
        return summary.content, [node for node in path[begin:] if node.kind != "summary"]

    def children(self, id: int | None) -> list[Node]:
        """Oldest first; of None the first messages."""
        return [node for node in self.nodes.values() if node.parent == id]

    def leaves(self) -> list[Node]:
        """Where each branch ends, oldest first."""
        parents = {node.parent for node in self.nodes.values()}
        return sorted((n for n in self.nodes.values() if n.id not in parents), key=lambda n: n.created)

    def last(self, kind: NodeKind) -> Node | None:
        """The last message of a kind on the active path."""
        return next((node for node in reversed(self.path()) if node.kind == kind), None)


def messages(system: str | None, summary: str, nodes: Iterable[Node]) -> tuple[Message, ...]:
    """What a model is told. Not every template takes a summary of its own, so it stands in the first question."""
    told = [Message("system", system)] if system else []
    for node in nodes:
        text = with_attachments(node.content, node.attachments)
        if summary and node.kind == "user":
            text, summary = f"(Summary of our conversation until now: {summary})\n\n{text}", ""
        told.append(Message("user" if node.kind == "user" else "assistant", text))
    return tuple(told)
