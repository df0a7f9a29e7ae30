from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import (
    Base,
    Evaluation,
    Row,
    SoftPrompt,
    SoftPromptError,
    Task,
    WrongBaseError,
    predict,
    train,
    write_report,
)
from softprompt.reporting.findings import Findings, find_mistakes
from tests.conftest import make_base
from tests.reporting.document import Document
from tests.training.runs import TASK, learn, recipe, rows
from tests.training.test_monitor import StopAt

FIGURES = [
    "Loss",
    "Validation",
    "How strongly the loss pulls at each virtual token",
    "Norms of the virtual tokens against those of the words",
    "Confusion matrix of the validation rows",
    "Likeness between the virtual tokens",
]
CHECKS = rows(12, 40)


@pytest.fixture(scope="module")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, folder = make_base(), tmp_path_factory.mktemp("runs") / "mood"
    run = learn(base, folder, recipe=recipe(learning_rate=1e-5))
    test = Evaluation(n=7, accuracy=0.625, seconds=0.5)
    assert write_report(folder, base=base, validation=CHECKS, test=test) == folder / "report.html"
    assert run.diagnoses
    return folder


@pytest.fixture
def finished(_finished: Path, tmp_path: Path) -> Path:
    """A run's folder of one's own."""
    return Path(shutil.copytree(_finished, tmp_path / "mood"))


def shown(folder: Path, **options: Any) -> Document:
    return Document(write_report(folder, **options).read_text("utf-8"))


def test_a_report_shows_the_whole_run(finished: Path) -> None:
    document = Document((finished / "report.html").read_text("utf-8"))
    assert [svg["aria-label"] for svg in document.all("svg")] == FIGURES
    for words in (
        "Training run: mood",
        "accuracy 62.5% on 7 test rows",
        "learning rate too low",
        "raise recipe.learning_rate, now 1e-05",
        "tiny-llama",
        "The worst mistakes on the validation rows",
        "a hint, not a translation",
        "Asked to continue the prompt alone",
        "learning_rate",
        '"format_version": 2',
    ):
        assert words in document.text, words
    assert "There is no" not in document.text
    assert not document.all("script")
    assert len(document.ids) == len(set(document.ids))
    assert not [path.name for path in finished.iterdir() if path.name.startswith(".report")]


def test_a_report_is_made_again_from_the_folder_alone(finished: Path) -> None:
    before = (finished / "report.html").read_bytes()
    write_report(finished)
    assert (finished / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("log.jsonl", "There is no curve: log.jsonl is missing"),
        ("monitor.jsonl", "There is no record of the monitor: monitor.jsonl is missing or empty"),
        ("prompt", "There is no card: the run has left no prompt yet"),
        ("prompt/card.json", "There is no card: card.json is missing"),
        ("report.json", "There is no list of nearest words: it takes the base"),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(finished: Path, file: str, said: str) -> None:
    path = finished / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    document = shown(finished)
    assert len(document.all("section")) == 9
    assert len(document.all("svg")) >= 3
    assert said in document.text


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("run.json", "learning_rate"),  # the card has the recipe too
        ("log.jsonl", "There is no curve: nothing was logged yet"),
        ("monitor.jsonl", "There is no record of the monitor"),
        ("prompt/card.json", "card.json is damaged"),
        ("report.json", "report.json is damaged: delete it"),
    ],
)
def test_what_is_damaged_is_said_and_the_rest_is_shown(finished: Path, file: str, said: str) -> None:
    (finished / file).write_bytes(b'\xff{"half": ')
    document = shown(finished)
    assert len(document.all("svg")) >= 3
    assert said in document.text


def test_a_run_that_was_killed_is_shown_as_far_as_it_came(tiny_base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_base, folder, callbacks=[StopAt(9)])
    for name in ("log.jsonl", "monitor.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"kind": "measurement", "step": 10, "loss": 1.')
    document = shown(folder)
    assert [svg["aria-label"] for svg in document.all("svg")] == FIGURES[:4]
    assert "the run has left no prompt yet" in document.text
    assert "This prompt has not been measured" in document.text


def test_a_resumed_run_is_drawn_once(finished: Path) -> None:
    before = (finished / "report.html").read_bytes()
    for name in ("log.jsonl", "monitor.jsonl"):
        lines = (finished / name).read_text("utf-8").splitlines(keepends=True)
        lost = [json.dumps(json.loads(line) | {"loss": 99.0}) + "\n" for line in lines[3:5]]  # measured, then killed
        (finished / name).write_text("".join(lines[:5] + lost + lines[3:]), "utf-8")
    write_report(finished)
    assert (finished / "report.html").read_bytes() == before


def test_a_run_without_validation_says_so(tiny_base: Base, tmp_path: Path) -> None:
    learn(tiny_base, tmp_path / "run", validation=None, recipe=recipe(monitor=False))
    document = shown(tmp_path / "run", base=tiny_base)
    assert "Nothing was validated" in document.text
    assert "nothing was measured" in document.text
    assert "There is no confusion matrix" in document.text
    assert "There is no record of the monitor" in document.text
    assert [svg["aria-label"] for svg in document.all("svg")] == ["Loss", "Likeness between the virtual tokens"]


def test_scripts_in_texts_and_labels_are_text(tiny_base: Base, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    task = Task(template="{text}:", labels=["yes", bad])
    hostile = [Row({"text": f"{bad}{i}"}, i % 2, " " + ["yes", bad][i % 2]) for i in range(8)]
    prompt = SoftPrompt.from_text(tiny_base, "<b>mood", 4)
    train(
        tiny_base, prompt, task, train=hostile, validation=hostile, recipe=recipe(max_steps=2), output=tmp_path / "run"
    )
    text = write_report(tmp_path / "run", base=tiny_base, validation=hostile).read_text("utf-8")
    document = Document(text)
    assert not document.all("script")
    assert not document.all("b")
    assert "<script" not in text
    assert bad in document.text


def test_free_text_is_reported_by_its_metric(tiny_base: Base, tmp_path: Path) -> None:
    task = Task(template="{text}:", target=" {text}", max_new_tokens=2)
    some = [Row({"text": f"m{i}"}, None, f" m{i}", number=i + 1) for i in range(6)]
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    train(tiny_base, prompt, task, train=some, validation=some, recipe=recipe(max_steps=2), output=tmp_path / "run")
    document = shown(tmp_path / "run", base=tiny_base, validation=some)
    assert "exact match 0.0% on 6 validation rows" in document.text
    assert "The worst mistakes" in document.text
    assert "There is no confusion matrix: it takes a task with labels" in document.text


def test_mistakes_are_the_most_confident_wrong_answers(tiny_base: Base) -> None:
    prompt = SoftPrompt.from_vocabulary(tiny_base, 6)
    checks = rows(80, by_chance=1)
    answers = predict(tiny_base, prompt, TASK, [row.columns for row in checks])
    assert TASK.labels is not None
    wrong = [
        (-answer.probabilities[answer.label], row.place, TASK.labels[row.label])
        for row, answer in zip(checks, answers, strict=True)
        if answer.probabilities is not None and answer.label != TASK.labels[row.label]  # type: ignore[index]
    ]
    assert len(wrong) > 20
    found = find_mistakes(tiny_base, prompt, TASK, checks)
    assert [(mistake.place, mistake.right) for mistake in found] == [(p, r) for _, p, r in sorted(wrong)[:20]]
    long = find_mistakes(tiny_base, prompt, TASK, [Row({"text": "m\n" * 120}, label, "") for label in (0, 1)])
    assert len(long) == 1
    assert len(long[0].text) <= 300
    assert "\n" not in long[0].text


def test_what_cannot_be_reported_is_refused(finished: Path, tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match=r"is not a run's folder: it has no run\.json"):
        write_report(tmp_path)
    with pytest.raises(SoftPromptError, match="needs the base"):
        write_report(finished, validation=CHECKS)
    with pytest.raises(WrongBaseError, match="tiny-llama"):
        write_report(finished, base=make_base(seed=1))
    (finished / "report.html").unlink()
    (finished / "report.html").mkdir()
    with pytest.raises(SoftPromptError, match=r"report\.html: cannot be written"):
        write_report(finished)


def test_findings_are_kept(finished: Path) -> None:
    found = Findings.read(finished)
    assert found.test is not None
    assert found.test.accuracy == 0.625
    assert found.inspection is not None
    prompt = SoftPrompt.load(finished / "prompt")
    assert torch.allclose(torch.tensor([one.norm for one in found.inspection.tokens]), prompt.embeddings.norm(dim=1))
    assert json.loads((finished / "report.json").read_text())["mistakes"] is not None


def test_findings_of_another_prompt_are_not_shown(finished: Path, tiny_base: Base) -> None:
    prompt = SoftPrompt.load(finished / "prompt")
    SoftPrompt(prompt.embeddings + 1, prompt.card).save(finished / "prompt", force=True)
    assert "what report.json holds is of another prompt" in shown(finished).text
    assert "The worst mistakes" not in shown(finished, base=tiny_base).text
    assert Findings.read(finished).test is None


def test_findings_are_added_to(finished: Path, tiny_base: Base) -> None:
    before = Findings.read(finished)
    assert "on 9 test rows" in shown(finished, test=Evaluation(n=9, accuracy=0.5, seconds=0.1)).text
    after = Findings.read(finished)
    assert (after.inspection, after.mistakes) == (before.inspection, before.mistakes)
