"""The quality benchmark on a tiny base: its variants are task files, its finished rows are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import quality

from softprompt import SoftPromptError
from softprompt.comparison import Comparison
from softprompt.comparison.methods import METHODS
from softprompt.comparison.table import TableRow
from softprompt.training.recipe import AUTO_LEARNING_RATE
from softprompt.training.taskfile import load_task_file
from tests.comparison.test_compare import FILE, table
from tests.comparison.test_report import row
from tests.conftest import make_base


@pytest.fixture
def task(tmp_path: Path) -> Path:
    base = make_base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "task.yaml").write_text(FILE.format(base=tmp_path / "base"), encoding="utf-8")
    for name, count in (("train", 40), ("dev", 8), ("test", 10)):
        (tmp_path / f"{name}.csv").write_text(table(count), encoding="utf-8")
    return tmp_path / "task.yaml"


@pytest.mark.parametrize("part", quality.VARIANTS)
def test_every_variant_is_a_task_file(task: Path, part: str) -> None:
    for keys in quality.VARIANTS[part].values():
        load_task_file(task, keys)


def test_finished_rows_are_kept(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []
    measure = quality.measure_variant

    def counted(path: Path, keys: Any, part: str, variant: str, *others: Any) -> dict[str, Any]:
        measured.append(variant)
        return measure(path, keys, part, variant, *others)

    monkeypatch.setattr(quality, "measure_variant", counted)
    arguments = [
        str(task),
        "--set",
        "recipe.max_steps=2",
        "--out",
        str(tmp_path / "out"),
        "--work",
        str(tmp_path / "w"),
    ]
    quality.main([*arguments, "--parts", "rows"])
    quality.main([*arguments, "--parts", "rows", "options"])
    document = json.loads((tmp_path / "out/quality.json").read_text())
    found = {row["variant"]: row for row in document["rows"]}
    assert [*found] == [*quality.VARIANTS["rows"], *quality.VARIANTS["options"]]
    # "none" of the options has the settings of "all rows", whose figures it takes over.
    assert measured == [variant for variant in found if variant != "none"]
    assert found["none"]["score"] == found["all rows"]["score"]
    assert found["none"]["part"] == "options"
    assert all(0 <= row["score"] <= 1 and row["n"] == 10 for row in document["rows"])
    assert quality.table(document) == (tmp_path / "out/quality.md").read_text()
    assert "| mood, ensemble of 5, recipe.max_steps=2, 2 steps of 4 |" in capsys.readouterr().out


def test_a_row_of_an_older_default_is_measured_again(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(task), "--set", "recipe.max_steps=2", "--parts", "recipe", "--variants", "softprompt's"]
    quality.main([*arguments, "--out", str(tmp_path)])
    monkeypatch.setitem(AUTO_LEARNING_RATE, "adamw", 0.02)
    quality.main([*arguments, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert [row["learning_rate"] for row in rows] == [0.02]


def test_the_methods_table_is_the_comparisons(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(file: Any, methods: Any, *, output: Path, **options: Any) -> Comparison:
        changed = {"trainable_parameters": 128, "artifact_bytes": 5000, "peak_memory_bytes": 10**9}
        done = row("prompt", accuracy=0.9, interval=(0.8, 1.0), train_seconds=3.0, **changed)
        rows = [done, TableRow(METHODS["full"], "diverged", "the loss became NaN", 0, [], None)]
        return Comparison(file.name, "accuracy", rows, ["A note."], output)

    monkeypatch.setattr(quality, "compare", compared)
    quality.main([str(task), "--parts", "methods", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/quality.md").read_text()
    assert "| prompt | 0.900 [0.800, 1.000] | 128 | 5,000 | 1.00 GB | 3 |" in text
    assert "| full | diverged |" in text
    assert "A note." in text


def test_validation_and_test_rows_are_needed(task: Path) -> None:
    with pytest.raises(SoftPromptError, match=r"needs data\.validation and data\.test"):
        quality.measure_variant(task, ["data.test=null"], "length", "P = 4", 0, {})
