"""What becomes of a conversation that outgrows the context. Nothing is cut in silence, and the system prompt stays.

`error` lets the engine say how many tokens there are; `drop-oldest` and `shift` tell the model the later turns only;
`summarize` has the model itself summarize the earlier ones. (`shift` also lets an answer run on when it fills the
context: `engines/local.py`.) What was decided stands in the tree as a summary, so a conversation that is taken up again
is told as it was before. The tree keeps every word.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from localllm.protocols import Engine
from localllm.tree import Node, Tree
from localllm.types import Chunk, Limits, Reasoning, Request, Sampling

# A summary, and messages -> what the engine is asked.
Asking = Callable[[str, Sequence[Node]], Request]

MAX_SUMMARY = 512
_INSTRUCTION = (
    "Summarize our conversation so far in a few short sentences: what I asked, what you answered, and every name, "
    "number and decision that matters later. Write only the summary."
)


def make_room(engine: Engine, tree: Tree, asking: Asking, policy: str, model: str) -> Generator[Chunk, None, None]:
    """Before the tree's last question is answered: where it and an answer do not fit, leave out the oldest turns.

    A quarter of the context, or the limit of tokens where that is less, is left to the answer. Once something must
    go, enough goes that half of the context is free: the next turns find their place, and their prefix in the cache.
    """
    summary, nodes = tree.told()
    request, context = asking(summary, nodes), engine.context
    answer = min(request.limits.max_tokens or context, context // 4)
    if policy == "error" or engine.count(request) + answer <= context:
        return
    questions = [index for index, node in enumerate(nodes) if node.kind == "user"][1:]
    if not questions or engine.count(asking("", nodes[questions[-1] :])) >= context:
        return  # even alone the question does not fit, or there is nothing but it: the engine says what is wrong
    place = bisect_left(questions, True, key=lambda i: engine.count(asking("", nodes[i:])) <= context // 2)
    begin = questions[min(place, len(questions) - 1)]
    text = summary
    if policy in ("auto", "summarize"):
        yield Chunk(f"the context of {context} tokens is full; summarizing the first {begin} messages", kind="notice")
        text = yield from summarize(engine, asking, summary, nodes[:begin])
    if text and engine.count(asking(text, nodes[begin:])) >= context:
        text = ""
    if policy not in ("auto", "summarize") or not text:
        yield Chunk(
            f"the context of {context} tokens is full; the first {begin} messages are no longer told to the model",
            kind="notice",
        )
    tree.add("summary", text, model=model, first=nodes[begin].id)


def summarize(engine: Engine, asking: Asking, summary: str, nodes: Sequence[Node]) -> Generator[Chunk, None, str]:
    """A summary of these messages (and of the summary of those before), streamed and returned.

    The messages are told as they were and the wish for a summary after them, so that the cache need not be computed
    again. Where that does not fit, the oldest are left out; "" where nothing fits.
    """
    length = max(16, min(MAX_SUMMARY, engine.context // 8))
    wish = Node(0, None, "user", _INSTRUCTION)

    def request(begin: int) -> Request:
        return replace(
            asking(summary, [*nodes[begin:], wish]),
            sampling=Sampling(temperature=0, repeat_penalty=1.1),
            limits=Limits(max_tokens=length),
            reasoning=Reasoning(think=False, effort="low"),
        )

    questions = [index for index, node in enumerate(nodes) if node.kind == "user"]
    place = bisect_left(questions, True, key=lambda i: engine.count(request(i)) + length <= engine.context)
    if place == len(questions):
        return ""
    if place:
        yield Chunk(f"the first {questions[place]} messages do not fit into the summary", kind="notice")
    said = []
    for chunk in engine.stream(request(questions[place])):
        if chunk.kind == "answer" and chunk.text:
            said.append(chunk.text)
            yield Chunk(chunk.text, chunk.token, kind="summary")
    return "".join(said).strip()
