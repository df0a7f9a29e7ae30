"""`softprompt train` where the length is found by growing, and calibration on the command line."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from softprompt import Ensemble, SoftPrompt, calibrate, evaluate, load_base, predict
from softprompt.tasks import Task, load_rows
from softprompt.training.folder import Replaced, locked
from softprompt.training.growth import LENGTHS
from softprompt.training.loop import PromptTrainer
from tests.conftest import make_base
from tests.test_cli import TASK, TRAIN_KEYS, make_project, printed, refused, run, save_base

AUTO = ["--set", "prompt.num_virtual_tokens=auto", "--set", "recipe.max_steps=4"]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(make_base(), tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def project(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, base_folder)


def test_an_automatic_length_is_grown(project: Path, base_folder: Path) -> None:
    found = printed("train", "task.yaml", *AUTO)
    assert set(found) == TRAIN_KEYS | {"num_virtual_tokens", "lengths"}
    assert found["prompt"] == os.path.join("runs", "mood", "prompt")
    tried = [length["num_virtual_tokens"] for length in found["lengths"]]
    assert tried == list(LENGTHS[: len(tried)])
    assert all(length["steps"] == 4 for length in found["lengths"])
    kept = SoftPrompt.load(found["prompt"], load_base(base_folder, dtype="float32"))
    assert kept.num_virtual_tokens == found["num_virtual_tokens"]
    own = Path("runs/mood", f"{found['num_virtual_tokens']}-virtual-tokens")
    assert SoftPrompt.load(own / "prompt").sha256 == kept.sha256
    assert found["report"] == str(own / "report.html")
    assert Path(found["report"]).exists()
    again = printed("train", "task.yaml", *AUTO, "--resume")
    assert again["lengths"] == [
        length | {"seconds": again["lengths"][i]["seconds"]} for i, length in enumerate(found["lengths"])
    ]
    assert "choose another output" in refused("train", "task.yaml", *AUTO)
    shown = run("train", "task.yaml", *AUTO, "--output", "shown").stdout
    assert "virtual tokens" in shown
    assert "better by" in shown
    assert "kept" in shown


def test_an_automatic_length_needs_validation(project: Path) -> None:
    for override, says in (
        ("data.validation=null", "auto is decided by validation: give data.validation, or a number"),
        ("prompt={num_virtual_tokens: auto, init: prompt, init_from: x}", "auto is not for init: prompt"),
        ("prompt.num_virtual_tokens=many", 'a whole number from 1 on (0: a head alone), or "auto"'),
    ):
        assert says in refused("train", "task.yaml", *AUTO, "--set", override)


def test_a_recipe_can_calibrate(project: Path, base_folder: Path) -> None:
    base, task = load_base(base_folder, dtype="float32"), Task(**TASK)
    found = printed("train", "task.yaml", "--set", "recipe.calibrate=true")
    card = json.loads(Path(found["prompt"], "card.json").read_text(encoding="utf-8"))
    assert set(card["calibration"]) == {"negative", "positive"}
    again = evaluate(base, SoftPrompt.load(found["prompt"]), task, "test.csv").to_json()
    assert again | {"seconds": 0} == found["test"] | {"seconds": 0}
    plain = printed("train", "task.yaml", "--output", "plain")
    assert plain["test"]["log_loss"] != found["test"]["log_loss"]
    told = run("train", "task.yaml", "--set", "recipe.calibrate=true", "--output", "told").stdout
    assert f"the prompt is from step {found['best_step']} and calibrated" in told
    # What the card of one keeps is asked for by an option with the other.
    measured = printed("evaluate", plain["prompt"], "test.csv", "--calibrate", "train.csv")
    assert measured | {"seconds": 0} == found["test"] | {"seconds": 0}
    prompt = SoftPrompt.load(plain["prompt"])
    expected = calibrate(base, prompt, task, load_rows("train.csv", task))
    assert expected.card.calibration == card["calibration"]
    (one,) = printed("predict", found["prompt"], "a nice one")["predictions"]
    assert one == printed("predict", plain["prompt"], "a nice one", "--calibrate", "train.csv")["predictions"][0]
    assert one != printed("predict", plain["prompt"], "a nice one")["predictions"][0]
    assert "nothing.csv" in refused("predict", plain["prompt"], "x", "--calibrate", "nothing.csv")


def test_free_text_is_not_calibrated(project: Path) -> None:
    assert "for tasks with labels" in refused("train", "colours.yaml", "--set", "recipe.calibrate=true")
    prompt = printed("train", "colours.yaml", "--output", "colours")["prompt"]
    assert "generates free text" in refused("evaluate", prompt, "colours.jsonl", "--calibrate", "colours.jsonl")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_auto_was_is_recorded_and_used_again(project: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setenv("SOFTPROMPT_DTYPE", dtype)
    auto = ("--set", "recipe.dtype=auto")
    result = run("train", "task.yaml", *auto, "--output", "auto")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines.count(f"dtype auto is {dtype}, as SOFTPROMPT_DTYPE says") == 1
    assert json.loads(Path("auto/run.json").read_text())["base"]["dtype"] == dtype
    assert json.loads(Path("auto/prompt/card.json").read_text())["recipe"]["dtype"] == dtype
    expected = printed("evaluate", "auto/prompt", "test.csv")
    inspected = printed("inspect", "auto/prompt")
    lengths = ("--set", "prompt.num_virtual_tokens=auto", "--set", "recipe.max_steps=2")
    assert run("train", "task.yaml", *auto, *lengths, "--output", "grown").exit_code == 0

    monkeypatch.setenv("SOFTPROMPT_DTYPE", "bfloat16" if dtype == "float32" else "float32")  # another machine
    assert printed("evaluate", "auto/prompt", "test.csv") | {"seconds": 0} == expected | {"seconds": 0}
    assert printed("inspect", "auto/prompt") == inspected
    assert run("train", "task.yaml", *auto, "--output", "auto", "--resume").exit_code == 0
    assert run("train", "task.yaml", *auto, *lengths, "--output", "grown", "--resume").exit_code == 0
    other = printed("evaluate", "auto/prompt", "test.csv", "--dtype", "auto")
    assert other["log_loss"] != expected["log_loss"]


def test_a_card_of_before_leaves_the_dtype_to_the_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", "task.yaml", "--output", "run").exit_code == 0
    card = Path("run/prompt/card.json")
    expected = printed("evaluate", "run/prompt", "test.csv")
    for recipe in ({}, {"dtype": "auto"}):
        card.write_text(json.dumps(json.loads(card.read_text()) | {"recipe": recipe}))
        monkeypatch.setenv("SOFTPROMPT_DTYPE", "float32")
        result = run("evaluate", "run/prompt", "test.csv", "--json")
        assert result.stderr == "dtype auto is float32, as SOFTPROMPT_DTYPE says\n"
        assert json.loads(result.stdout) | {"seconds": 0} == expected | {"seconds": 0}


def test_what_is_slower_is_said_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompt.models import probe

    monkeypatch.setattr(probe, "_compare", lambda model, route, gradient: ("too odd" if route == "packed" else "",) * 2)
    result = run("train", "task.yaml", "--output", "run")
    assert result.exit_code == 0
    warnings = [line for line in result.stderr.splitlines() if not line.startswith(("step ", "answers are read by"))]
    assert warnings == ["warning: LlamaForCausalLM takes a slower route than packed (too odd)"]
    assert run("evaluate", "run/prompt", "test.csv").stderr.splitlines() == warnings


def test_force_leaves_the_old_run_until_the_new_one_has_begun(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", "task.yaml", "--output", "run").exit_code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    def kept() -> bool:
        return {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before

    force = ("train", "task.yaml", "--output", "run", "--force")
    assert "recipe.report_to: " in refused(*force, "--set", "recipe.report_to=[nothing]")
    if importlib.util.find_spec("wandb") is None:
        assert "wandb to be installed" in refused(*force, "--set", "recipe.report_to=[wandb]")
    assert "can't be shared" in refused(*force, "--set", "recipe.gradient_accumulation_steps=3")
    assert kept()
    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "training_step", Mock(side_effect=MemoryError))
        assert "out of memory" in refused(*force)
        assert kept()
        lengths = ("--set", "prompt.num_virtual_tokens=auto")
        assert "out of memory" in refused(*force, *lengths)
        assert kept()
    with monkeypatch.context() as patch:  # killed before its first step
        patch.setattr(Replaced, "put_back", Mock())
        patch.setattr(PromptTrainer, "training_step", Mock(side_effect=MemoryError))
        refused(*force)
    assert not Path("run/prompt").exists()
    refused("train", "task.yaml", "--output", "run")
    assert kept()
    assert run(*force, "--set", "recipe.max_steps=4").exit_code == 0
    assert not Path("run/.replaced").exists()
    assert json.loads(Path("run/run.json").read_text())["recipe"]["max_steps"] == 4


def test_an_ensemble_from_the_command_line_to_the_library(project: Path, base_folder: Path) -> None:
    steps = ["--set", "recipe.max_steps=4"]
    found = printed("train", "task.yaml", "--ensemble", "3", *steps)
    assert found["prompt"] == os.path.join("runs", "mood", "prompt")
    assert len(found["members"]) == 3
    ensemble, base = Ensemble.load(found["prompt"]), load_base(base_folder, dtype="float32")
    assert [prompt.card.recipe["seed"] for prompt in ensemble.prompts] == [0, 1, 2]
    task = Task.from_dict(ensemble.card.task)
    expected = evaluate(base, ensemble, task, "test.csv").to_json()
    shown = printed("evaluate", found["prompt"], "test.csv", "--dtype", "float32")
    assert {**shown, "seconds": 0} == {**expected, "seconds": 0} == {**found["test"], "seconds": 0}
    answer = printed("predict", found["prompt"], "a joy", "--dtype", "float32", "--calibrate", "train.csv")
    calibrated = Ensemble([calibrate(base, prompt, task, "train.csv") for prompt in ensemble.prompts])
    assert answer["predictions"][0]["probabilities"] == predict(base, calibrated, task, ["a joy"])[0].probabilities
    answers = [printed("predict", one, "a joy")["predictions"] for one in ("runs/mood", found["prompt"])]
    assert answers[0] == answers[1]
    added = printed("library", "add", "mood", "runs/mood", "--library", "kept")["members"]
    assert [entry["name"] for entry in added] == ["mood.0", "mood.1", "mood.2"]
    assert "exists: choose another" in refused("train", "task.yaml", "--ensemble", "3", *steps)
    with locked(Path("runs/mood")):
        assert "another process trains there" in refused("train", "task.yaml", "--ensemble", "2", *steps, "--force")
    assert len(Ensemble.load(found["prompt"]).prompts) == 3
    printed("train", "task.yaml", "--ensemble", "2", *steps, "--force")
    assert len(Ensemble.load(found["prompt"]).prompts) == 2
    assert "name one of its members" in refused("inspect", found["prompt"])
    assert "auto" in refused("train", "task.yaml", "--ensemble", "2", *AUTO, "--output", "other")
    assert run("train", "task.yaml", "--ensemble", "2", "--resume").exit_code == 2
