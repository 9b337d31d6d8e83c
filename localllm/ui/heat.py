"""A text by how much it surprised a model: the warmer a token's ground, the less it was expected.

On a terminal the coloured text comes as the tokens come, and then the table; elsewhere the table alone; or JSON; or
HTML for a notebook.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from localllm.ui.render import visible
from localllm.ui.table import print_table
from localllm.ui.tokens import quoted, shown, terminal, whole_characters

if TYPE_CHECKING:
    from localllm.jobs.compare import Comparison, Pair
    from localllm.jobs.explain import Candidate, Explanation, Step

# Up to so many bits of surprisal a token has this ground; each is readable under black.
HEAT = (
    (1.0, "#d9f0d3"),
    (2.0, "#f7f7c8"),
    (4.0, "#fee391"),
    (7.0, "#fdae61"),
    (11.0, "#f46d43"),
    (float("inf"), "#d73027"),
)
_UNPREDICTED = "#dddddd"
# Without colours: expected, a surprise, a great surprise.
_PLAIN = ((4.0, "none"), (8.0, "underline"), (float("inf"), "reverse"))


def ground(bits: float | None) -> str:
    """The colour of a surprisal, #rrggbb."""
    return _UNPREDICTED if bits is None else next(color for limit, color in HEAT if bits <= limit)


def stream(found: Iterator[Step | tuple[Candidate, ...]]) -> Explanation:
    """Paint the tokens as they come, on a terminal; what the model added is in italics. Returns the whole."""
    from localllm.jobs.explain import Explanation, Step

    steps: list[Step] = []
    following: tuple[Candidate, ...] = ()

    def only_steps() -> Iterator[Step]:
        nonlocal following
        for one in found:
            if isinstance(one, Step):
                steps.append(one)
                yield one
            else:
                following = one

    console = terminal()
    for group in whole_characters(only_steps(), _data):
        if console is not None:
            from rich.text import Text

            style = _style(_sum(group), plain=console.no_color) + (" italic" if group[0].generated else "")
            console.print(Text(shown(b"".join(map(_data, group))), style), end="", soft_wrap=True)
    if console is not None:
        print("\n")
    return Explanation(steps, following)


def _data(step: Step) -> bytes:
    return step.data


def _sum(group: Sequence[Step]) -> float | None:
    """The surprisal of the characters that some tokens make together."""
    return None if group[0].surprisal is None else sum(step.surprisal or 0.0 for step in group)


def _style(bits: float | None, *, plain: bool) -> str:
    if plain:
        return next(style for limit, style in _PLAIN if (bits or 0.0) <= limit)
    return f"black on {ground(bits)}"


def show(found: Explanation) -> None:
    """The table, and what it sums up to."""
    rows = [
        (written(step), percent(step.probability), _whole(step.rank), _bits(step.surprisal), _bits(step.entropy),
         candidates(step.top))
        for step in found.steps
    ]  # fmt: skip
    rows.append(("(next)", "", "", "", "", candidates(found.following)))
    print_table(("token", "prob.", "rank", "bits", "entropy", "likeliest"), rows, right=(1, 2, 3, 4), expendable=(4, 2))
    for line in summary(found):
        print(line)


def summary(found: Explanation) -> list[str]:
    """Figures of the whole text, a line; none where no token was predicted."""
    if found.perplexity is None:
        return []
    count = len(found.predicted)
    tokens = f"{count} token{'s' * (count != 1)}"
    size = f", {found.bits_per_byte:.3f} a byte" if found.bits_per_byte is not None else ""
    return [f"perplexity {found.perplexity:.4g} over {tokens}; {found.bits / count:.3f} bits a token{size}"]


def show_comparison(found: Comparison, names: tuple[str, str]) -> None:
    """The table of both, a mark where they part, and the figures of each."""
    rows = []
    for pair in found.pairs:
        first, second = pair.bits
        change = "" if first is None or second is None else f"{second - first:+.2f}"
        rows.append(
            (written_all(pair.first), "≠" if pair.parts else "", _bits(first), _bits(second), change, *_instead(pair))
        )
    print_table(
        ("token", "", "bits 1", "bits 2", "change", "likeliest 1", "likeliest 2"), rows, right=(2, 3, 4),
        expendable=(4,),
    )  # fmt: skip
    for number, (name, one) in enumerate(zip(names, (found.first, found.second), strict=True), 1):
        for line in summary(one):
            print(f"{number} {visible(name)}: {line}")
    if found.pairs:
        apart = sum(pair.parts for pair in found.pairs)
        kld = f"; mean KL divergence {found.mean_divergence:.4f}" if found.mean_divergence is not None else ""
        print(f"≠ they part at {apart} of {len(found.pairs)} places{kld}")


def _instead(pair: Pair) -> tuple[str, str]:
    """What each held for the likeliest; where the tokenizers differ, what the second makes of the text."""
    if len(pair.first) == len(pair.second) == 1:
        return candidates(pair.first[0].top[:1]), candidates(pair.second[0].top[:1])
    return "", written_all(pair.second)


def percent(probability: float | None) -> str:
    if probability is None:
        return ""
    return f"{probability:.1%}" if probability >= 0.0005 else f"{probability:.0e}"


def written(step: Step) -> str:
    """A token in a table: a special one by its name, what the model added with a plus."""
    text = step.data.decode(errors="replace") if step.special else quoted(step.data)
    return f"+ {text}" if step.generated else text


def written_all(steps: Sequence[Step]) -> str:
    return " ".join(map(written, steps))


def candidates(found: Sequence[Candidate]) -> str:
    return "  ".join(f"{quoted(one.data)} {percent(one.probability)}" for one in found)


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def as_dict(found: Explanation) -> dict[str, Any]:
    """What --json prints. Surprisal and entropy in bits; `logprob` and `divergence` natural."""
    return {
        "perplexity": found.perplexity,
        "bits": found.bits,
        "bits_per_byte": found.bits_per_byte,
        "predicted": len(found.predicted),
        "tokens": [_step(step) for step in found.steps],
        "next": _top(found.following),
    }


def _step(step: Step) -> dict[str, Any]:
    values = {
        "id": step.token, "piece": step.data.decode(errors="replace"), "bytes": list(step.data),
        "special": step.special, "generated": step.generated, "probability": step.probability,
        "logprob": step.logprob, "rank": step.rank, "surprisal": step.surprisal, "entropy": step.entropy,
        "top": _top(step.top),
    }  # fmt: skip
    return values if step.divergence is None else {**values, "divergence": step.divergence}


def _top(found: Sequence[Candidate]) -> list[dict[str, Any]]:
    return [
        {"id": one.token, "piece": one.data.decode(errors="replace"), "probability": one.probability} for one in found
    ]


def comparison_dict(found: Comparison, names: tuple[str, str]) -> dict[str, Any]:
    """`pairs` hold the numbers of both models' tokens in a stretch of the text, and whether they part there."""
    pairs, places = [], [0, 0]
    for pair in found.pairs:
        sides = [
            list(range(start, start + len(side))) for start, side in zip(places, (pair.first, pair.second), strict=True)
        ]
        places = [start + len(side) for start, side in zip(places, sides, strict=True)]
        pairs.append({"first": sides[0], "second": sides[1], "bits": list(pair.bits), "part": pair.parts})
    models = [{"model": name, **as_dict(one)} for name, one in zip(names, (found.first, found.second), strict=True)]
    return {"models": models, "mean_kld": found.mean_divergence, "pairs": pairs}


def to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1)


def to_html(found: Explanation) -> str:
    """The coloured text for a notebook, the figures of each token when the mouse rests on it. Everything is escaped."""
    spans = []
    for group in whole_characters(found.steps, _data):
        style = f"background:{ground(_sum(group))};color:#000" + (";font-style:italic" if group[0].generated else "")
        told = html.escape("\n".join(line for step in group for line in _told(step)))
        text = html.escape(shown(b"".join(map(_data, group))))
        spans.append(f'<span style="{style}" title="{told}">{text}</span>')
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in summary(found))
    return f'<div style="font-family:monospace;white-space:pre-wrap;line-height:1.6">{"".join(spans)}</div>{lines}'


def _told(step: Step) -> list[str]:
    """A token with its figures and what might have come, a line each."""
    if step.logprob is None:
        return [written(step)]
    figures = f"{percent(step.probability)}, rank {step.rank}, {_bits(step.surprisal)} of {_bits(step.entropy)} bits"
    return [written(step), figures, *(f"{quoted(one.data)} {percent(one.probability)}" for one in step.top)]
