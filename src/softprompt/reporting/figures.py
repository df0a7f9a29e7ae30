"""The figures of a run: curves, heat maps and clouds, drawn with matplotlib's objects.

Owns how each is drawn, labelled and described. Does not know files or pages. Text and axes are drawn in black, which
the page turns into its own colour. matplotlib is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from softprompt.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]

_WIDTH = 8.0  # inches
_MOST_COLUMNS = 160  # of a heat map: more would be narrower than a line
_MOST_NAMED = 12  # classes whose names and counts fit into a confusion matrix
# Lines: of Okabe and Ito's colours, told apart by colour-blind readers, those seen on white and on dark alike.
_LINES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))


def curves(named: Mapping[str, Curve], y_label: str, marked: float | None = None) -> Figure:
    """Lines over the training steps.

    Args:
        named: each line's points (step, value), by the name in the legend.
        y_label: what is shown, with its unit.
        marked: a step to mark: that of the prompt that was kept.
    """
    figure, axes = _figure(3.6)
    for (name, points), (colour, marker) in zip(named.items(), cycle(_LINES)):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, marker=marker, markersize=4, label=name)
    if marked is not None:
        axes.axvline(marked, color="#808080", linestyle="--", label=f"the prompt that was kept (step {marked:g})")
    _label(axes, "training step", y_label)
    return figure


def gradient_map(steps: Sequence[int], gradients: Sequence[Sequence[float]]) -> Figure:
    """A heat map of gradient norms: a column for each logged step, a row for each virtual token.

    Args:
        steps: S steps.
        gradients: `[S, P]` norms; a norm of 0 is shown in grey.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    table = np.asarray(gradients, dtype=np.float64).T
    if table.shape[1] > _MOST_COLUMNS:
        groups = np.array_split(np.arange(table.shape[1]), _MOST_COLUMNS)
        table = np.stack([table[:, group].mean(axis=1) for group in groups], axis=1)
        steps = [steps[int(group[0])] for group in groups]
    figure, axes = _figure(min(8.0, 2.0 + 0.16 * len(table)))
    above = table[table > 0]
    low, high = (float(above.min()), float(above.max())) if above.size else (1e-9, 1.0)
    image = axes.imshow(
        np.ma.masked_less_equal(table, 0),
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps["viridis"].with_extremes(bad="#8c8c8c"),
        norm=LogNorm(low, max(high, low * 1.001)),
    )
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 9)).round().astype(int))
    axes.set_xticks(ticks, [str(steps[int(tick)]) for tick in ticks])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel("virtual token, from 0")
    figure.colorbar(image, label="norm of the loss's gradient (logarithmic)")
    return figure


def norms(lowest: Curve, middle: Curve, highest: Curve, words: Sequence[float]) -> Figure:
    """The virtual tokens' norms over the steps, against those of the words.

    Args:
        lowest, middle, highest: the least, the median and the greatest norm at each step.
        words: of the words' norms the percentiles 1, 50 and 99.
    """
    figure, axes = _figure(3.6)
    axes.axhspan(words[0], words[2], color="#2ca02c", alpha=0.25, label="98% of the base's words")
    axes.axhline(words[1], color="#2ca02c", linestyle="--", label="the median word")
    at = [step for step, _ in middle]
    axes.fill_between(at, [y for _, y in lowest], [y for _, y in highest], color="#1f77b4", alpha=0.3, lw=0,
                      label="all virtual tokens")  # fmt: skip
    axes.plot(at, [y for _, y in middle], color="#1f77b4", label="the median virtual token")
    axes.set_ylim(bottom=0)
    _label(axes, "training step", "Euclidean norm (no unit)")
    return figure


def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """A confusion matrix `[L, L]`: a row for each right label, a column for each predicted one."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    table = np.asarray(counts, dtype=np.float64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    few = len(labels) <= _MOST_NAMED
    figure, axes = _figure(2.4 + 0.45 * min(len(labels), 14), 5.2 if few else _WIDTH)
    image = axes.imshow(shares, cmap=colormaps["Blues"], norm=Normalize(0, 1), interpolation="nearest")
    if few:
        names = [_short(label) for label in labels]
        axes.set_xticks(range(len(labels)), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), names)
        for (row, column), count in np.ndenumerate(table):
            ink = _ink(tuple(image.to_rgba(shares[row, column])))
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=ink)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("right label")
    figure.colorbar(image, label="share of the right label's rows")
    return figure


def similarity(cosines: Sequence[Sequence[float]]) -> Figure:
    """A heat map of the cosines `[P, P]` between virtual tokens."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(4.6, 5.8)
    image = axes.imshow(np.asarray(cosines), cmap="coolwarm", vmin=-1, vmax=1, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("virtual token, from 0")
    axes.set_ylabel("virtual token, from 0")
    figure.colorbar(image, label="cosine: 1 the same direction, 0 unrelated, -1 opposite")
    return figure


def _figure(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#808080", alpha=0.3)
    axes.legend()


def _ink(ground: Sequence[float]) -> str:
    """The colour of a text on a ground `[red, green, blue, ...]`, from 0 to 1: of two the one with more contrast.

    Neither is pure, since pure black and white would follow the page's colours.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in ground[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Where black and white have the same contrast of 4.6, by WCAG (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
    return "#010101" if luminance > 0.179 else "#fefefe"


def _short(text: str, most: int = 18) -> str:
    return shorten(text, most).replace("$", r"\$")  # a dollar sign would start a formula


def finite(points: Sequence[tuple[int, Any]]) -> list[tuple[float, float]]:
    """The points whose value is a finite number."""
    return [
        (float(step), float(value)) for step, value in points if isinstance(value, int | float) and math.isfinite(value)
    ]
