"""`softprompt compare` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from softprompt.cli import app
from softprompt.comparison import processes
from tests.comparison.test_compare import base_folder, jobs, project

__all__ = ["base_folder", "jobs", "project"]  # fixtures

ROW_KEYS = {
    *("method", "trainable_parameters", "artifact_bytes", "train_seconds", "peak_memory_bytes", "switch_seconds"),
    *("test", "interval", "against_prompt", "share", "bytes_of_100_tasks", "best_seconds", "spread"),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_it_prints_the_table_and_goes_on_where_it_stopped(project: Path, jobs: list[Any]) -> None:
    asked = [project / "task.yaml", "--methods", "zero-shot, prompt", "--quick", "--output", project / "out"]
    shown = run(*asked)
    assert shown.exit_code == 0, shown.output
    for words in ("Prompt tuning", "trainable", "Every trained method: 24 training rows", "comparison.html"):
        assert words in shown.stdout
    assert "prompt 0.01 (50% done)" in shown.stderr
    jobs.clear()
    printed = run(*asked, "--json")
    assert jobs == []
    assert "done)" not in printed.stderr
    document = json.loads(printed.stdout)
    assert [row["method"] for row in document["rows"]] == ["zero-shot", "prompt"]
    assert all(row.keys() >= ROW_KEYS for row in document["rows"])
    assert Path(document["report"]).read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_the_default_folder_is_the_tasks_own(project: Path, jobs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    shown = run("task.yaml", "--methods", "zero-shot", "--set", "recipe.max_steps=2")
    assert shown.exit_code == 0, shown.output
    assert (project / "comparisons/mood/comparison.json").exists()


def test_what_goes_wrong_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "run", interrupted)
    for asked, message in (
        (["--methods", "magic"], "error: methods: magic: choose of zero-shot, few-shot, probe, prompt, lora, full\n"),
        (["--methods", ","], "error: methods: none: choose of zero-shot, few-shot, probe, prompt, lora, full\n"),
        (["--set", "data.test=nothing.csv"], "error: "),
        ([], f"error: interrupted; the same command goes on where it stopped, in {project / 'out'}\n"),
    ):
        result = run(project / "task.yaml", "--output", project / "out", *asked)
        assert (result.exit_code, result.stdout) == (130 if "interrupted" in message else 1, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert run(project / "task.yaml", "--seeds", "0").exit_code == 2
