"""`softprompt check`, from Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from softprompt import SoftPrompt, SoftPromptError, load_base
from softprompt.cli import app
from softprompt.comparison import Check, check
from softprompt.comparison.costs import Costs
from softprompt.training.taskfile import load_task_file
from tests.comparison.test_compare import base_folder, project, table

__all__ = ["base_folder", "project"]  # fixtures

COSTS = Costs(512, 100_000, 40_000, 2.0, 0.05, 400.0, 1_500_000_000)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.comparison.problems.measure_costs", lambda *_: COSTS)


def ask(project: Path, *overrides: str) -> Check:
    return check(load_task_file(project / "task.yaml", overrides))


def said(project: Path, *overrides: str, about: str = "") -> str:
    """All problems, one a line."""
    found = ask(project, *overrides).problems
    assert all(one.text.endswith(".") for one in found)
    return "\n".join(one.text for one in found if one.about.startswith(about))


def test_costs_are_measured_on_real_steps(
    project: Path, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = ask(project)
    assert "no validation rows" not in caplog.text  # as for the steps that are measured; the task has some
    base = load_base(str(base_folder))
    costs = found.costs
    assert costs.trainable_parameters == 4 * 32
    assert costs.base_parameters == base.model.num_parameters()
    start = SoftPrompt.from_text(base, "Mood?", 4).save(tmp_path / "start")
    assert costs.artifact_bytes == sum(file.stat().st_size for file in start.iterdir())
    assert 0 < costs.step_seconds < 5
    assert 0 < costs.row_seconds < 5
    # 6 steps, and validations of 8 rows at steps 4 and 6.
    assert costs.train_seconds == pytest.approx(6 * costs.step_seconds + 2 * 8 * costs.row_seconds)
    assert costs.peak_memory_bytes > 4 * costs.base_parameters
    assert found.num_virtual_tokens == 4
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(document) == {"name", "rows", "problems", "num_virtual_tokens", "costs"}


@pytest.mark.usefixtures("quick")
def test_a_sound_task_file_has_no_problems(project: Path) -> None:
    (project / "train.csv").write_text(table(200))
    for name, words in (("dev", ("dull", "fair")), ("test", ("sad", "glad"))):
        lines = "".join(f"{words[i % 2]} {i},{('negative', 'positive')[i % 2]}\n" for i in range(120))
        (project / f"{name}.csv").write_text("text,label\n" + lines)
    assert said(project, "recipe.max_steps=50") == ""
    assert "6 steps of 4 rows see 24 of the 200 training rows (12%): set recipe.epochs" in said(project)
    assert ask(project).rows == {"training": 200, "validation": 120, "test": 120}


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_with_the_data_is_said(project: Path) -> None:
    lines = [f"good {i},positive" for i in range(30)] + ["bad 1,negative", "bad 1,positive", "good 2,positive"]
    (project / "train.csv").write_text("text,label\n" + "\n".join([*lines, "x" * 500 + ",negative"]) + "\n")
    (project / "test.csv").write_text("text,label\ngood 1,positive\ngood 2,positive\nnew,negative\n")
    data = said(project, "data.validation=null", about="data")
    for words in (
        "3 test rows measure a share of right answers with a standard error of up to 28.9%",
        "There are no validation rows",
        "2 texts of the test rows are among the training rows too",
        "1 training text stands there with more than one answer",
        "1 training row repeats an earlier one",
        "1 training texts do not fit the base's context of 256 tokens",
        "Fewer than 10 training rows have the label ['negative']",
        "The labels are uneven (32 rows of 'positive', 2 of 'negative'): always answering",
        "'positive' is right for 94.1%",
    ):
        assert words in data
    assert "uneven" not in said(project, "data.validation=null", "task.metric=macro_f1", about="data")
    assert "There are no test rows" in said(project, "data.test=null", about="data")
    missing = said(project, "task.labels=[negative, positive, mixed]", about="data")
    assert "No training row has the label ['mixed']" in missing


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_with_the_template_is_said(project: Path) -> None:
    def words(*overrides: str) -> str:
        return said(project, *overrides, about="template")

    assert "The template ends with a space" in words('task.template="Text: {text}\\nMood: "')
    assert "Nothing separates the template's end from the target, as in 'Mood:negative'" in words(
        'task.target="{label}"'
    )
    assert "Nothing separates" not in words('task.target="{label}"', 'task.template="{text}\\nMood:\\n"')
    few = words("prompt.init=labels", "prompt.init_text=null", "prompt.num_virtual_tokens=1")
    assert "2 labels do not fit 1 virtual tokens" in few


@pytest.mark.usefixtures("quick")
def test_the_command_prints_lines_or_json(project: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(project / "task.yaml")])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("rows: ")
    assert "costs: a run takes about 400.0 s on this machine (6 steps of 2 s" in lines[-1]
    printed = CliRunner().invoke(app, ["check", str(project / "task.yaml"), "--json"])
    document = json.loads(printed.stdout)
    assert [f"{one['about']}: {one['text']}" for one in document["problems"]] == lines[1:-2]
    auto = CliRunner().invoke(
        app, ["check", str(project / "task.yaml"), "--set", "prompt.num_virtual_tokens=auto", "--json"]
    )
    assert json.loads(auto.stdout)["num_virtual_tokens"] == 16


@pytest.mark.usefixtures("quick")
def test_three_rows_are_looked_at(project: Path) -> None:
    (project / "train.csv").write_text(table(3))
    assert "no validation rows" in said(project, "data.test=null", "data.validation=null")
    with pytest.raises(SoftPromptError, match=r"0\.2 of 3 rows is too little"):
        ask(project, "data.validation=0.2")


@pytest.mark.parametrize("name", ["check", "compare"])
def test_unusable_input_is_one_line(project: Path, name: str) -> None:
    def refused(*overrides: str) -> str:
        more = ["--output", str(project / "out")] if name == "compare" else []
        settings = [word for override in overrides for word in ("--set", override)]
        result = CliRunner().invoke(app, [name, str(project / "task.yaml"), *settings, *more])
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        *before, last = result.stderr.splitlines()
        assert last.startswith("error: ")
        assert all("done)" in line or line.startswith("answers are read by") for line in before)
        return last

    assert "task.labels: at least 2 are needed" in refused("task.labels=[negative]")
    assert "nothing.csv" in refused("data.test=nothing.csv")
    (project / "train.csv").write_text(table(8, "positive"))
    assert "all 8 rows have the label" in refused()
    (project / "train.csv").write_text(table(3))
    assert "0.2 of 3 rows is too little" in refused("data.validation=0.2")
    if name == "compare":
        assert "prompt.num_virtual_tokens: auto is for" in refused("prompt.num_virtual_tokens=auto")
