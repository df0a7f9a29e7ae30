"""The report of a run, as a browser shows it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softprompt import Row, SoftPrompt, Task, train, write_report
from tests.browser import PHONE, Seen
from tests.conftest import make_base
from tests.reporting.looks import check_figures, check_fits, check_keyboard, check_legible
from tests.training.runs import recipe

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=http://example.com/x onerror=alert(2)>"
WORDS = {
    "Loss": ("training step", "loss (nats)", "training (mean since the entry before)", "validation"),
    "Validation": ("training step", "share (0 to 1)", "validation accuracy"),
    "How strongly the loss pulls at each virtual token": (
        "training step",
        "virtual token, from 0",
        "norm of the loss's gradient (logarithmic)",
    ),
    "Norms of the virtual tokens against those of the words": (
        "training step",
        "Euclidean norm (no unit)",
        "98% of the base's words",
        "the median virtual token",
    ),
    "Confusion matrix of the validation rows": (
        "predicted label",
        "right label",
        "share of the right label's rows",
    ),
    "Likeness between the virtual tokens": (
        "virtual token, from 0",
        "cosine: 1 the same direction, 0 unrelated, -1 opposite",
    ),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report whose texts, labels and start are hostile, and whose run is not a good one."""
    base, folder = make_base(), tmp_path_factory.mktemp("runs") / "mood"
    task = Task(template="{text}:", labels=["yes", SCRIPT])
    rows = [Row({"text": f"{IMAGE}{SCRIPT}{i}"}, i % 2, " " + ["yes", SCRIPT][i % 2]) for i in range(12)]
    settings = recipe(max_steps=12, evaluate_every=3, log_every=1, learning_rate=1e-5)
    prompt = SoftPrompt.from_text(base, SCRIPT, 6)
    train(base, prompt, task, train=rows, validation=rows, recipe=settings, output=folder)
    return write_report(folder, base=base, validation=rows).resolve().as_uri()


def test_every_figure_is_drawn_and_says_what_it_shows(page: Page, seen: Seen, report: str) -> None:
    page.goto(report)
    check_figures(page, WORDS)
    assert page.locator(".warning").count() > 0
    assert seen.errors == []
    assert {url.split(":")[0] for url in seen.requests} <= {"file", "data"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_day_and_by_night(new_page: Callable[..., Page], report: str, scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    page.goto(report)
    page.locator("summary").click()
    check_legible(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(ground) < 64 if scheme == "dark" else min(ground) > 200


def test_it_fits_a_phone_and_a_keyboard(new_page: Callable[..., Page], report: str) -> None:
    page = new_page(viewport=PHONE, has_touch=True)
    page.goto(report)
    check_fits(page)
    check_keyboard(page)
    page.locator("summary").press("Enter")
    assert page.locator("details pre").is_visible()
    check_fits(page)


def test_scripts_are_shown_as_text(page: Page, report: str) -> None:
    page.goto(report)
    assert page.get_by_role("cell", name=SCRIPT, exact=True).first.is_visible()
    assert IMAGE in page.locator("main").inner_text()
    assert page.locator("script, img").count() == 0


def test_a_link_leads_to_each_section(page: Page, report: str) -> None:
    page.goto(report)
    links = page.locator("nav a").all()
    assert len(links) == page.locator("section").count() == 9
    for link in links:
        link.click()
        target = page.locator(page.evaluate("location.hash"))
        assert target.inner_text() == link.inner_text()


def test_the_folder_alone_is_enough(page: Page, seen: Seen, report: str, tmp_path: Path) -> None:
    """Moved elsewhere, the file shows the same: it leans on nothing beside it."""
    moved = tmp_path / "elsewhere.html"
    page.goto(report)
    before = page.locator("body").inner_text()
    moved.write_bytes(Path(report.removeprefix("file://")).read_bytes())
    page.goto(moved.as_uri())
    assert page.locator("body").inner_text() == before
    assert seen.errors == []


FAULTS: dict[str, tuple[str, Callable[..., None]]] = {
    "pale text": ("p { color: #8c8c8c }", check_legible),
    "pale axes": ("figure svg text { fill: #8c8c8c !important }", check_legible),
    "a wide page": ("main { width: 600px }", check_fits),
    "nothing drawn": (
        "figure svg path, figure svg use, figure svg image { display: none }",
        partial(check_figures, wanted=WORDS),
    ),
    "a figure of no size": ("figure svg { width: 200px; min-width: 0 }", partial(check_figures, wanted=WORDS)),
    "nothing to skip to": (".skip { visibility: hidden }", check_keyboard),
    "what is wide is cut": (".scroll { overflow: hidden }", check_keyboard),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_would_be_found(new_page: Callable[..., Page], report: str, fault: str) -> None:
    from playwright.sync_api import Error

    style, check = FAULTS[fault]
    page = new_page(viewport=PHONE)
    page.set_default_timeout(2000)
    page.goto(report)
    page.add_style_tag(content=style)
    with pytest.raises((AssertionError, Error)):  # an error of the browser's: what was waited for never came
        check(page)
