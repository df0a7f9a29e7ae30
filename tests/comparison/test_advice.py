"""`softprompt advise`, from Python and on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from softprompt import SoftPrompt, SoftPromptError, load_base
from softprompt.cli import app
from softprompt.comparison import Advice, advice, advise
from softprompt.comparison.costs import Costs
from softprompt.comparison.measured import Measured, Method, Step, Variant
from softprompt.training.taskfile import load_task_file
from tests.comparison.test_compare import base_folder, project, table

__all__ = ["base_folder", "project"]  # fixtures

COSTS = Costs(512, 100_000, 40_000, 2.0, 0.05, 400.0, 1_500_000_000)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the benchmarks have measured: nothing, unless a test says otherwise."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(advice, "read_measured", lambda: Measured(**found))
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "measure_costs", lambda *_: COSTS)


def ask(project: Path, *overrides: str) -> Advice:
    return advise(load_task_file(project / "task.yaml", overrides))


def said(project: Path, *overrides: str, about: str = "") -> str:
    """All sentences, one a line, each with its source."""
    found = ask(project, *overrides).statements
    assert all(one.text.endswith(".") and one.source for one in found)
    return "\n".join(f"{one.text} [{one.source}]" for one in found if one.about.startswith(about))


def test_costs_are_measured_on_real_steps(project: Path, base_folder: Path, tmp_path: Path) -> None:
    found = ask(project)
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
    assert found.num_virtual_tokens == 16
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(document) == {"name", "num_virtual_tokens", "costs", "statements"}
    assert set(document["statements"][0]) == {"about", "text", "source"}


@pytest.mark.usefixtures("quick")
def test_a_sound_task_file_is_not_blamed(project: Path) -> None:
    (project / "train.csv").write_text(table(200))
    for name, words in (("dev", ("dull", "fair")), ("test", ("sad", "glad"))):
        lines = "".join(f"{words[i % 2]} {i},{('negative', 'positive')[i % 2]}\n" for i in range(120))
        (project / f"{name}.csv").write_text("text,label\n" + lines)
    data = said(project, about="data")
    assert data.startswith("There are 200 training, 120 validation, 120 test rows.")
    assert "There are 2 labels; always answering 'negative' would be right for 50.0%" in data
    assert len(data.splitlines()) == 2
    words = said(project, about="words")
    assert "template" not in words
    assert "init_text" not in words


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_with_the_data_is_said(project: Path) -> None:
    lines = [f"good {i},positive" for i in range(30)] + ["bad 1,negative", "bad 1,positive", "good 2,positive"]
    (project / "train.csv").write_text("text,label\n" + "\n".join([*lines, "x" * 500 + ",negative"]) + "\n")
    (project / "test.csv").write_text("text,label\ngood 1,positive\ngood 2,positive\nnew,negative\n")
    data = said(project, "data.validation=null", about="data")
    for words in (
        "34 training rows are few: 6 steps of 4 rows show each of them 1 times",
        "3 test rows measure a share of right answers with a standard error of up to 28.9%",
        "There are no validation rows",
        "2 texts of the test rows are among the training rows too",
        "1 training texts stand there with more than one answer",
        "1 training rows repeat an earlier one",
        "1 training texts do not fit the base's context of 256 tokens",
        "always answering 'positive' would be right for 94.1%",
        "The labels are uneven (32 rows of 'positive', 2 of 'negative')",
    ):
        assert words in data
    assert "uneven" not in said(project, "data.validation=null", "task.metric=macro_f1", about="data")
    assert "There are no test rows" in said(project, "data.test=null", about="data")
    missing = said(project, "task.labels=[negative, positive, mixed]", about="data")
    assert "No training row has the label mixed" in missing


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_with_the_words_is_said(project: Path) -> None:
    def words(*overrides: str) -> str:
        return said(project, *overrides, about="words")

    assert "The template ends with a space" in words('task.template="Text: {text}\\nMood: "')
    assert "Nothing separates the template's end from the target, as in 'Mood:negative'" in words(
        'task.target="{label}"'
    )
    assert "Nothing separates" not in words('task.target="{label}"', 'task.template="{text}\\nMood:\\n"')
    assert "There is no prompt.init_text" in words("prompt.init_text=null")
    assert "The prompt starts from init: random" in words("prompt.init=random", "prompt.init_text=null")
    assert "'negative' takes 9" in words()  # one token for each byte of " negative"
    few = words("prompt.init=labels", "prompt.init_text=null", "prompt.num_virtual_tokens=1")
    assert "2 labels do not fit 1 virtual tokens" in few


@pytest.mark.usefixtures("quick")
def test_without_measurements_papers_alone_are_quoted(project: Path) -> None:
    found = said(project)
    assert "benchmarks/" not in found
    assert "Start with 16 virtual tokens" in found
    assert "the smaller the model the further behind" in found
    assert "33 virtual tokens are many" in said(project, "prompt.num_virtual_tokens=33")
    assert "are many" not in said(project, "prompt.num_virtual_tokens=32")
    assert "A run takes about 7 minutes: 6 steps of 2 s and 2 validations of 8 rows at 0.05 s" in found
    auto = said(project, "prompt.num_virtual_tokens=auto")
    assert "7 minutes for each length" in auto
    assert "num_virtual_tokens: auto" not in auto
    assert "num_virtual_tokens: auto" in found


@pytest.mark.usefixtures("quick")
def test_measurements_are_quoted_with_their_file(project: Path, known: dict[str, Any]) -> None:
    def variants(part: str, **scores: float) -> list[Variant]:
        return [
            Variant(
                part=part,
                task="films",
                budget="160 steps of 8",
                variant=name.replace("_", " "),
                score=score,
                seeds=1,
                n=400,
            )
            for name, score in scores.items()
        ]

    lengths = {"P = 1": 0.70, "P = 4": 0.87, "P = 8": 0.86, "P = 16": 0.87, "P = 100": 0.86}
    known["variants"] = [
        *variants("length", **lengths),
        *variants("options", none=0.86, best_of_4_starts=0.88, averaged_weights=0.85),
        *variants("rows", **{"32 rows": 0.7, "all rows": 0.86}),
        *variants("rate", **{"rate 0.01": 0.86, "rate 0.03": 0.88}),
    ]
    known["steps"] = [
        Step(base="smol", num_virtual_tokens=count, batch_size=16, milliseconds=ms)
        for count, ms in ((20, 1815.0), (100, 2249.0))
    ]
    known["methods"] = [
        Method(
            task="films",
            metric="accuracy",
            method=method,
            score=score,
            trainable_parameters=9,
            base_parameters=134_515_008,
        )
        for method, score in (("prompt", 0.87), ("lora", 0.88))
    ]
    found = said(project, "recipe.learning_rate=1e-4", "prompt.num_virtual_tokens=64")
    # The standard error of 0.87 on 400 rows is 0.017: 8 is as good as 16; 4 is too few to advise.
    assert ask(project).num_virtual_tokens == 8
    for line in (
        "Start with 8 virtual tokens: they scored 0.860, and the best length, 16, 0.870; .* 0.017. "
        "[benchmarks/results/quality.json, length on films (160 steps of 8)]",
        "Of the options, best of 4 starts gained 0.020. "
        "[benchmarks/results/quality.json, options on films (160 steps of 8)]",
        "Of the options, averaged weights did not help (-0.010). "
        "[benchmarks/results/quality.json, options on films (160 steps of 8)]",
        "What more rows brought elsewhere: 32 rows 0.700, all rows 0.860. [benchmarks/results/quality.json, rows on",
        "recipe.learning_rate 0.0001 is below every rate that was measured; 0.03 had the best score "
        "(0.01: 0.860, 0.03: 0.880). Try learning_rate: auto. "
        "[benchmarks/results/quality.json, rate on films (160 steps of 8)]",
        "took 1,815 ms with 20 virtual tokens and 2,249 ms with 100. [benchmarks/results/training_step.json, B = 16]",
        "Measured with a base of 134,515,008 parameters on films, accuracy: prompt 0.870, lora 0.880.",
    ):
        pattern = re.escape(line).replace(r"\.\*", ".*")
        assert re.search(pattern, found), line
    assert "below every rate" not in said(project)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["advise", *map(str, arguments)])


@pytest.mark.usefixtures("quick")
def test_the_command_prints_sentences_or_json(project: Path) -> None:
    shown = command(project / "task.yaml")
    assert shown.exit_code == 0, shown.output
    for line in shown.stdout.splitlines():
        assert re.fullmatch(r"(data|words|base|length|next|costs): .+\. \[.+\]", line)
    printed = command(project / "task.yaml", "--json")
    document = json.loads(printed.stdout)
    assert [f"{one['about']}: {one['text']} [{one['source']}]" for one in document["statements"]] == (
        shown.stdout.splitlines()
    )


@pytest.mark.usefixtures("quick")
def test_three_rows_are_advised_on(project: Path) -> None:
    (project / "train.csv").write_text(table(3))
    assert "3 training rows are few" in said(project, "data.test=null", "data.validation=null")
    with pytest.raises(SoftPromptError, match=r"0\.2 of 3 rows is too little"):
        ask(project, "data.validation=0.2")


@pytest.mark.parametrize("name", ["advise", "compare"])
def test_unusable_input_is_one_line(project: Path, name: str) -> None:
    def refused(*overrides: str) -> str:
        more = ["--output", str(project / "out")] if name == "compare" else []
        settings = [word for override in overrides for word in ("--set", override)]
        result = CliRunner().invoke(app, [name, str(project / "task.yaml"), *settings, *more])
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        *before, last = result.stderr.splitlines()
        assert last.startswith("error: ")
        assert all("done)" in line for line in before)
        return last

    assert "task.labels: at least 2 are needed" in refused("task.labels=[negative]")
    assert "nothing.csv" in refused("data.test=nothing.csv")
    (project / "train.csv").write_text(table(8, "positive"))
    assert "all 8 rows have the label" in refused()
    (project / "train.csv").write_text(table(3))
    assert "0.2 of 3 rows is too little" in refused("data.validation=0.2")
    if name == "compare":
        assert "prompt.num_virtual_tokens: auto is for" in refused("prompt.num_virtual_tokens=auto")
