"""The docs' pictures of the playground and of a run's report: `make screenshots` makes them again in docs/images.

Owns what is trained for them (two short runs on the demo's data, a few minutes), what is clicked, and how a picture is
made small. Knows the pages by what a user sees of them.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.server import serving
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from tests.browser import DESK, FLAGS, NAMES, PHONE

import softprompt as sp
from softprompt import demo
from softprompt.bases.sources import read_snippets
from softprompt.training.taskfile import make_prompt

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
STEPS, SECOND_STEPS = 24, 8
ROWS = 60  # of validation and of test
MOST_BYTES = 200_000
SENTENCE = "Two hours that I would like to have back."


def train(folder: Path) -> None:
    """Two runs in `runs`, the first one with its report, and a library with both prompts."""
    films, products = read_snippets("movieReview"), read_snippets("amazonReview")
    files = demo.split(films, products)
    task_file = demo.prepare(folder / "data", files, STEPS, resume=False)
    base, task, data = sp.load_base(demo.BASE), task_file.task, folder / "data"
    rows = {name: sp.load_rows(data / f"{name}.csv", task)[:ROWS] for name in ("validation", "test")}
    run = sp.train(
        base,
        make_prompt(base, task_file.prompt, task, sp.load_rows(data / "train.csv", task)),
        task,
        train=data / "train.csv",
        validation=rows["validation"],
        recipe=task_file.recipe.model_copy(update={"evaluate_every": 6, "log_every": 1, "warmup_steps": 5}),
        output=folder / "runs" / "movie-sentiment",
    )
    test = sp.evaluate(base, run.prompt, task, rows["test"])
    sp.write_report(folder / "runs" / "movie-sentiment", base=base, validation=rows["validation"], test=test)

    topic = sp.Task(template="Text: {text}\nTopic:", labels=["film", "product"])
    texts = [pair for two in zip(films, products, strict=False) for pair in zip(two, (0, 1), strict=True)]
    mixed = [sp.Row({"text": snippet.text}, label, f" {topic.labels[label]}") for snippet, label in texts]
    start = sp.SoftPrompt.from_text(base, "Is this text about a film or about a product?", 8)
    recipe = sp.Recipe(max_steps=SECOND_STEPS, warmup_steps=3, evaluate_every=4, log_every=1)
    second = sp.train(
        base,
        start,
        topic,
        train=mixed[ROWS:1000],
        validation=mixed[:ROWS],
        recipe=recipe,
        output=folder / "runs" / "film-or-product",
    )
    library = sp.PromptLibrary(folder / "library")
    library.add("movie-sentiment", run.prompt)
    library.add("film-or-product", second.prompt)


def keep(page: Page, name: str) -> None:
    """The page as it is in the window now, as a picture of at most 256 colours."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    file = IMAGES / f"{name}.png"
    temporary = file.with_name(f".{file.name}")
    picture.save(temporary, "PNG", optimize=True)
    size = temporary.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"error: {file} would have {size:,} bytes, and at most {MOST_BYTES:,} are wanted")
    os.replace(temporary, file)
    print(f"{file}: {size / 1000:.0f} kB")


def picture_report(browser: Browser, report: Path) -> None:
    """On a desk, at night, and on a phone."""
    for name, section, options in (
        ("report", "Gradients of the virtual tokens", {"viewport": DESK}),
        ("report-dark", "Right and wrong", {"viewport": DESK, "color_scheme": "dark"}),
        ("report-phone", "Learning", {"viewport": PHONE}),
    ):
        page = browser.new_page(**options)
        page.goto(report.resolve().as_uri())
        page.get_by_role("heading", name=section).evaluate("heading => heading.scrollIntoView()")
        keep(page, name)
        page.close()


def picture_playground(browser: Browser, url: str) -> None:
    """Two tasks asked about one sentence, on a desk and on a phone, and the curves of a run."""
    for name, options in (("playground", {"viewport": DESK}), ("playground-phone", {"viewport": PHONE})):
        page = browser.new_page(locale="en-US", **options)
        page.goto(url)
        page.locator("#tasks .token").first.wait_for()  # one is chosen already
        page.locator("#tasks input").click()
        page.get_by_role("option", name="movie-sentiment", exact=True).click()
        page.keyboard.press("Escape")
        page.locator("#text textarea").fill(SENTENCE)
        page.locator("#ask").click()
        page.locator("#answer .best").nth(3).wait_for(timeout=120_000)
        keep(page, name)
        if name == "playground":
            page.get_by_role("tab", name="Runs").click()
            page.locator("#runs input").click()
            page.get_by_role("option", name="movie-sentiment", exact=True).click()
            page.get_by_text(f"Finished: {STEPS} steps").wait_for()
            page.get_by_role("option").first.wait_for(state="detached")
            keep(page, f"{name}-runs")
        page.close()


def main() -> None:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise SystemExit("error: there is no Chromium: scripts/chromium.sh installs it")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="softprompt-") as temporary, sync_playwright() as playwright:
        os.chdir(temporary)  # the report names its rows' file as the commands were told it
        folder = Path()
        train(folder)
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        picture_report(browser, folder / "runs" / "movie-sentiment" / "report.html")
        with serving(demo.BASE, folder / "library", "--runs", folder / "runs") as (url, _):
            picture_playground(browser, url)
        browser.close()


if __name__ == "__main__":
    main()
