"""Many requests at once: the generation loop of `local.py` once a request, and the evaluations of all in one batch.

A loop pauses where it needs logits. When all have paused, what they wait for is evaluated together; a sequence whose
answer has ended takes the next request, whose prompt goes into the same batch as the others' next tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic

from localllm.engines.llama_batch import NeedsRoom, Sequences, SequenceView
from localllm.engines.local import LocalEngine
from localllm.errors import LocalLLMError, UsageError
from localllm.protocols import Engine, Key
from localllm.types import Chunk, Request

Outcome = list[Chunk] | LocalLLMError
MOST = 64  # sequences; more gained nothing where it was measured


def one_by_one(engine: Engine, requests: Iterable[tuple[Key, Request]]) -> Generator[tuple[Key, Outcome], None, None]:
    """With any engine, one request after the other."""
    for key, request in requests:
        try:
            yield key, list(engine.stream(request))
        except UsageError:
            raise
        except LocalLLMError as error:
            yield key, error


@dataclass(frozen=True, slots=True)
class Together:
    """An engine, its model, and the number of sequences: `most`, and what `sequences_for(tokens of each)` allows."""

    engine: LocalEngine
    model: Sequences
    most: int
    sequences_for: Callable[[int], int]

    def answers(self, requests: Iterable[tuple[Key, Request]]) -> Generator[tuple[Key, Outcome], None, None]:
        """What became of each request, as they end. Raises UsageError, EngineError; closing it ends what is running."""
        return _Run(self, iter(requests)).answers()


@dataclass(frozen=True, slots=True)
class _Answer(Generic[Key]):
    key: Key
    request: Request
    steps: Generator[Chunk | None, None, None]
    chunks: list[Chunk] = field(default_factory=list)


class _Run(Generic[Key]):
    def __init__(self, how: Together, source: Iterator[tuple[Key, Request]]) -> None:
        self._how, self._model, self._source = how, how.model, source
        self._held: deque[tuple[Key, Request]] = deque()  # taken from the source, and not begun
        self._free: list[SequenceView] = []
        self._running: dict[SequenceView, _Answer[Key]] = {}
        self._room = 0  # tokens that a held request needs, where the caches are too short for it

    def answers(self) -> Generator[tuple[Key, Outcome], None, None]:
        try:
            with self._model.interruptible():
                while True:
                    if not self._running and not (yield from self._open()):
                        return
                    yield from self._fill()
                    if self._running:
                        yield from self._step()
        finally:
            for answer in self._running.values():
                answer.steps.close()
            self._running.clear()

    def _open(self) -> Generator[tuple[Key, Outcome], None, bool]:
        """With nothing running: caches that suffice for the next requests; False where there are none."""
        self._held.extend(islice(self._source, max(0, self._how.most - len(self._held))))
        if not self._held:
            return False
        if self._room or not self._free:
            waiting, self._held = self._held, deque()
            for key, request in waiting:  # in a view without room each tells how much it needs, or fails
                yield from self._begin(SequenceView(self._model, 0, 0), key, request)
        if self._room and self._held:
            count = max(1, min(self._how.most, len(self._held), self._how.sequences_for(self._room)))
            self._free = self._model.open_sequences(count, self._room)
        self._room = 0
        return True

    def _fill(self) -> Generator[tuple[Key, Outcome], None, None]:
        """Begin requests while there are sequences for them. One that needs longer caches waits for all to end."""
        begun = []
        while self._free and not self._room:
            following = self._held.popleft() if self._held else next(self._source, None)
            if following is None:
                break
            view = self._free.pop()
            if (yield from self._begin(view, *following)):
                begun.append(view)
            else:
                self._free.append(view)
        self._model.arrange(begun)
        self._model.share(begun)

    def _begin(self, view: SequenceView, key: Key, request: Request) -> Generator[tuple[Key, Outcome], None, bool]:
        """Whether the request runs in the view now; else it has failed, or is held back."""
        view.wanted, view.fresh = request.limits.max_tokens, True
        self._running[view] = _Answer(key, request, self._how.engine.steps(request, view))
        yield from self._advance(view)
        return view in self._running

    def _step(self) -> Generator[tuple[Key, Outcome], None, None]:
        for view in self._model.evaluate(list(self._running)):
            self._model.output = view.output
            yield from self._advance(view)
            if view not in self._running:
                self._free.append(view)

    def _advance(self, view: SequenceView) -> Generator[tuple[Key, Outcome], None, None]:
        """Go on to where the next logits are needed, or to the end; what needs longer caches is begun anew in them."""
        answer = self._running[view]
        outcome: Outcome = answer.chunks
        try:
            for chunk in answer.steps:
                if chunk is None:
                    return
                answer.chunks.append(chunk)
            if answer.chunks[-1].finish == "length":
                view.require_whole()
        except UsageError:
            raise
        except LocalLLMError as error:
            outcome = error
        except NeedsRoom as needs:
            self._held.append((answer.key, answer.request))
            self._room = max(self._room, needs.tokens)
            del self._running[view]
            return
        del self._running[view]
        yield answer.key, outcome
