from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

from softprompt.comparison.methods import METHODS
from softprompt.comparison.report import cells, html, markdown, remarks, seconds, size
from softprompt.comparison.results import Measured, Trained
from softprompt.comparison.statistics import Paired
from softprompt.comparison.table import Figures, TableRow
from softprompt.evaluation import Evaluation

NOTES = ["Every method: 3 rows.", "<script>alert(1)</script> & co"]


FIGURES: dict[str, Any] = {
    "settings": [0.03],
    "edge": False,
    "bytes_of_100_tasks": 541_000_000,
    "interval": (0.74, 0.85),
    "spread": None,
    "against_prompt": None,
}
TRAINED: dict[str, Any] = {
    "trainable_parameters": 9216,
    "base_parameters": 134_515_008,
    "base_bytes": 538_060_032,
    "artifact_bytes": 38_000,
    "peak_memory_bytes": 1_300_000_000,
    "train_seconds": 80.0,
    "best_seconds": 40.0,
    "best_step": 10,
    "validation": Evaluation(n=100, accuracy=0.8, seconds=1.0),
    "curve": [{"step": 10, "seconds": 40.0, "accuracy": 0.7}, {"step": 20, "seconds": 80.0, "accuracy": 0.8}],
    "losses": [{"step": 1, "loss": 0.9}, {"step": 10, "loss": 0.5}],
}
UNTRAINED = {"trainable_parameters": 0, "settings": [None], "curve": [], "losses": []}


def row(method: str, *, failures: Sequence[str] = (), message: str | None = None, **changed: Any) -> TableRow:
    """A method that is done, with some of its figures changed; `accuracy` is the test's."""

    def of(defaults: dict[str, Any]) -> dict[str, Any]:
        return defaults | {key: value for key, value in changed.items() if key in defaults}

    test = Evaluation(n=200, accuracy=changed.get("accuracy", 0.8), seconds=1.0)
    tested = Measured(test=test, answers=[0, 1], switch_seconds=0.002, switch_in_memory_seconds=0.00002)
    figures = Figures(Trained(**of(TRAINED)), tested, **of(FIGURES))
    return TableRow(METHODS[method], "done", message, 1, list(failures), figures)


ROWS = [
    row("zero-shot", **UNTRAINED),
    row("prompt"),
    row("lora", edge=True, failures=["0.0015: diverged"], against_prompt=Paired(0.02, 5, 1, 0.3)),
    TableRow(METHODS["full"], "out of memory", "its process was killed, as for want of memory", 0, [], None),
]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def test_the_page_holds_table_and_plots_and_asks_nobody_outside() -> None:
    text = html("mood <b>", "accuracy", ROWS, NOTES)
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("svg") == 4
    assert "table" in names
    assert not {"script", "iframe", "img", "object", "b"} & set(names)
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
    assert "url(http" not in text.replace('"', "")
    assert "@import" not in text
    assert "&lt;script&gt;" in text
    assert "0.800 [0.740, 0.850]" in text
    # Every plot has its axes named.
    named = {"trained parameters", "peak memory (gigabytes)", "time in training steps (seconds)", "training step"}
    assert named <= set(re.findall(r">([^<>]+)<", text))


def test_nothing_done_is_shown_too() -> None:
    text = html("mood", "accuracy", ROWS[3:], NOTES)
    assert "out of memory" in text
    assert "<svg" not in text


def test_the_table_as_markdown() -> None:
    text = markdown("mood", "accuracy", ROWS, NOTES)
    assert "| test accuracy [95% interval] | 0.800 [0.740, 0.850] |" in text
    assert "| out of memory |" in text
    assert "+0.020 (p = 0.3)" in text
    assert "- LoRA, rank 8: the best rate is at the end of its grid; another one may do better." in text
    assert "- LoRA, rank 8: settings that failed: 0.0015: diverged." in text
    assert "spread" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(ROWS) + 2}


def test_several_seeds_have_a_spread() -> None:
    head, body = cells("accuracy", [row("prompt", spread=0.012)])
    assert head == ["", "Prompt tuning"]
    assert ["spread over the seeds", "± 0.012"] in body
    partly = row("prompt", message="the loss became NaN")
    assert remarks([partly], []) == ["Prompt tuning (not with every seed): the loss became NaN"]


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 999, 37_800, 538_090_000, 54e9, 2e12)] == [
        *("0 B", "999 B", "37.8 kB", "538.1 MB", "54.0 GB", "2.0 TB")
    ]
    assert [seconds(n) for n in (None, 0, 2e-5, 0.0021, 71.04)] == ["not possible", "0", "20 µs", "2.1 ms", "71.0 s"]
