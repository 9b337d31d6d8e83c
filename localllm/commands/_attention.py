"""`localllm explain --attention`: what each token looks at, on the terminal, as a picture, or for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from localllm.errors import UsageError
from localllm.whole import replacing, require_target

if TYPE_CHECKING:
    from localllm.jobs.attention import Attention, Combine
    from localllm.protocols import TextModel

FORMATS = (".html", ".svg", ".npz")
MAX_WRITTEN_WEIGHTS = 1 << 24  # in HTML (two bytes each) and JSON


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen of it, and where."""

    layer: int | None = None
    head: int | None = None
    combine: str = "mean"
    out: Path | None = None
    force: bool = False
    as_json: bool = False

    def check(self) -> None:
        """Raises UsageError for what makes no sense with any model."""
        from localllm.jobs.attention import COMBINE

        if self.combine not in COMBINE:
            raise UsageError(f"--combine {self.combine} is not one of {', '.join(COMBINE)}")
        if self.combine == "rollout" and self.layer is not None:
            raise UsageError("--combine rollout goes through all layers", "leave --layer out")
        if self.out is None:
            return
        kind = self.out.suffix.lower()
        if kind not in FORMATS:
            raise UsageError(
                f"--out {self.out}: the formats are {', '.join(FORMATS)}", "name the file after one of them"
            )
        if kind == ".html" and self.combine == "rollout" and self.head is not None:
            raise UsageError("a page has the rollout of all heads together", "leave --head out, or --out FILE.svg")
        require_target(self.out, force=self.force)


def show_attention(opened: TextModel, tokens: Sequence[int], name: str, view: View) -> None:
    """Raises UsageError before anything is computed where the view, which was checked, is none of this model."""
    from localllm.jobs.attention import attend, seeing

    model = seeing(opened)
    if view.layer is not None and view.layer >= model.layers:
        raise UsageError(f"--layer {view.layer}: the model has the layers 0 to {model.layers - 1}")
    if view.head is not None and view.head >= model.heads:
        raise UsageError(f"--head {view.head}: the model has the heads 0 to {model.heads - 1}")
    if view.out is not None and view.out.suffix.lower() != ".npz":
        from localllm.ui.attention_svg import require_room

        require_room(len(tokens))
    layers = model.layers if view.layer is None else 1
    written = view.as_json or (view.out is not None and view.out.suffix.lower() == ".html")
    if written and layers * model.heads * len(tokens) ** 2 > MAX_WRITTEN_WEIGHTS:
        raise UsageError(
            f"{len(tokens)} tokens in {layers} layers of {model.heads} heads are too many to write out",
            "--layer N, or --out FILE.npz",
        )
    found = attend(model, tokens, view.layer)
    if view.out is not None:
        _write(found, name, view, view.out)
    if view.as_json:
        _print_json(found, name, view)
    elif view.out is not None:
        print(view.out)
    else:
        from localllm.ui.attention_text import show

        show(_matrix(found, view), found.data, f"{name}, {title(found, view)}: percent of each row")


def title(found: Attention, view: View) -> str:
    """Which layers and heads are seen, in words."""
    if view.combine == "rollout":
        return "rollout through all layers" + ("" if view.head is None else f", head {view.head}")
    layer = f"layer {view.layer}" if view.layer is not None else f"{view.combine} of {len(found.layers)} layers"
    return layer + (f", head {view.head}" if view.head is not None else f", {view.combine} of {found.heads} heads")


def _matrix(found: Attention, view: View) -> Any:
    return found.matrix(view.layer, view.head, cast("Combine", view.combine))


def _write(found: Attention, name: str, view: View, path: Path) -> None:
    kind = path.suffix.lower()
    with replacing(path) as beside:
        if kind == ".npz":
            _write_arrays(found, beside)
        elif kind == ".svg":
            from localllm.ui.attention_svg import svg

            beside.write_text(svg(_matrix(found, view), found.data, f"{name}: {title(found, view)}"), encoding="utf-8")
        else:
            from localllm.ui.attention_html import page

            layer = 0 if view.layer is not None else view.combine
            head = view.head if view.head is not None else "max" if view.combine == "max" else "mean"
            beside.write_text(page(found, f"Attention in {name}", layer, head), encoding="utf-8")


def _write_arrays(found: Attention, path: Path) -> None:
    """`weights` (layers, heads, tokens, tokens), `layers`, `tokens`, `pieces`; no pickle."""
    import numpy as np

    pieces = np.array([one.decode(errors="replace") for one in found.data])
    with path.open("wb") as file:
        np.savez_compressed(
            file, weights=found.weights, layers=np.array(found.layers), tokens=np.array(found.tokens), pieces=pieces
        )


def _print_json(found: Attention, name: str, view: View) -> None:
    """`matrix` is what was chosen, `weights` all there is by layer and head."""
    import json

    import numpy as np

    tokens = [
        {"id": token, "piece": data.decode(errors="replace"), "bytes": list(data), "special": special}
        for token, data, special in zip(found.tokens, found.data, found.special, strict=True)
    ]
    content = {
        "model": name,
        "tokens": tokens,
        "shown": title(found, view),
        "matrix": np.round(_matrix(found, view).astype(float), 6).tolist(),
        "layers": list(found.layers),
        "heads": found.heads,
        "weights": np.round(found.weights.astype(float), 6).tolist(),
    }
    print(json.dumps(content, ensure_ascii=False))
