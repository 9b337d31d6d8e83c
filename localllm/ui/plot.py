"""Speed against divergence of a model's quantizations: as characters on a terminal, as a PNG or SVG in a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.errors import LocalLLMError, UsageError
from localllm.whole import replacing

if TYPE_CHECKING:
    from localllm.jobs.tune import Measured

ROWS = 10
FORMATS = (".png", ".svg")


def characters(found: Sequence[Measured], front: Sequence[Measured], width: int) -> list[str]:
    """Lines of a plot `width` characters wide: decode speed to the right, divergence (logarithmic) upwards.

    A candidate is the letter that stands before it in the table, in capitals on the Pareto front.
    """
    speeds = [m.decode_ts for m in found]
    heights = [math.log10(max(m.kld, 1e-6)) for m in found]
    columns = max(20, width - 12)
    grid = [[" "] * columns for _ in range(ROWS)]
    for index, (speed, height) in enumerate(zip(speeds, heights, strict=True)):
        row = ROWS - 1 - round(_part(height, heights) * (ROWS - 1))
        column = round(_part(speed, speeds) * (columns - 1))
        while grid[row][column] != " " and column:  # two at one place stand side by side
            column -= 1
        letter = letter_of(index)
        grid[row][column] = letter.upper() if found[index] in front else letter
    labels = [f"{10 ** max(heights):9.4f}", *[" " * 9] * (ROWS - 2), f"{10 ** min(heights):9.4f}"]
    lines = [f"{label} |{''.join(row)}".rstrip() for label, row in zip(labels, grid, strict=True)]
    left, right = f"{min(speeds):.0f}", f"{max(speeds):.0f} tokens/s"
    return [
        "KL divergence",
        *lines,
        " " * 10 + "+" + "-" * columns,
        " " * 11 + left + right.rjust(columns - len(left)),
    ]


def letter_of(index: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[index % 26]


def _part(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def check_plot_file(path: Path) -> None:
    """Raises UsageError for another format, LocalLLMError where matplotlib is not installed."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: a plot is a {' or '.join(FORMATS)} file")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise LocalLLMError("--plot needs matplotlib", "pip install matplotlib") from None


def draw(found: Sequence[Measured], front: Sequence[Measured], title: str, path: Path) -> None:
    """Write the plot as a file; the area of a point tells its size."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    largest = max(m.size for m in found)
    for measured in found:
        color = "tab:blue" if measured in front else "tab:gray"
        axes.scatter(measured.decode_ts, measured.kld, s=400 * measured.size / largest, color=color, alpha=0.6)
        axes.annotate(measured.name, (measured.decode_ts, measured.kld), textcoords="offset points", xytext=(8, 8))
    line = sorted(front, key=lambda m: m.decode_ts)
    axes.plot([m.decode_ts for m in line], [m.kld for m in line], color="tab:blue", linewidth=0.8)
    if all(m.kld > 0 for m in found):
        axes.set_yscale("log")
    axes.set(title=title, xlabel="decode, tokens per second", ylabel="mean KL divergence")
    with replacing(path) as beside:
        figure.savefig(beside, format=path.suffix[1:].lower(), dpi=120)
    pyplot.close(figure)
