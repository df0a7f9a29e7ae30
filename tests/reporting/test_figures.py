from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from softprompt.reporting import figures
from softprompt.reporting.page import figure

CURVE = [(1.0, 2.0), (5.0, 1.5), (9.0, 1.2)]
DRAWN: dict[str, Callable[[], Figure]] = {
    "curves": lambda: figures.curves({"training": CURVE, "validation": CURVE[1:]}, "loss (nats)", 5),
    "gradient map": lambda: figures.gradient_map([1, 5, 9], [[0.1, 0.0], [1e-6, 2.0], [0.5, 0.4]]),
    "gradients of 0": lambda: figures.gradient_map([1], [[0.0, 0.0]]),
    "norms": lambda: figures.norms(CURVE, CURVE, CURVE, [0.5, 1.0, 1.5]),
    "confusion": lambda: figures.confusion([[3, 1], [0, 0]], ["good", "<b>$bad$</b>"]),
    "many labels": lambda: figures.confusion([[1] * 40] * 40, [str(i) for i in range(40)]),
    "similarity": lambda: figures.similarity([[1.0, 0.5], [0.5, 1.0]]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_says_what_it_shows(name: str) -> None:
    drawn = DRAWN[name]()
    axes, *others = drawn.axes
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    if others:  # the colour bar is the legend
        assert others[0].get_ylabel()
    else:
        legend = axes.get_legend()
        assert legend is not None
        assert len(legend.get_texts()) == len(axes.get_legend_handles_labels()[0])
    assert 'role="img"' in figure(drawn, "t", "d")


def test_labels_are_words_and_no_formulas() -> None:
    svg = figure(DRAWN["confusion"](), "t", "d")
    assert "&lt;b&gt;$bad$&lt;/b&gt;" in svg


def test_a_glyph_that_matplotlibs_font_lacks_is_left_to_the_browser() -> None:
    assert "好" in figure(figures.confusion([[1, 0], [0, 1]], ["好", "不好"]), "t", "d")


def test_a_long_run_is_drawn_in_few_columns() -> None:
    drawn = figures.gradient_map(list(range(5000)), [[1.0, 2.0]] * 5000)
    assert drawn.axes[0].images[0].get_array().shape == (2, 160)  # type: ignore[union-attr]
    assert len(figure(drawn, "t", "d")) < 100_000


def luminance(colour: Any) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


def contrast(one: Any, other: Any) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_counts_in_a_confusion_matrix_are_legible() -> None:
    for share in range(0, 101, 4):
        axes = figures.confusion([[share, 100 - share], [0, 0]], ["a", "b"]).axes[0]
        ground = axes.images[0].to_rgba(share / 100)
        assert contrast(axes.texts[0].get_color(), ground[:3]) >= 4.5


@pytest.mark.parametrize("page", ["#ffffff", "#14171a"])
def test_lines_are_seen_on_both_pages(page: str) -> None:
    many = {str(i): CURVE for i in range(6)}
    lines = figures.curves(many, "share").axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 4
    assert all(contrast(line.get_color(), page) >= 3 for line in [*lines, *figures.curves(many, "x", 3).axes[0].lines])


def test_only_finite_numbers_are_drawn() -> None:
    assert figures.finite([(1, 2.0), (2, math.nan), (3, None), (4, "x"), (5, math.inf)]) == [(1.0, 2.0)]
