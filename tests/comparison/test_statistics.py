from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from softprompt.comparison.statistics import interval, paired_test
from softprompt.evaluation.row_scores import row_scores
from softprompt.tasks.metrics import classification_metrics
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task

GOLD = [i % 3 for i in range(60)]
ROWS = [Row({"text": str(i)}, label) for i, label in enumerate(GOLD)]
ANSWERS = [label if i % 4 else (label + 1) % 3 for i, label in enumerate(GOLD)]


def test_the_interval_is_scipys() -> None:
    scores = row_scores("accuracy", ROWS, ANSWERS)
    assert scores is not None
    theirs = bootstrap((scores,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(1))
    task = Task(template="{text}:", labels=["a", "b", "c"])
    found = interval(task, ROWS, [ANSWERS])
    assert found == pytest.approx([*theirs.confidence_interval], abs=0.03)
    assert found == interval(task, ROWS, [ANSWERS, ANSWERS])  # the mean of two equal runs


def test_macro_f1_is_that_of_the_rows_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class EveryRow:
        def integers(self, low: int, high: int, size: int) -> np.ndarray:
            return np.arange(size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: EveryRow())
    expected = f1_score(GOLD, ANSWERS, average="macro")
    whole = classification_metrics(GOLD, np.eye(4)[ANSWERS], ["a", "b", "c", "never"])["macro_f1"]
    assert whole == pytest.approx(expected)
    task = Task(template="{text}:", labels=["a", "b", "c", "never"], metric="macro_f1")
    assert interval(task, ROWS, [ANSWERS]) == pytest.approx([expected, expected])


def test_the_paired_test_is_mcnemars() -> None:
    ours, theirs = np.ones(20), np.array([1.0] * 12 + [0.0] * 8)
    found = paired_test(ours, theirs)
    assert (found.better, found.worse, found.difference) == (8, 0, 0.4)
    assert found.p == pytest.approx(2 * 0.5**8)
    assert paired_test(theirs, ours).p == found.p
    assert paired_test(ours, ours).p == 1


def test_bleu_has_no_interval() -> None:
    rows = [Row({"a": "x"}, None, " deep blue"), Row({"a": "y"}, None, " green")]
    task = Task(template="{a}", target="{b}", metric="bleu")
    assert interval(task, rows, [["blue", "green"]]) is None
