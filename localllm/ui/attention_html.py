"""Attention as one HTML file: layers and heads to browse, tokens to hover. It opens no connection and needs no network.

What a model or a user wrote stands in it as data: in JSON whose <, > and & are escaped, put on the page as text.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.ui.attention_svg import COLOR, svg
from localllm.ui.render import visible
from localllm.ui.tokens import label

if TYPE_CHECKING:
    import numpy as np

    from localllm.jobs.attention import Attention

_PAGE = Path(__file__).with_name("attention.html")


def page(found: Attention, title: str, layer: int | str = "mean", head: int | str = "mean") -> str:
    """The whole file; `attention.html` is its frame. It opens with a layer (by its place) and a head, or a combination.

    `#layer=3&head=2&token=5` at the end of its address opens it there. Raises UsageError as `svg` does.
    """
    import numpy as np

    scaled = np.round(np.clip(found.weights, 0, 1) * 65535).astype("<u2")
    data = {
        "labels": [label(one) for one in found.data],
        "texts": [label(one, spaces=False) for one in found.data],
        "special": list(found.special),
        "layers": list(found.layers),
        "heads": found.heads,
        "start": {"layer": layer, "head": head},
        "rollout": _rounded(found.matrix(combine="rollout")) if len(found.layers) > 1 else None,
        "weights": base64.b64encode(scaled.tobytes()).decode(),
    }
    parts = {
        "TITLE": html.escape(visible(title)),
        "SVG": svg(found.matrix(), found.data, "mean of all layers, mean of all heads"),
        "DATA": _inert(json.dumps(data)),
        "COLOR": COLOR,
    }
    written = _PAGE.read_text(encoding="utf-8").split("@")
    return "".join(parts.get(part, part) if index % 2 else part for index, part in enumerate(written))


def _rounded(matrix: np.ndarray) -> list[float]:
    return [round(float(weight), 5) for weight in matrix.reshape(-1)]


def _inert(text: str) -> str:
    """JSON that cannot end the element it stands in."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
