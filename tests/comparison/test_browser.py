"""The report of a comparison, as a browser shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softprompt.comparison.report import html
from tests.browser import PHONE, Seen
from tests.comparison.test_report import NOTES, ROWS, UNTRAINED, row
from tests.reporting.looks import check_figures, check_fits, check_keyboard, check_legible

if TYPE_CHECKING:
    from playwright.sync_api import Page

METHODS = ("Zero-shot", "Few-shot", "Prompt tuning", "LoRA, rank 8", "Full fine-tuning")
TRAINED = ("Prompt tuning", "LoRA, rank 8", "Full fine-tuning")
WORDS = {
    "Test accuracy against trained parameters": ("trained parameters", "test accuracy (0 to 1)", *METHODS),
    "Peak memory": ("method", "peak memory (gigabytes)", *METHODS),
    "Validation accuracy while training": (
        "time in training steps (seconds)",
        "validation accuracy (0 to 1)",
        *TRAINED,
    ),
    "Training loss": ("training step", "loss (nats per target token)", *TRAINED),
}
EVERY = [
    ROWS[0],
    row("few-shot", **UNTRAINED | {"settings": [2], "accuracy": 0.7}),
    *ROWS[1:3],
    row("full", trainable_parameters=134_515_008, accuracy=0.83, interval=(0.78, 0.87)),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("compared") / "report.html"
    path.write_text(html("mood <script>alert(1)</script>", "accuracy", EVERY, NOTES), "utf-8")
    return path.as_uri()


def test_every_figure_is_drawn_and_says_what_it_shows(page: Page, seen: Seen, report: str) -> None:
    page.goto(report)
    check_figures(page, WORDS)
    assert "<script>alert(1)</script>" in page.locator("h1").inner_text()
    assert page.locator("script").count() == 0
    assert seen.errors == []
    assert {url.split(":")[0] for url in seen.requests} <= {"file", "data"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_day_and_by_night(new_page: Callable[..., Page], report: str, scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    page.goto(report)
    check_legible(page)


def test_it_fits_a_phone_and_a_keyboard(new_page: Callable[..., Page], report: str) -> None:
    page = new_page(viewport=PHONE, has_touch=True)
    page.goto(report)
    check_fits(page)
    check_keyboard(page)


def test_methods_that_failed_are_said_and_not_drawn(page: Page, seen: Seen, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html("mood", "accuracy", ROWS, NOTES), "utf-8")
    page.goto(path.as_uri())
    assert page.get_by_role("cell", name="out of memory").is_visible()
    drawn = page.locator("figure svg").first.locator("text").all_text_contents()
    assert "Prompt tuning" in drawn
    assert "Full fine-tuning" not in drawn
    assert seen.errors == []
