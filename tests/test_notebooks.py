"""The course notebooks: made of one source, run to the end with small numbers."""

from __future__ import annotations

import ast
import json
from typing import Any

import nbformat
import pytest
from scripts.notebooks import FILES, PARAMETERS, SOURCE, build, run

SMALL = """
VIRTUAL_TOKENS = 4
TRAINING_ROWS, VALIDATION_ROWS, TEST_ROWS = 32, 6, 6
STEPS = 2
STEPS_OF_THE_SECOND_TASK = 1
"""
MOST_BYTES = 500_000


@pytest.fixture(params=FILES)
def committed(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A language, and the notebook that is in the repository."""
    return request.param, nbformat.read(FILES[request.param], as_version=4)


def test_what_is_committed_is_what_the_source_says(committed: tuple[str, Any]) -> None:
    language, notebook = committed
    nbformat.validate(notebook)
    built = build(language)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in built.cells]
    assert notebook.metadata == built.metadata
    assert not any(mark in cell.source for cell in notebook.cells for mark in "«»")


def test_it_was_run_from_top_to_end_without_a_warning(committed: tuple[str, Any]) -> None:
    language, notebook = committed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == SOURCE.read_text("utf-8").count("plt.show()")
    assert FILES[language].stat().st_size < MOST_BYTES
    assert "/tmp" not in json.dumps(outputs)


def test_both_languages_do_the_same() -> None:
    """Texts and comments aside, the code is the same."""
    english, spanish = (build(language).cells for language in FILES)
    assert [cell.cell_type for cell in english] == [cell.cell_type for cell in spanish]
    for one, other in zip(english, spanish, strict=True):
        if one.cell_type == "code":
            compile(one.source, one.id, "exec")
            compile(other.source, other.id, "exec")
            assert skeleton(one.source) == skeleton(other.source)
        else:
            assert one.source != other.source


def skeleton(code: str) -> str:
    """The code's syntax, with all texts blank."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


@pytest.mark.real
@pytest.mark.long
def test_it_runs_from_top_to_end() -> None:
    """The English one; the Spanish one differs in texts only, see above."""
    notebook = build("en")
    [cell] = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]
    names = {line.split(" = ")[0] for line in cell.source.splitlines() if " = " in line}
    assert names == {line.split(" = ")[0] for line in SMALL.splitlines() if " = " in line}
    cell.source = SMALL
    outputs = [output for cell in run(notebook, seconds=120).cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "the same start: True" in said
    assert "loaded as it was saved: True" in said
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 5
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
