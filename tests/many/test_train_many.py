"""`softprompt train-many`."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from softprompt import SoftPrompt
from softprompt.many import group
from softprompt.progress import _TaskProgress
from softprompt.training.folder import locked
from softprompt.training.loop import PromptTrainer
from tests.conftest import make_base
from tests.models.encoders import base_of, whole
from tests.test_cli import FILE, TRAIN_KEYS, make_project, run, save_base, weights

NAMES = ("one", "two", "three")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(make_base(), tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def project(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `tasks` with three task files on one base, which differ in their rows and their seed."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, base_folder)
    (tmp_path / "tasks").mkdir()
    for k, name in enumerate(NAMES):
        content = yaml.safe_load(FILE.format(base=base_folder))
        content["name"], content["recipe"]["seed"] = name, k
        content["data"] = {part: f"../{file}" for part, file in content["data"].items()}
        content["data"]["train"] = ["../train.csv", "../dev.csv"] if k else "../train.csv"
        write(name, content)
    return tmp_path


def write(name: str, content: dict[str, Any]) -> None:
    Path("tasks", f"{name}.yaml").write_text(yaml.safe_dump(content))


def change(name: str, **changed: Any) -> None:
    path = Path("tasks", f"{name}.yaml")
    write(name, yaml.safe_load(path.read_text()) | changed)


def trained(*words: object, code: int = 0) -> dict[str, dict[str, Any]]:
    """What came of each task, by its name."""
    result = run("train-many", *words, "--json")
    assert result.exit_code == code, result.output
    return {one["name"]: one for one in json.loads(result.stdout)["tasks"]}


def test_each_is_as_train_makes_it(project: Path) -> None:
    found = trained("tasks")
    assert list(found) == sorted(NAMES)
    for name in NAMES:
        one = found[name]
        assert set(one) == TRAIN_KEYS | {"name", "task", "status", "metric"}
        assert (one["status"], one["steps"], one["test"]["n"]) == ("trained", 12, 10)
        own = json.loads(run("train", f"tasks/{name}.yaml", "--output", f"alone/{name}", "--json").stdout)
        assert (one["best_step"], one["kernel"]) == (own["best_step"], own["kernel"])
        assert one["validation"]["log_loss"] == pytest.approx(own["validation"]["log_loss"], abs=1e-3)
        many, alone = Path("runs", name), Path("alone", name)
        kept = {path.name for path in alone.iterdir() if not path.name.startswith("checkpoint")}
        assert {path.name for path in many.iterdir()} == kept | {"result.json"}
        cards = [SoftPrompt.load(folder / "prompt").card.model_dump() for folder in (many, alone)]
        for card in cards:
            del card["metrics"], card["created"], card["sha256"]
        assert cards[0] == cards[1]
        assert {line["step"] for line in log(many)} == {line["step"] for line in log(alone)}
    assert not list(Path("runs").glob(".*"))


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_ways_to_name_them(project: Path) -> None:
    Path("list.yaml").write_text("tasks: [tasks/one.yaml, 'tasks/t*.yaml']\n")
    result = run("train-many", "list.yaml", "tasks/one.yaml", "--set", "recipe.max_steps=2", "--at-once", "2")
    assert result.exit_code == 0, result.output
    assert "3 tasks in 2 groups, which are trained one after another; side by side: 2, 1" in result.stderr
    assert "one: training" in result.stderr
    assert "warning: one: data: 2 steps of 4 rows see 8 of the 40 training rows (20%)" in result.stderr
    assert "one: step 2/2, validation accuracy" in result.stderr
    assert all(name in result.stdout for name in (*NAMES, "trained", "best step", "accuracy"))
    assert "3 of 3 tasks in " in result.stdout
    assert all(Path("runs", name, "report.html").exists() for name in NAMES)
    for words, says in (
        (["nothing/*.yaml"], "no task files there"),
        (["tasks/one.yaml", "--output", "train.csv"], "train.csv is not a folder: choose another --output"),
    ):
        result = run("train-many", *words)
        assert result.exit_code == 1
        assert says in result.stderr.splitlines()[-1]


def test_what_differs_is_trained_one_group_after_another(project: Path) -> None:
    change("two", recipe={"max_steps": 3, "batch_size": 2, "dtype": "float32"})
    change("three", prompt={"num_virtual_tokens": "auto"}, recipe={"max_steps": 2, "batch_size": 4, "dtype": "float32"})
    content = yaml.safe_load(Path("tasks/one.yaml").read_text())
    for name in ("head", "head-too"):
        write(name, content | {"name": name, "task": content["task"] | {"answer": "head"}})
    result = run("train-many", "tasks", "--json")
    assert "5 tasks in 4 groups" in result.stderr
    found = {one["name"]: one for one in json.loads(result.stdout)["tasks"]}
    assert {one["status"] for one in found.values()} == {"trained"}
    assert "lengths" in found["three"]
    assert SoftPrompt.load("runs/head-too/prompt").head is not None


def test_bad_ones_are_named_and_the_others_finish(project: Path) -> None:
    change("two", data={"train": "../nothing.csv"})
    Path("tasks/broken.yaml").write_text("name: [")
    shutil.copy("tasks/one.yaml", "tasks/twin.yaml")
    content = yaml.safe_load(Path("tasks/one.yaml").read_text())
    write("elsewhere", content | {"name": "elsewhere", "base": "./no-base"})
    found = trained("tasks", "gone.yaml", code=1)
    assert {name: one["status"] for name, one in found.items()} == {
        "one": "trained",
        "three": "trained",
        **dict.fromkeys(("two", "broken", "twin", "elsewhere", "gone"), "failed"),
    }
    assert "nothing.csv" in found["two"]["error"]
    assert "broken.yaml: line 1: not YAML" in found["broken"]["error"]
    assert "its name is one, as that of tasks/one.yaml: change one" in found["twin"]["error"]
    assert "no such file" in found["gone"]["error"]
    result = run("train-many", "tasks", "--resume")
    assert result.exit_code == 1
    assert "kept as they are: 2 tasks" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == "error: 4 of 6 tasks failed: broken, elsewhere, twin, two; mend them and go on with --resume"
    assert result.stdout.count("kept") == 2


def test_it_goes_on_after_a_ctrl_c(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("tasks", "--output", "whole", "--at-once", "2")
    shown = _TaskProgress.on_log

    def stopped(self: _TaskProgress, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._name == "two" and state.global_step == 10:
            raise KeyboardInterrupt
        shown(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_TaskProgress, "on_log", stopped)
        result = run("train-many", "tasks", "--at-once", "2", "--set", "recipe.seed=3")
        assert result.exit_code == 130
        again = "softprompt train-many tasks --set recipe.seed=3 --output runs --at-once 2 --resume"
        assert result.stderr.splitlines()[-1] == f"error: interrupted; go on with: {again}"
        assert run("train-many", "tasks", "--at-once", "2", "--force").exit_code == 130
    found = trained("tasks", "--at-once", "2", "--resume")
    assert {name: one["status"] for name, one in found.items()} == {"one": "kept", "three": "kept", "two": "trained"}
    for name in NAMES:
        assert weights(f"runs/{name}/prompt") == weights(f"whole/{name}/prompt")
    assert {one["status"] for one in trained("tasks", "--resume").values()} == {"kept"}
    assert not Path("runs/.side-by-side").exists()
    other = trained("tasks", "--resume", "--set", "recipe.seed=9", code=1)
    assert "finished with other settings or rows" in other["one"]["error"]
    assert "choose another output" in trained("tasks", code=1)["two"]["error"]
    assert {one["status"] for one in trained("tasks", "--force").values()} == {"trained"}


@pytest.mark.long
def test_a_ctrl_c_between_two_reports_costs_no_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("tasks", "--output", "whole")
    write_report, asked = group.write_report, []

    def stopped(*args: Any, **kwargs: Any) -> Path:
        asked.append(0)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return write_report(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(group, "write_report", stopped)
        assert run("train-many", "tasks").exit_code == 130
    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "training_step", Mock(side_effect=AssertionError))
        found = trained("tasks", "--resume", "--set", "recipe.log_every=3")
    assert [one["status"] for one in found.values()] == ["kept", "trained", "trained"]
    for name in NAMES:
        assert weights(f"runs/{name}/prompt") == weights(f"whole/{name}/prompt")
    assert not list(Path("runs").glob(".*"))


def test_two_on_one_folder(project: Path) -> None:
    with locked(Path("runs")):
        result = run("train-many", "tasks")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: runs: another process trains there")


def test_a_launcher_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in run("train-many", "tasks").stderr


def test_the_commands_of_the_docs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/cluster.md in one process; those with Ray and torchrun are run by the tests of these."""
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("softprompt ")]
    here = [words[1:] for words in commands if words[1] == "train-many" and "--ray" not in words]
    assert len(here) == 5
    content = yaml.safe_load(Path("tasks/one.yaml").read_text())
    content["data"] = {part: str(project / Path(file).name) for part, file in content["data"].items()}
    content["recipe"]["max_steps"] = 1
    Path("more").mkdir()
    for name in ("a", "b", "more/c"):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content | {"name": Path(name).name}))
    Path("all.yaml").write_text("[a.yaml, more/c.yaml]")
    for words in here:
        if "all.yaml" in words:
            shutil.rmtree("runs")
        result = run(*words)
        assert result.exit_code == 0, result.output


def test_an_encoder_s_tasks_are_answered_by_heads(project: Path) -> None:
    """Two labels, `answer: auto`: what says no words is read by a head."""
    base = base_of(whole("bert", AutoModelForSequenceClassification))
    base.model.save_pretrained(project / "encoder")
    base.tokenizer.save_pretrained(project / "encoder")
    for name in NAMES:
        change(name, base=str(project / "encoder"))
    found = trained("tasks")
    assert {one["status"] for one in found.values()} == {"trained"}
    assert SoftPrompt.load("runs/one/prompt").head is not None
