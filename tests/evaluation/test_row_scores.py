from __future__ import annotations

import pytest

from softprompt import Row
from softprompt.evaluation.row_scores import row_scores


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_labels_are_right_or_wrong(metric: str) -> None:
    rows = [Row({"a": "x"}, label) for label in (0, 1, 2)]
    scores = row_scores(metric, rows, [0, 2, 2])  # type: ignore[arg-type]
    assert scores is not None
    assert scores.tolist() == [1, 0, 1]


def test_free_text_is_scored_row_by_row_and_bleu_not_at_all() -> None:
    rows = [Row({"a": "x"}, None, " deep blue"), Row({"a": "y"}, None, " green")]
    scores = row_scores("token_f1", rows, ["blue", "green"])
    assert scores is not None
    assert scores.tolist() == pytest.approx([2 / 3, 1])
    assert row_scores("bleu", rows, ["blue", "green"]) is None
