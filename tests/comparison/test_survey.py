from __future__ import annotations

from softprompt import Row, Task
from softprompt.comparison.survey import survey
from tests.conftest import make_tokenizer

TASK = Task(template="{text}:", labels=["a", "bcd"])


def test_rows_and_words_are_counted() -> None:
    training = [Row({"text": text}, label) for text, label in (("x", 0), ("x", 0), ("y", 1), ("y", 0), ("z" * 50, 0))]
    parts = {"training": training, "test": [Row({"text": "y"}, 1), Row({"text": "x"}, 0), Row({"text": "w"}, 0)]}
    found = survey(parts, TASK, make_tokenizer(), 30)
    assert found.rows == {"training": 5, "test": 3}
    assert found.truncated == {"training": 1, "test": 0}
    assert found.shared == {("training", "test"): 2}
    assert (found.repeated, found.contradictory) == (1, 1)
    assert found.labels == {"a": 4, "bcd": 1}
    assert next(iter(found.labels)) == "a"
    assert found.label_tokens == {"a": 2, "bcd": 4}  # bytes, the space before them included


def test_free_text_has_no_labels() -> None:
    task = Task(template="{text}:", target=" {answer}", max_new_tokens=5)
    rows = [Row({"text": text}, target=target) for text, target in (("x", " 1"), ("x", " 2"), ("y", " 1"))]
    found = survey({"training": rows}, task, make_tokenizer(), None)
    assert (found.labels, found.label_tokens) == ({}, {})
    assert (found.repeated, found.contradictory) == (0, 1)
    assert found.shared == {}
