"""The playground in a real browser: what a visitor sees, on a desk and on a phone, in two languages.

That no request leaves this machine and no script of others runs is checked after every test, by `new_page`.
"""

from __future__ import annotations

import csv
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from softprompt import predict
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.local import LocalEngine
from softprompt.serving.playground.texts import TEXTS
from softprompt.tasks import Task
from softprompt.training.trajectory import Trajectory
from tests.browser import PHONE
from tests.serving import conftest
from tests.serving.conftest import MOOD, Live, fill_library, living, make_prompt
from tests.serving.test_playground import make_run, write_csv

EN, ES = TEXTS["en"], TEXTS["es"]
LABELS = ['<img src=x onerror="alert(1)">', "${alert(2)}", "{{alert(3)}}", "<script>alert(4)</script>"]
TABS = ["try", "file", "library", "runs", "compare"]


@dataclass(frozen=True)
class Places:
    """Where the page's prompts and its training runs are."""

    library: PromptLibrary
    runs: Path


@pytest.fixture(scope="module")
def places(base, tmp_path_factory) -> Places:
    folder = tmp_path_factory.mktemp("playground")
    library = fill_library(folder / "library", base)
    library.add("trick", make_prompt(base, 4, Task(template="Say: {text}\nLabel:", labels=LABELS), seed=9))
    make_run(folder / "runs" / "films", 12)
    return Places(library, folder / "runs")


@pytest.fixture(scope="module")
def live(base, places) -> Iterator[Live]:
    with living(LocalEngine(base), places.library, playground=places.runs) as server:
        yield server


@pytest.fixture
def rows(tmp_path) -> Path:
    lines = [[f"row {i}, <b>&amp;</b>", ["negative", "positive"][i % 2]] for i in range(40)]
    return write_csv(tmp_path / "rows.csv", [["text", "label"], *lines])


def visit(page: Any, url: str) -> None:
    page.goto(url)
    page.locator("#tasks .token").first.wait_for()  # one task is chosen already


def go(page: Any, tab: str) -> None:
    page.get_by_role("tab").nth(TABS.index(tab)).click()


def choose(page: Any, element: str, *names: str) -> None:
    page.locator(f"#{element} input").click()
    for name in names:
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")


def ask(page: Any, text: str) -> None:
    page.locator("#text textarea").fill(text)
    page.locator("#ask").click()


def said(page: Any, element: str) -> str:
    return " ".join(page.locator(f"#{element}").inner_text().split())


def test_two_tasks_answer_beside_the_base(live, base, places, page):
    visit(page, live.url)
    page.locator("#tasks .token-remove").first.click()
    choose(page, "tasks", "mood", "trick")
    ask(page, "a joy to <b>watch</b>")
    page.locator("#answer .best").nth(3).wait_for()
    answer = said(page, "answer")
    for prompt in (places.library.get("mood"), None):
        (one,) = predict(base, prompt, MOOD, ["a joy to <b>watch</b>"])
        assert f"positive {one.probabilities['positive']:.1%}" in answer
    assert answer.count(EN["with_prompt"]) == answer.count(EN["base_alone"]) == 2
    for label in LABELS:  # as they are, and nothing of them has run
        assert answer.count(label) == 2
    assert page.locator("#answer img, #answer script").count() == 0


def test_behind_a_prefix(base, places, new_page):
    with living(LocalEngine(base), places.library, playground=places.runs, root_path="/llm") as server:
        page = new_page()
        visit(page, f"{server.url}/llm/")
        ask(page, "a joy to watch")
        page.locator("#answer .best, #answer .said").first.wait_for()
        page.goto(f"{server.url}/llm/docs")
        page.get_by_text("/v1/classify", exact=True).wait_for()


def test_generated_text_and_a_second_box(live, page):
    visit(page, live.url)
    choose(page, "tasks", "topic")
    page.locator("#text-2 textarea").wait_for()
    page.locator("#text-2 textarea").fill("news")
    ask(page, "abc")
    page.locator("#answer .said").nth(1).wait_for()
    page.locator("#answer .best").nth(1).wait_for()
    assert "bare@1" in said(page, "answer")


def test_a_file_is_answered_and_downloaded(live, page, rows):
    visit(page, live.url)
    go(page, "file")
    choose(page, "file-task", "mood")
    page.locator("#file input[type=file]").set_input_files(rows)
    page.locator("#file .file-preview").wait_for()
    page.locator("#file-ask").click()
    page.locator("#file-answer table").first.wait_for()
    assert EN["answered"].format(count=40) in said(page, "file-answer")
    assert "row 0, <b>&amp;</b>" in said(page, "file-answer")
    with page.expect_download() as download:
        page.locator("#download").click()
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    assert (download.value.suggested_filename, head[2], len(lines)) == ("answers.csv", "mood@2 answer", 40)


def test_the_curves_of_a_run_follow_it(live, places, page):
    visit(page, live.url)
    go(page, "runs")
    page.locator("#run figure").nth(2).wait_for()
    assert "Step 12 of at most 60" in said(page, "run")
    path = places.runs / "films" / "monitor.jsonl"
    trajectory = Trajectory.read(path)
    trajectory.add(trajectory.measurements[-1].model_copy(update={"step": 13}), path)
    with path.open("a") as file:
        file.write('{"kind": "measurement", "step": 14')
    page.get_by_text("Step 13 of at most 60").wait_for()
    assert page.locator("#run svg").count() == 3


def test_two_versions_are_compared(live, page, rows):
    visit(page, live.url)
    go(page, "compare")
    page.wait_for_function("document.querySelector('#compare-second input').value")
    page.locator("#compare-file input[type=file]").set_input_files(rows)
    page.locator("#compare-file .file-preview").wait_for()
    page.locator("#compare-ask").click()
    page.locator("#comparison table").first.wait_for()
    assert re.search(r"The two agree on \d+ of 40 rows.*mood@1 mood@2", said(page, "comparison"))


def test_spanish_on_a_phone_in_the_dark(live, new_page):
    page = new_page(viewport=PHONE, locale="es-ES", color_scheme="dark")
    visit(page, live.url)
    assert [tab.inner_text() for tab in page.get_by_role("tab").all()] == [ES[tab] for tab in TABS]
    ask(page, "hola")
    page.locator("#answer h4").nth(1).wait_for()
    assert ES["base_alone"] in said(page, "answer")
    shown = {
        "try": "#answer",
        "file": "#file",
        "library": "#library table",
        "runs": "#run figure",
        "compare": "#compare-ask",
    }
    for tab, element in shown.items():
        go(page, tab)
        page.locator(element).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab
    assert ES["step"] in said(page, "run")


def test_two_browsers_at_once(live, new_page):
    one, other = new_page(), new_page(locale="es-ES")
    for page in (one, other):
        visit(page, live.url)
    choose(other, "tasks", "mood")
    ask(one, "first")
    ask(other, "second")
    other.locator("#answer h3").nth(1).wait_for()
    one.locator("#answer .said").nth(1).wait_for()
    assert "mood@2" not in said(one, "answer")
    assert "mood@2" in said(other, "answer")
    assert one.locator("#text textarea").input_value() == "first"
    assert ES["base_alone"] in said(other, "answer")


def test_a_key_opens_the_page(base, places, new_page):
    from playwright.sync_api import Error

    with living(LocalEngine(base), places.library, playground=places.runs, api_keys=["sesame"]) as live:
        with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):  # it asks, and gets no answer
            new_page().goto(live.url)
        page = new_page(http_credentials={"username": "", "password": "sesame"})
        visit(page, live.url)
        ask(page, "abc")
        page.locator("#answer .said").nth(1).wait_for()
        live.service.close()


def test_an_empty_library(base, tmp_path, new_page):
    (tmp_path / "library").mkdir()
    places = Places(PromptLibrary(tmp_path / "library"), tmp_path / "runs")
    with living(LocalEngine(base), places.library, playground=places.runs) as live:
        page = new_page()
        page.goto(live.url)
        page.locator("#greeting .notice").wait_for()
        assert "no soft prompt is loaded yet" in said(page, "greeting")
        ask(page, "a")
        page.locator("#answer .error").wait_for()
        assert said(page, "answer") == EN["choose_task"]
        go(page, "library")
        page.get_by_text("The library is empty").wait_for()
        go(page, "runs")
        page.get_by_text("There is no training run").wait_for()
        live.service.close()


def test_a_server_that_was_started_anew_under_an_open_page(base, places, new_page, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bind: Callable[..., Any] = conftest.bind
    monkeypatch.setattr(conftest, "bind", lambda host, _: bind(host, port))
    page = new_page()
    with living(LocalEngine(base), places.library, playground=places.runs) as live:
        visit(page, live.url)
        choose(page, "tasks", "topic")
        page.locator("#text-2 textarea").fill("news")  # and so nothing is under way: a call that breaks off reloads
        live.service.close()
    with living(LocalEngine(base), places.library, playground=places.runs) as live:
        ask(page, "a joy")  # the page is the old one, and knows what it had chosen
        page.locator("#answer .best").nth(1).wait_for()
        page.locator("#answer .said").nth(1).wait_for()
        live.service.close()
