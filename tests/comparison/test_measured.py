"""The figures that the package ships are those of the repository's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import figures
from benchmarks.quality import VARIANTS

from softprompt.comparison.measured import Measured, Variant, read_measured

SETTING = {"steps": 160, "batch_size": 8, "learning_rate": 0.01}


def test_the_shipped_figures_are_those_of_the_results() -> None:
    assert read_measured() == figures.collect(), "write them again: python -m benchmarks.figures"
    assert read_measured().steps


def test_they_are_means_of_what_was_measured(tmp_path: Path) -> None:
    def row(variant: str, seed: int, **found: Any) -> dict[str, Any]:
        keys = VARIANTS["length"][variant]
        return (
            {"part": "length", "task": "films", "variant": variant, "seed": seed, "set": keys, "n": 50}
            | SETTING
            | found
        )

    done = {"method": "lora", "status": "done", "test": {"accuracy": 0.9}, "trainable_parameters": 3}
    rows = [
        row("P = 1", 0, score=0.5),
        row("P = 1", 1, score=0.7),
        row("P = 1", 2, diverged="the loss became NaN"),
        row("P = 1", 0, score=0.2, steps=80),  # with another budget
        row("P = 4", 0, diverged="the loss became NaN"),
        row("P = 4", 1, score=0.9, set=[*VARIANTS["length"]["P = 4"], "recipe.max_steps=9"]),  # another measurement
    ]
    methods = [done | {"base_parameters": 10}, {"method": "full", "status": "diverged"}]
    document = {"rows": rows, "methods": [{"name": "films", "metric": "accuracy", "rows": methods}]}
    (tmp_path / "quality.json").write_text(json.dumps(document))
    found = figures.collect(tmp_path)
    assert [one.model_dump() for one in found.variants] == [
        {"part": "length", "task": "films", "budget": "160 steps of 8", "variant": "P = 1"}
        | {"score": pytest.approx(0.6), "seeds": 2, "n": 50},
        {"part": "length", "task": "films", "budget": "80 steps of 8", "variant": "P = 1"}
        | {"score": 0.2, "seeds": 1, "n": 50},
    ]
    assert [(one.method, one.score) for one in found.methods] == [("lora", 0.9)]
    assert found.steps == []


def test_scores_are_over_the_tasks_that_all_variants_share() -> None:
    found = [("a", "x", 0.1), ("b", "x", 0.2), ("a", "y", 0.9), ("a", "z", 0.3), ("b", "z", 0.6)]
    variants = [
        Variant(part="p", task=task, budget="9 steps of 8", variant=name, score=score, seeds=1, n=9)
        for name, task, score in found
    ]
    other = Variant(part="p", task="y", budget="5 steps of 8", variant="b", score=0.5, seeds=1, n=9)
    known = Measured(variants=[*variants, other])
    assert known.tasks("p", ["a", "b"]) == ["x (9 steps of 8)", "z (9 steps of 8)"]
    assert known.rows("p", ["a", "b"]) == 18
    assert known.scores("p") == pytest.approx({"a": 0.2, "b": 0.4})
    assert known.scores("p", ["a"]) == pytest.approx({"a": 1.3 / 3})
    assert known.scores("p", ["a", "c"]) == {}
    assert known.scores("q") == {}
