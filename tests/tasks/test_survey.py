"""What a table is taken for before there is a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt import SoftPromptError
from softprompt.tasks.survey import safe_name, survey

TEXTS = ["where is my card today", "the card was lost abroad", "my top up has failed", "please help me with it"]


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def table(header: str, *, labels: tuple[str, str] = ("ham", "spam"), first: bool = True) -> list[str]:
    rows = [(labels[i % 2], f"{TEXTS[i % 4]} {i}") for i in range(20)]
    return [*([header] if header else []), *(",".join(row if first else row[::-1]) for row in rows)]


@pytest.mark.parametrize("header", ["label,text", "kind,comment", "spam,comment", "v1,v2"])
def test_a_header_is_one_even_where_it_names_a_label(tmp_path: Path, header: str) -> None:
    label, text = header.split(",")
    found = survey(write(tmp_path / "a.csv", table(header)))
    assert (found.label, found.texts, found.reading.header) == (label, [text], None)
    assert found.rows == 20


@pytest.mark.parametrize("first", [True, False])
def test_a_first_line_that_is_a_row_is_one(tmp_path: Path, first: bool) -> None:
    found = survey(write(tmp_path / "a.csv", table("", first=first)))
    assert (found.label, found.texts, found.rows) == ("label", ["text"], 20)


def test_a_column_without_values_is_no_answer(tmp_path: Path) -> None:
    found = survey(write(tmp_path / "a.csv", [",text,label,,", "0,a joy,positive,,"]))
    assert (found.texts, found.answer) == (["text"], "label")


def test_spellings_of_a_label_are_put_together(tmp_path: Path) -> None:
    lines = ["text,label", *(f"{TEXTS[i % 4]} {i},{('good', 'Good', 'good ', 'bad')[i % 4]}" for i in range(40))]
    counts, mapping = survey(write(tmp_path / "a.csv", lines)).labels()
    assert counts == {"bad": 10, "good": 30}
    assert mapping == {"Good": "good", "good ": "good"}
    numbers = ["text,label", *(f"{TEXTS[i % 4]} {i},{('1', '1.0', '0')[i % 3]}" for i in range(30))]
    assert survey(write(tmp_path / "b.csv", numbers)).labels() == ({"0": 10, "1": 20}, {"1.0": "1"})


def test_numbers_of_rows_are_no_labels(tmp_path: Path) -> None:
    lines = ["id,text,label", *(f"{i},{TEXTS[i % 4]} {i},{('x', 'y')[i % 2]}" for i in range(30))]
    assert survey(write(tmp_path / "a.csv", lines)).label == "label"
    with pytest.raises(SoftPromptError, match="has one value only; choose another"):
        survey(write(tmp_path / "b.csv", ["text,label", *(f"{text},x" for text in TEXTS)]), label="label")


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("text", "text"),
        ("Der Text", "Der Text"),
        ("#1 String", "1_String"),
        ("a/b", "a_b"),
        ("label", "label_"),
        ("?", "text"),
    ],
)
def test_a_template_can_name_any_column(column: str, name: str) -> None:
    assert safe_name(column, []) == name
    assert safe_name(column, [name]) == f"{name}_"
