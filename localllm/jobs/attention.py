"""Which earlier tokens each token looks at: softmax(QK^T / sqrt(d)) of every layer and head.

llama.cpp computes these weights as a tensor of their own (`kq_soft_max-LAYER`) where flash attention is off; they are
copied out while it evaluates the text. Grouped queries have a matrix a query head. Memory grows with the square of the
text's length, times layers, times heads: there is a limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from localllm.engines.observer import F32, Observer
from localllm.errors import EngineError, LocalLLMError, UsageError
from localllm.protocols import TextModel

if TYPE_CHECKING:
    import numpy as np

    from localllm.engines.scorer import Scorer

Combine = Literal["mean", "max", "rollout"]
COMBINE = ("mean", "max", "rollout")
MAX_WEIGHTS = 1 << 27  # float32: 512 MiB
_AT_ONCE = 256
_NAME = re.compile(rb"kq_soft_max-(\d+)")


@dataclass(frozen=True)
class Attention:
    """`weights` are float32, (layers, heads, tokens, tokens): row i says where token i looks. `layers` are the numbers
    of the model's layers that have attention, as many as were asked for; `data` is how each token is written."""

    tokens: tuple[int, ...]
    data: tuple[bytes, ...]
    special: tuple[bool, ...]
    layers: tuple[int, ...]
    weights: np.ndarray

    @property
    def heads(self) -> int:
        return int(self.weights.shape[1])

    def matrix(self, layer: int | None = None, head: int | None = None, combine: Combine = "mean") -> np.ndarray:
        """One matrix (tokens, tokens): of a layer and a head, or of several combined. Raises UsageError.

        `rollout` follows attention through all layers, mixed half and half with the residual connection (Abnar and
        Zuidema 2020, arXiv 2005.00928).
        """
        if layer is not None and layer not in self.layers:
            raise UsageError(f"--layer {layer}: the layers with attention are {_spans(self.layers)}")
        if head is not None and not 0 <= head < self.heads:
            raise UsageError(f"--head {head}: the heads are 0 to {self.heads - 1}")
        if combine not in COMBINE:
            raise UsageError(f"{combine!r} does not combine layers and heads", ", ".join(COMBINE))
        chosen = self.weights if layer is None else self.weights[self.layers.index(layer)][None]
        chosen = chosen if head is None else chosen[:, head : head + 1]
        if combine == "rollout":
            if layer is not None:
                raise UsageError("rollout goes through all layers", "leave --layer out")
            return rollout(chosen)
        found: np.ndarray = chosen.max(axis=(0, 1)) if combine == "max" else chosen.mean(axis=(0, 1), dtype="float32")
        return found


def rollout(weights: np.ndarray) -> np.ndarray:
    """Attention from the last layer down to the text, of weights (layers, heads, tokens, tokens)."""
    import numpy as np

    joint = np.eye(weights.shape[-1], dtype=np.float32)
    for layer in weights:
        mixed = layer.mean(axis=0) + np.eye(weights.shape[-1], dtype=np.float32)
        joint = mixed / mixed.sum(axis=1, keepdims=True) @ joint
    return joint


def seeing(model: TextModel) -> Scorer:
    """The model, where its attention can be seen. Raises UsageError."""
    from localllm.engines.scorer import Scorer

    if not isinstance(model, Scorer):
        raise UsageError(
            "attention is seen in llama.cpp alone: an ONNX graph keeps its own to itself", "name the model as a GGUF"
        )
    return model


def attend(model: TextModel, tokens: Sequence[int], layer: int | None = None) -> Attention:
    """The weights of every layer, or of one, computed without flash attention whatever the model was opened with.

    Raises UsageError where the text is empty, too long, or the model has no such layer; EngineError.
    """
    model = seeing(model)
    require_room(len(tokens), 1 if layer is not None else model.layers, model.heads, model.context)
    observer = _Weights(len(tokens), layer)
    model.open_text(len(tokens), min(_AT_ONCE, len(tokens)), observer=observer.callback)
    for start in range(0, len(tokens), _AT_ONCE):
        part = tokens[start : start + _AT_ONCE]
        model.read(part)
        observer.raise_failure("the attention could not be read")
        observer.place += len(part)
    layers, weights = observer.whole()
    data = tuple(model.spelled(token) for token in tokens)
    return Attention(tuple(tokens), data, tuple(map(model.is_special, tokens)), layers, weights)


def require_room(tokens: int, layers: int, heads: int, context: int) -> None:
    """Raises UsageError where the weights of so many tokens are too many."""
    if not tokens:
        raise UsageError("there is nothing to explain: the text has no tokens", "write one after the command")
    most = min(context, int((MAX_WEIGHTS / (layers * heads)) ** 0.5))
    if tokens > most:
        hint = "a shorter text" if layers == 1 else "a shorter text, or --layer N for one layer"
        raise UsageError(
            f"the text has {tokens} tokens, and {layers} layer{'s' * (layers > 1)} of {heads} heads "
            f"can be kept for {most}",
            hint,
        )


class _Weights(Observer):
    """Keeps the rows of the softmax as they come; `place` is the first token of what is being evaluated."""

    def __init__(self, tokens: int, layer: int | None) -> None:
        super().__init__()
        self._tokens, self._layer, self.place = tokens, layer, 0
        self._found: dict[int, np.ndarray] = {}

    def _number(self, tensor: Any) -> int | None:
        match = _NAME.fullmatch(tensor.name)
        number = int(match[1]) if match else None
        return number if self._layer in (None, number) else None

    def wants(self, tensor: Any) -> bool:
        return self._number(tensor) is not None

    def take(self, tensor: Any) -> None:
        import numpy as np

        number = self._number(tensor)
        if number is None:
            return
        if tensor.type != F32:
            raise LocalLLMError(f"layer {number} computes its weights in type {tensor.type}")
        (rows,) = self.read(tensor)  # (heads, tokens of this part, places of the cache)
        if number not in self._found:
            self._found[number] = np.zeros((rows.shape[0], self._tokens, self._tokens), dtype=np.float32)
        width = min(rows.shape[2], self._tokens)
        self._found[number][:, self.place : self.place + rows.shape[1], :width] = rows[:, :, :width]

    def whole(self) -> tuple[tuple[int, ...], np.ndarray]:
        """The numbers of the layers, and their weights. Raises EngineError where there are none."""
        import numpy as np

        layers = tuple(sorted(self._found))
        if not layers and self._layer is not None:
            raise UsageError(
                f"--layer {self._layer}: the model has no attention there", "localllm show tells its layers"
            )
        if not layers:
            raise EngineError(
                "the model has no attention whose weights can be seen", "explain works without --attention"
            )
        if len({self._found[number].shape for number in layers}) > 1:
            raise EngineError("the layers have different numbers of heads", "--layer N shows one of them")
        found = self._found
        weights = np.empty((len(layers), *found[layers[0]].shape), dtype=np.float32)
        for index, number in enumerate(layers):
            weights[index] = found.pop(number)
        return layers, weights


def _spans(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 0-2, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)
