"""A task's rules, and how columns become text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from softprompt.errors import SoftPromptError
from softprompt.tasks import Task
from softprompt.text import validation_line

TEMPLATE = "Review: {text}\nSentiment:"


def line_of(**keys: object) -> str:
    with pytest.raises(SoftPromptError) as raised:
        Task.from_dict(keys, where="movie.yaml")
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith("movie.yaml: ")
    return line.removeprefix("movie.yaml: ")


class TestRendering:
    def test_columns_are_filled_in(self) -> None:
        task = Task(template="{premise}\n{hypothesis}?", labels=["no", "yes"])
        assert task.columns == ["premise", "hypothesis"]
        assert task.render({"premise": "It rains.", "hypothesis": "Wet", "more": "x"}) == "It rains.\nWet?"

    @given(st.text())
    def test_values_are_never_read_again(self, value: str) -> None:
        task = Task(template="<{text}|{{text}}|{other}>", labels=["a", "b"])
        rendered = task.render({"text": value, "other": "{text}"})
        assert rendered == "<" + value + "|{text}|{text}>"

    def test_a_column_named_twice_is_one_column(self) -> None:
        task = Task(template="{a} and {a}", target="{b}")
        assert (task.columns, task.target_columns) == (["a"], ["b"])
        assert task.render({"a": "x"}) == "x and x"

    @pytest.mark.parametrize("name", ["text", "Review Text", "review-text", "0", "été", "文"])
    def test_plain_names(self, name: str) -> None:
        assert Task(template=f"{{{name}}}", target="{y}").columns == [name]

    @pytest.mark.parametrize(
        ("template", "suffix"),
        [
            ("{text}", ""),
            ("{text}\nSentiment:", "\nSentiment:"),
            ("{a}{b} {{x}}", " {x}"),
        ],
    )
    def test_suffix_is_what_follows_the_last_column(self, template: str, suffix: str) -> None:
        assert Task(template=template, target="{y}").suffix == suffix

    def test_a_missing_column_is_named(self) -> None:
        with pytest.raises(SoftPromptError, match=r"no column 'text'; the columns are \['txt'\]"):
            Task(template=TEMPLATE, labels=["a", "b"]).render({"txt": "x"})

    def test_targets(self) -> None:
        assert Task(template="{q}", target=" {a}.").render_target({"a": "42"}) == " 42."
        assert Task(template="{q}", labels=["x", "y"]).render_target({"label": "x"}) == " x"


class TestDefaults:
    def test_metric_follows_the_kind(self) -> None:
        assert Task(template="{text}", labels=["a", "b"]).metric == "accuracy"
        assert Task(template="{text}", target=" {answer}").metric == "exact_match"
        assert Task(template="{text}", labels=None).metric == "exact_match"
        assert Task(template="{text}", labels=["a", "b"], metric="macro_f1").metric == "macro_f1"

    def test_free_text_from_a_label_column(self) -> None:
        assert Task(template="{text}").target_columns == ["label"]

    def test_numbers_are_labels(self) -> None:
        assert Task.from_dict({"template": "{text}", "labels": [0, 1]}).labels == ["0", "1"]

    def test_a_card_keeps_the_task(self) -> None:
        task = Task(template=TEMPLATE, labels=["a", "b"], metric="macro_f1")
        assert Task.from_dict(task.model_dump(mode="json")) == task


class TestBadTasks:
    @pytest.mark.parametrize(
        "template", ["{a.b}", "{a!r}", "{a:>3}", "{}", "{ a}", "{a[0]}", "{a", "a}", "{{a}", '{"a": {text}}']
    )
    @pytest.mark.parametrize("key", ["template", "target"])
    def test_stray_braces(self, key: str, template: str) -> None:
        line = line_of(**({"template": "{x}", "target": "{y}"} | {key: template}))
        assert line.startswith(f"{key}: cannot read")
        assert "write a brace itself twice" in line

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({}, "template: is missing"),
            ({"template": 3}, "template: Input should be a valid string, not 3"),
            ({"template": "Hello"}, "template: name at least one column"),
            ({"labels": []}, "labels: at least 2 are needed, not 0"),
            ({"labels": ["a"]}, "labels: at least 2 are needed, not 1"),
            ({"labels": ["a", "b", "a"]}, "labels: 'a' is there more than once"),
            ({"labels": ["a", " "]}, "labels: a label is empty"),
            ({"labels": [False, True]}, "labels: YAML reads yes, no, on and off as False"),
            ({"labels": ["a", 1.5]}, "labels.1: Input should be a valid string, not 1.5"),
            ({"labels": "ab"}, "labels: Input should be a valid list, not 'ab'"),
            ({"template": "{label}", "labels": ["a", "b"]}, "labels: the template names {label}"),
            ({"labels": ["a", "b"], "target": " {answer}"}, "target: with labels the only column here is"),
            ({"labels": ["a", "b"], "target": " {label} {text}"}, "target: with labels the only column"),
            ({"target": "yes"}, "target: name {label}, or for free text a column"),
            ({"metric": "f1"}, "metric: f1 does not measure free text: choose one of exact_match"),
            ({"metric": "accuracy"}, "metric: accuracy does not measure free text: choose one of exact_match"),
            ({"labels": ["a", "b"], "metric": "bleu"}, "metric: bleu does not measure classification"),
            ({"metrics": "bleu"}, "metrics: unknown key"),
            ({"template": "{text}\ud83d"}, "template: 'utf-8' codec can't encode character '\\ud83d'"),
            ({"labels": ["a", "\ud83d"]}, "labels.1: 'utf-8' codec can't encode character '\\ud83d'"),
        ],
    )
    def test_the_key_is_named(self, keys: dict[str, object], expected: str) -> None:
        given = {"template": "{text}"} | keys if keys else {}
        assert line_of(**given).startswith(expected)

    def test_all_faults_in_one_line(self) -> None:
        line = line_of(labels=["a"], extra=1)
        assert line.split("; ")[0] == "template: is missing"
        assert "labels: at least 2" in line
        assert "extra: unknown key" in line

    @pytest.mark.parametrize("data", [None, "text", [1], {1: 2}])
    def test_not_a_mapping(self, data: object) -> None:
        with pytest.raises(SoftPromptError, match=r"^card\.json: "):
            Task.from_dict(data, where="card.json")

    def test_the_constructor_speaks_in_one_line_too(self) -> None:
        with pytest.raises(SoftPromptError, match=r"^task: labels: at least 2 are needed"):
            Task(template="{text}", labels=["a"])

    def test_unchangeable(self) -> None:
        with pytest.raises(ValidationError):
            Task(template="{text}").metric = "bleu"  # type: ignore[misc]

    def test_inside_another_model_the_whole_path_is_named(self) -> None:
        class File(BaseModel):
            task: Task

        with pytest.raises(ValidationError) as raised:
            File.model_validate({"task": {"template": "{text}", "labels": ["a"], "x" * 200: 1}})
        line = validation_line(raised.value, "movie.yaml")
        assert line.startswith("movie.yaml: task.labels: at least 2 are needed")
        with pytest.raises(ValidationError) as raised:
            File.model_validate({"task": "y" * 500})
        line = validation_line(raised.value, "movie.yaml")
        assert line.startswith("movie.yaml: task: Input should be")
        assert len(line) < 250
