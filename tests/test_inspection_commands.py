"""The commands that look at prompts and runs: inspect, prune, report, and what train leaves for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from softprompt import PromptLibrary, SoftPrompt
from softprompt.bases.load import load_base
from softprompt.commands.inspection_tables import quoted
from tests.conftest import make_base
from tests.reporting.document import Document
from tests.test_cli import make_project, printed, refused, run, save_base


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    make_project(folder, save_base(make_base(), folder / "base"))
    assert run("train", folder / "task.yaml", "--output", folder / "run").exit_code == 0
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a task with its data and a finished run, `run`."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("base"))
    monkeypatch.chdir(folder)
    return folder


PROMPT = Path("run/prompt")


def test_train_leaves_a_report_and_says_what_looks_wrong(project: Path) -> None:
    slow = ["--set", "recipe.learning_rate=1e-5", "--set", "recipe.warmup_steps=0", "--output", "slow"]
    result = run("train", "task.yaml", *slow)
    assert result.exit_code == 0
    assert "learning rate too low: one step moves" in result.stdout
    assert "The whole run, for a browser: slow/report.html" in result.stdout
    told = [line for line in result.stderr.splitlines() if "one step moves a virtual token" in line]
    assert told
    assert all(line.startswith("step ") for line in told)
    assert "update 0.00%" in result.stderr
    document = Document((project / "slow" / "report.html").read_text("utf-8"))
    assert "learning rate too low" in document.text
    assert "on 10 test rows" in document.text
    quiet = run("train", "task.yaml", "--set", "recipe.monitor=false", "--output", "unwatched", "--json")
    found = json.loads(quiet.stdout)
    assert found["report"] == "unwatched/report.html"
    assert found["diagnoses"] == []
    assert "update" not in quiet.stderr


def test_report_is_written_again(project: Path) -> None:
    (project / "run" / "report.html").unlink()
    assert printed("report", "run") == {"report": "run/report.html"}
    assert "Nearest words" in (project / "run" / "report.html").read_text("utf-8")
    assert "is not a run's folder" in refused("report", "run/prompt")


def test_inspect_looks_for_leaks(project: Path) -> None:
    found = printed("inspect", PROMPT, "--leak", "train.csv", "--unseen", "dev.csv")
    assert set(found) == {"recovery", "membership", "canaries", "private", "caption"}
    assert 0 <= found["membership"]["auc_interval"][0] <= found["membership"]["auc"] <= 1
    assert found["canaries"] is None
    shown = run("inspect", PROMPT, "--leak", "train.csv").stdout
    assert "virtual tokens that read as a training text" in shown
    assert "give rows that the prompt has not learned with --unseen" in shown
    assert "not a proof" in shown
    assert run("inspect", PROMPT, "--leak", "train.csv", "--data", "dev.csv").exit_code == 2
    assert run("inspect", PROMPT, "--unseen", "dev.csv").exit_code == 2
    assert "no such file" in refused("inspect", PROMPT, "--leak", "none.csv")


def test_inspect_prints_its_document(project: Path) -> None:
    PromptLibrary("library").add("mood", PROMPT)
    found = printed("inspect", PROMPT, "--data", "dev.csv", "--library", "library")
    prompt = SoftPrompt.load(PROMPT)
    assert [token["norm"] for token in found["tokens"]] == pytest.approx(prompt.embeddings.norm(dim=1).tolist())
    assert [token["start"] for token in found["tokens"]] == list("Mood")
    assert all(token["importance"] is not None for token in found["tokens"])
    assert found["map"]["names"] == ["mood@1"]
    bare = printed("inspect", PROMPT)
    assert bare["importance"] is bare["map"] is None


def test_inspect_prints_tables_for_people(project: Path) -> None:
    PromptLibrary("library").add("mood", PROMPT)
    result = run("inspect", PROMPT, "--data", "dev.csv", "--library", "library")
    assert result.exit_code == 0
    for words in ("nearest by cosine", "importance", "drift", "a hint, not a translation", "Most alike", "mood@1"):
        assert words in result.stdout, words
    plain = run("inspect", PROMPT)
    assert "importance" not in plain.stdout
    assert "Asked to continue the prompt alone" in plain.stdout


def test_nothing_in_a_token_reaches_the_terminal() -> None:
    assert quoted("a\x1b[31m\x9b[b]\n\u202e") == '"a\\u001b[31m\\u009b[b]\\n\\u202e"'


def test_a_prompt_of_pefts_is_inspected_without_a_task(project: Path, finished: Path) -> None:
    prompt = SoftPrompt(torch.ones(2, 32))
    prompt.save("foreign")
    Path("foreign/card.json").unlink()
    assert "which base it is for" in refused("inspect", "foreign")
    found = printed("inspect", "foreign", "--base", finished / "base")
    assert found["drift_unknown"] is not None
    assert "what its task is" in refused("inspect", "foreign", "--base", finished / "base", "--data", "dev.csv")
    assert run("inspect", PROMPT, "--task", "task.yaml").exit_code == 2


def test_what_cannot_be_inspected_is_one_line(project: Path, tmp_path: Path) -> None:
    other = save_base(make_base(seed=1), tmp_path / "other")
    assert "cannot be used with" in refused("inspect", PROMPT, "--base", other)
    assert "holds no prompts" in refused("inspect", PROMPT, "--library", "empty")
    assert "no such file" in refused("inspect", PROMPT, "--data", "none.csv")
    assert "there is no such folder" in refused("inspect", "none")
    for damage in ("{", "[]", '{"format_version": 1, "base": 3}', '{"format_version": 99}'):
        (project / PROMPT / "card.json").write_text(damage)
        assert "card.json" in refused("inspect", PROMPT)
        assert "card.json" in refused("prune", PROMPT, "--keep", 1, "--data", "dev.csv", "--output", "small")


def test_prune_saves_a_smaller_prompt(project: Path) -> None:
    arguments = ["prune", PROMPT, "--keep", 2, "--data", "dev.csv", "--output"]
    found = printed(*arguments, "small")
    assert found["prompt"] == "small"
    small = SoftPrompt.load("small", base=load_base(SoftPrompt.load(PROMPT).card.base.name))  # type: ignore[union-attr]
    assert small.num_virtual_tokens == found["num_virtual_tokens"] == 2
    assert torch.equal(small.embeddings, SoftPrompt.load(PROMPT).embeddings[found["kept"]])
    assert printed("evaluate", "small", "dev.csv")["log_loss"] == pytest.approx(found["after"]["log_loss"])
    assert "small exists" in refused(*arguments, "small")
    told = run(*arguments, "small", "--force")
    assert told.exit_code == 0
    assert "Kept the virtual tokens" in told.stdout
    assert [token["start"] for token in printed("inspect", "small")["tokens"]] == ["Mood"[i] for i in found["kept"]]


@pytest.mark.parametrize("keep", [0, 5, -1])
def test_a_number_that_cannot_be_kept_is_one_line(project: Path, keep: int) -> None:
    said = refused("prune", PROMPT, "--keep", keep, "--data", "dev.csv", "--output", "small")
    assert said == f"keep is {keep}: the prompt has 4 virtual tokens; keep 1 to 4 of them"
    assert not Path("small").exists()


def test_the_documents_are_json(project: Path) -> None:
    text = run("inspect", PROMPT, "--json").stdout
    assert json.loads(text)["tokens"][0].keys() >= {"index", "norm", "drift", "nearest"}
    assert json.loads(text)["tokens"][0]["nearest"][0].keys() == {"token", "similarity"}
