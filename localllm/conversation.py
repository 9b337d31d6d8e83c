"""Messages and an engine: ask, and the answer becomes part of the conversation.

It knows nothing of terminals or files. Whatever ends an answer early (the user, an error, a closed iterator), what was
said until then is kept; a question that got no answer at all is taken back, so that roles keep alternating.

Besides an engine's chunks a conversation yields some of its own: `notice`, a sentence that the user should read, and
`summary`, the text of a summary as it is made.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace

from localllm import overflow
from localllm.errors import TemplateError, UsageError
from localllm.history import Recorder
from localllm.protocols import Engine, Resumable
from localllm.text.attachments import Attachment
from localllm.tree import Node, Tree, messages
from localllm.types import Chunk, Limits, Message, Reasoning, Request, Sampling

Chunks = Generator[Chunk, None, None]


@dataclass(frozen=True, slots=True)
class ContextReport:
    """What fills a context of `size` tokens."""

    size: int
    system: int
    summary: int
    history: int
    attachments: int

    @property
    def used(self) -> int:
        return self.system + self.summary + self.history + self.attachments

    @property
    def free(self) -> int:
        return self.size - self.used


class Conversation:
    """`recorder` keeps what is said after each turn (`history.py`); without one nothing is kept."""

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        limits: Limits,
        system: str | None = None,
        *,
        reasoning: Reasoning | None = None,
        model: str = "",
        recorder: Recorder | None = None,
        tree: Tree | None = None,
    ) -> None:
        self.engine, self.sampling, self.limits, self.system = engine, sampling, limits, system
        self.reasoning = reasoning or Reasoning()
        self.model = model
        self.recorder = recorder
        self.tree = tree or Tree()
        self.unanswered: Node | None = self._step_back()
        self._resume()

    @property
    def turns(self) -> list[Message]:
        """What the model is told of the turns."""
        return list(messages(None, *self.tree.told()))

    @property
    def messages(self) -> tuple[Message, ...]:
        return messages(self.system, *self.tree.told())

    def ask(self, text: str, attachments: tuple[Attachment, ...] = ()) -> Chunks:
        """Stream the answer to `text`. Close the iterator to stop it; what was said stays in `tree`."""
        before = self.tree.leaf
        self.tree.add("user", text, attachments=attachments)
        self._save()
        yield from self._answer(before)

    def regenerate(self) -> Chunks:
        """Another answer to the last question; the earlier one stays in the tree. Raises UsageError without one."""
        answer = self.tree.last("assistant")
        if answer is None:
            raise UsageError("there is no answer yet", "ask something first")
        before, self.tree.leaf = self.tree.leaf, answer.parent
        yield from self._answer(before)

    def edit(self, text: str) -> Chunks:
        """Ask something else in the place of the last question; the earlier turn stays in the tree."""
        question, before = self.last_question(), self.tree.leaf
        self.tree.leaf = question.parent
        self.tree.add("user", text, attachments=question.attachments)
        self._save()
        yield from self._answer(before)

    def undo(self) -> Node:
        """Go back to before the last question, which is returned. Raises UsageError without one."""
        question = self.last_question()
        self.go_to(question.parent)
        return question

    def go_to(self, leaf: int | None) -> None:
        """Continue from another message of the tree."""
        self.tree.leaf = leaf
        self._save()

    def take_up(self, tree: Tree, system: str | None, recorder: Recorder | None) -> None:
        """Go on with another conversation in the place of this one."""
        self.leave()
        self.tree, self.system, self.recorder = tree, system, recorder
        self.unanswered = self._step_back()
        self._resume()

    def branch(self) -> None:
        """Go on in a new conversation that begins as this one; this one stays as it is."""
        self.leave()
        self.tree = self.tree.copy()
        if self.recorder:
            self.recorder.begin()
        self._save()

    def last_question(self) -> Node:
        """Raises UsageError where nothing was asked."""
        question = self.tree.last("user")
        if question is None:
            raise UsageError("nothing was asked yet", "ask something first")
        return question

    def clear(self) -> None:
        """Begin a new conversation; the system prompt stays."""
        self.leave()
        self.tree, self.unanswered = Tree(), None
        if self.recorder:
            self.recorder.begin()

    def forget(self) -> bool:
        """The same, and the present one is erased from the history; whether that had it. Raises HistoryError."""
        name = self._name
        erased = self.recorder.erase() if self.recorder else False
        if model := self._resumable:
            model.drop(name)
        self.tree, self.unanswered = Tree(), None
        return erased

    def switch(self, engine: Engine, model: str) -> None:
        """Go on with another model. Whoever opened the earlier engine leaves it (`leave`) and closes it."""
        self.engine, self.model = engine, model
        self._resume()
        self._save()

    def leave(self) -> None:
        """Have the engine keep what it has evaluated, so that the conversation can go on from exactly there.

        Something else is asked of the engine next, or it is closed. A conversation that the history does not have
        leaves nothing.
        """
        if model := self._resumable:
            model.keep(self._name) if self._name else model.drop("")

    def _resume(self) -> None:
        if (model := self._resumable) and self._name:
            model.take_up(self._name)

    @property
    def _resumable(self) -> Resumable | None:
        model = getattr(self.engine, "model", None)
        return model if isinstance(model, Resumable) else None

    @property
    def _name(self) -> str:
        """What the history calls the conversation; "" where it does not have it."""
        recorder = self.recorder
        return recorder.record.id if recorder and recorder.record and recorder.kept else ""

    def instruct(self, system: str | None) -> None:
        """Another system prompt, or none."""
        self.system = system
        self._save()

    def compact(self) -> Chunks:
        """Summarize the conversation now; the summary takes its place in what the model is told."""
        summary, nodes = self.tree.told()
        if not nodes:
            raise UsageError("there is nothing to summarize", "ask something first")
        text = yield from overflow.summarize(self.engine, self._request_for, summary, nodes)
        if text:
            self.tree.add("summary", text, model=self.model)
            self._save()

    def used(self) -> int:
        """The tokens of `context_report().used`, without counting its parts. Raises TemplateError."""
        summary, nodes = self.tree.told()
        return self.engine.count(self._request_for(summary, _asked(nodes))) if nodes else self.context_report().used

    def context_report(self) -> ContextReport:
        """What the model is told before the next question, counted by the engine. Raises TemplateError.

        A system prompt of the template's own counts as one; the tokens around messages are under `history`.
        """
        summary, nodes = self.tree.told()
        nothing_said = not nodes
        nodes = _asked(nodes)

        def count(system: str | None, summary: str, nodes: list[Node]) -> int:
            return self.engine.count(self._request(messages(system, summary, nodes)))

        bare = [replace(node, attachments=()) for node in nodes]
        whole, plain = count(self.system, summary, nodes), count(self.system, summary, bare)
        # Without a system prompt some templates bring one of their own, so it is compared with the shortest there is.
        try:
            system = max(0, plain - count(".", summary, bare) + 1)
        except TemplateError:  # it takes none
            system = 0
        told = plain - count(self.system, "", bare)
        history = 0 if nothing_said else plain - system - told
        return ContextReport(self.engine.context, system, told, history, whole - plain)

    def _request(self, told: tuple[Message, ...]) -> Request:
        return Request(told, self.sampling, self.limits, reasoning=self.reasoning)

    def _request_for(self, summary: str, nodes: Sequence[Node]) -> Request:
        return self._request(messages(self.system, summary, nodes))

    def _answer(self, before: int | None) -> Chunks:
        """Answer the leaf. Where nothing is said, the conversation is at `before` again."""
        answer: list[str] = []
        thinking: list[str] = []
        try:
            yield from overflow.make_room(
                self.engine, self.tree, self._request_for, self.limits.on_overflow, self.model
            )
            for chunk in self.engine.stream(self._next_request()):
                (thinking if chunk.kind == "thinking" else answer).append(chunk.text)
                yield chunk
        finally:
            if said := "".join(answer):
                self.tree.add("assistant", said, thinking="".join(thinking).strip(), model=self.model)
            else:
                self._take_back(before)
            self._save()
        if not said and thinking:
            yield Chunk("the model thought and did not come to an answer; the question is taken back", kind="notice")
        if self.recorder and (failure := self.recorder.take_failure()):
            yield Chunk(failure, kind="notice")

    def _next_request(self) -> Request:
        """A seed gives the same answer each time, so another answer to one question draws with the seed after it."""
        again = len([node for node in self.tree.children(self.tree.leaf) if node.kind == "assistant"])
        request = self._request(self.messages)
        if not again or self.sampling.seed is None:
            return request
        seed = (self.sampling.seed + again) % (2**32 - 1)
        return replace(request, sampling=replace(self.sampling, seed=seed))

    def _take_back(self, before: int | None) -> None:
        """Be at `before` again. A question, and a summary that was made for it, go where no answer stands below."""
        while self.tree.leaf is not None and self.tree.leaf != before and not self.tree.children(self.tree.leaf):
            self.tree.remove(self.tree.nodes[self.tree.leaf])
        self.tree.leaf = before

    def _step_back(self) -> Node | None:
        """A conversation that ended without an answer (it was killed) begins before the question."""
        path = self.tree.path()
        question = next((node for node in reversed(path) if node.kind != "summary"), None)
        if question is None or question.kind == "assistant":
            return None
        self.tree.leaf = question.parent
        return question

    def _save(self) -> None:
        if self.recorder:
            settings = {k: v for part in (self.sampling, self.limits, self.reasoning) for k, v in asdict(part).items()}
            self.recorder.save(self.tree, model=self.model, system=self.system, settings=settings)


def _asked(nodes: list[Node]) -> list[Node]:
    """Messages with a question at their end, which says nothing where there is none yet."""
    return nodes if nodes and nodes[-1].kind == "user" else [*nodes, Node(0, None, "user", "")]
