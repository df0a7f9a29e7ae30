from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from softprompt import SoftPrompt, SoftPromptError, load_base
from softprompt.comparison import Comparison, compare, processes
from softprompt.comparison.jobs import Job
from softprompt.comparison.methods import METHODS
from softprompt.comparison.methods.method import Work
from softprompt.comparison.methods.weights import WeightTrainer
from softprompt.comparison.methods.zero_shot import ZeroShot
from softprompt.comparison.plan import artifact, read_plan, result_file
from softprompt.comparison.worker import Tell, perform
from softprompt.evaluation.calibration import measure_priors
from softprompt.tasks import load_rows
from softprompt.training.loop import DivergedError
from softprompt.training.taskfile import TaskFile, load_task_file
from tests.conftest import make_base

FILE = """\
name: mood
base: {base}
task: {{template: "Text: {{text}}\\nMood:", target: " {{label}}", labels: [negative, positive]}}
data: {{train: train.csv, validation: dev.csv, test: test.csv}}
prompt: {{num_virtual_tokens: 4, init_text: "Mood?"}}
recipe: {{max_steps: 6, batch_size: 4, evaluate_every: 4, log_every: 2, warmup_steps: 2, dtype: float32}}
"""
LABELS = ("negative", "positive")


def table(count: int, label: str | None = None) -> str:
    words = (("awful", "bad", "poor"), ("fine", "good", "nice"))
    return "text,label\n" + "".join(f"{words[i % 2][i % 3]} {i},{label or LABELS[i % 2]}\n" for i in range(count))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, base = tmp_path_factory.mktemp("bases") / "tiny", make_base()
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, base_folder: Path) -> Path:
    (tmp_path / "task.yaml").write_text(FILE.format(base=base_folder), encoding="utf-8")
    for name, count in (("train", 24), ("dev", 8), ("test", 10)):
        (tmp_path / f"{name}.csv").write_text(table(count), encoding="utf-8")
    return tmp_path


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """The jobs that were run, in this process instead of one of their own."""
    done: list[tuple[str, tuple[str, ...]]] = []

    def run_here(folder: Path, job: Job, parts: Sequence[str], tell: Tell) -> None:
        done.append((job.name, tuple(parts)))
        perform(folder, job, list(parts), tell)

    monkeypatch.setattr(processes, "run_job", run_here)
    return done


def task_file(project: Path, *overrides: str) -> TaskFile:
    return load_task_file(project / "task.yaml", overrides)


def run(project: Path, *methods: str, overrides: Sequence[str] = (), **options: Any) -> Comparison:
    settings: dict[str, Any] = {"output": project / "out", "quick": True}
    return compare(task_file(project, *overrides), methods or tuple(METHODS), **settings | options)


def test_every_figure_comes_from_real_objects(project: Path, jobs: list[Any], base_folder: Path) -> None:
    shares: list[float] = []
    found = run(project, progress=lambda what, share: shares.append(share))
    rows = {row["method"]: row for row in found.rows}
    assert list(rows) == list(METHODS)
    assert {row["status"] for row in found.rows} == {"done"}
    base = make_base()
    all_parameters = base.model.num_parameters()
    assert {row["base_parameters"] for row in found.rows} == {all_parameters}
    adapted = get_peft_model(make_base().model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    assert {method: row["trainable_parameters"] for method, row in rows.items()} == {
        "zero-shot": 0,
        "few-shot": 0,
        "prompt": 4 * 32,
        "lora": adapted.get_nb_trainable_parameters()[0],
        "full": all_parameters,
    }
    for (name, _), row in zip(jobs, found.rows, strict=True):
        folder = artifact(project / "out", name)
        assert row["artifact_bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        assert row["bytes_of_100_tasks"] == 100 * row["artifact_bytes"] + (
            0 if row["method"] == "full" else 4 * all_parameters
        )
        assert row["peak_memory_bytes"] > 4 * all_parameters
        assert row["test"]["n"] == 10
        assert row["interval"][0] <= row["test"]["accuracy"] <= row["interval"][1]
        assert row["share"] == row["trainable_parameters"] / all_parameters
    assert rows["prompt"]["artifact_bytes"] < rows["lora"]["artifact_bytes"] < rows["full"]["artifact_bytes"]
    for method in ("prompt", "lora", "full"):
        assert rows[method]["train_seconds"] >= rows[method]["best_seconds"] > 0
        assert rows[method]["switch_seconds"] > 0
        assert [entry["step"] for entry in rows[method]["curve"]] == [2, 4, 6]
    assert rows["prompt"]["switch_in_memory_seconds"] < rows["prompt"]["switch_seconds"]
    assert rows["full"]["switch_in_memory_seconds"] is None
    assert rows["prompt"]["against_prompt"] is None
    assert rows["zero-shot"]["against_prompt"]["p"] <= 1
    assert rows["zero-shot"]["switch_seconds"] == 0
    assert 0 == shares[0] <= shares[-1] <= 1
    assert shares == pytest.approx(sorted(shares))
    # What was learned is there to be used.
    SoftPrompt.load(artifact(project / "out", jobs[2][0]), base)
    assert load_base(str(artifact(project / "out", jobs[4][0]))).hidden_size == 32
    assert json.loads((project / "out/comparison.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert "| trainable parameters | 0 | 0 | 128 |" in (project / "out/comparison.md").read_text()


def test_what_is_finished_is_not_repeated(project: Path, jobs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(project, "zero-shot", "prompt")
    assert [parts for _, parts in jobs] == [("trained", "tested")] * 2
    jobs.clear()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(METHODS["lora"], "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(project, "zero-shot", "prompt", "lora", "few-shot")
    assert [name.split("-")[0] for name, _ in jobs] == ["few", "lora"]
    monkeypatch.undo()
    assert run(project, "zero-shot", "prompt").rows == first.rows
    with pytest.raises(SoftPromptError, match="holds another comparison: choose another --output, or --force"):
        run(project, "prompt", overrides=["recipe.max_steps=3"])
    (project / "mine").mkdir()
    (project / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(SoftPromptError, match="not a comparison's folder"):
        run(project, "prompt", output=project / "mine", force=True)
    assert (project / "mine/thesis.txt").exists()


def test_every_trained_method_is_calibrated_as_the_recipe_says(
    project: Path, jobs: list[Any], base_folder: Path
) -> None:
    methods = ("zero-shot", "prompt", "lora", "full")
    dtype = "recipe.dtype=float32"
    plain = run(project, *methods, output=project / "plain", overrides=[dtype])
    found = run(project, *methods, overrides=[dtype, "recipe.calibrate=true"])
    same = [one["test"]["log_loss"] == two["test"]["log_loss"] for one, two in zip(plain.rows, found.rows, strict=True)]
    assert same == [True, False, False, False]
    file = task_file(project)
    for method, (name, _) in zip(methods[2:], jobs[2:4], strict=True):
        learned = artifact(project / "out", name)
        work = Work(read_plan(project / "out"), None, 0, learned, lambda done, of: None)
        model = METHODS[method].open(work).model
        rows = load_rows(file.data.train, file.task)
        expected = measure_priors(model, file.task, rows)
        assert json.loads((learned / "priors.json").read_text()) == pytest.approx(expected, rel=1e-4)


def test_settings_are_chosen_on_validation_and_only_the_best_is_tested(project: Path, jobs: list[Any]) -> None:
    found = run(project, "few-shot", "prompt", quick=False, seeds=2, overrides=["recipe.max_steps=3"])
    tested = [name for name, parts in jobs if "tested" in parts]
    assert len(jobs) == 2 * 2 * (3 + 1)
    assert len(tested) == 2 * 2
    for row in found.rows:
        assert len(row["settings"]) == row["seeds"] == 2
        assert row["spread"] is not None
    for seed in (0, 1):
        results = [
            json.loads(file.read_text()) for file in (project / "out/trained").glob(f"prompt-*-seed-{seed}.json")
        ]
        assert sorted(result["setting"] for result in results) == pytest.approx([0.01 / 3, 0.01, 0.03])
        best = max(results, key=lambda one: (one["validation"]["accuracy"], -one["validation"]["log_loss"]))
        assert found.rows[1]["settings"][seed] == best["setting"]
        assert Job("prompt", best["setting"], seed).name in tested
    kept = {folder.name for folder in (project / "out/artifacts").iterdir()}
    assert kept == set(tested)


def test_a_method_that_diverges_says_so_and_the_others_go_on(
    project: Path, jobs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(self: WeightTrainer, *args: Any, **kwargs: Any) -> None:
        raise DivergedError("the loss became NaN or infinite at step 1 with learning rate 0.0005")

    def exhausting(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(WeightTrainer, "training_step", diverging)
    found = run(project, "lora", "prompt")
    lora, prompt = reversed(found.rows)
    assert (lora["status"], prompt["status"]) == ("diverged", "done")
    assert lora["test"] is None
    assert "NaN" in lora["message"]
    for name in ("comparison.md", "comparison.html"):
        text = (project / "out" / name).read_text()
        assert "diverged" in text
        assert "LoRA, rank 8: the loss became NaN" in text
    jobs.clear()
    run(project, "lora")
    assert jobs == []  # it would diverge again
    monkeypatch.setattr(WeightTrainer, "training_step", exhausting)
    full, *_ = run(project, "full").rows
    assert full["status"] == "out of memory"
    jobs.clear()
    run(project, "full")
    assert [name for name, _ in jobs] == ["full-5e-05-seed-0"]  # there may be more memory now


def test_unusable_input_is_one_line(project: Path, jobs: list[Any]) -> None:
    with pytest.raises(SoftPromptError, match="methods: fine-tuning: choose of zero-shot, few-shot"):
        run(project, "fine-tuning")
    with pytest.raises(SoftPromptError, match="seeds is 0"):
        run(project, "prompt", seeds=0)
    with pytest.raises(SoftPromptError, match="leave no room"):
        run(project, "zero-shot", output=project / "long", overrides=["prompt.num_virtual_tokens=256"])
    (project / "train.csv").write_text(table(8, "positive"))
    with pytest.raises(SoftPromptError, match="have the label"):
        run(project)
    (project / "train.csv").write_text(table(3))
    with pytest.raises(SoftPromptError, match=r"0\.2 of 3 rows is too little"):
        run(project, overrides=["data.validation=null"])


def test_three_rows_and_no_test_rows_will_do(project: Path, jobs: list[Any]) -> None:
    (project / "train.csv").write_text(table(3))
    overrides = ["data.test=null"]
    found = run(project, "few-shot", "prompt", "lora", overrides=overrides)
    assert {row["status"] for row in found.rows} == {"done"}
    assert any("names no test rows" in note for note in found.notes)
    assert found.rows[0]["test"]["n"] == 8
    assert read_plan(project / "out").test == read_plan(project / "out").validation


def test_rows_are_set_aside_where_there_is_no_validation(project: Path, jobs: list[Any]) -> None:
    found = run(project, "zero-shot", overrides=["data.validation=null"])
    plan = read_plan(project / "out")
    assert (len(plan.train), len(plan.validation)) == (19, 5)
    assert any("20% of the training rows were set aside" in note for note in found.notes)


def test_free_text_is_compared_too(project: Path, jobs: list[Any], base_folder: Path) -> None:
    colours = [{"thing": f"grass {i}", "colour": "green" if i % 2 else "blue"} for i in range(12)]
    (project / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in colours))
    (project / "task.yaml").write_text(
        f"name: colours\nbase: {base_folder}\n"
        'task: {template: "{thing} is", target: " {colour}", max_new_tokens: 2, metric: token_f1}\n'
        "data: {train: colours.jsonl, validation: colours.jsonl}\n"
        "prompt: {init: random, num_virtual_tokens: 3}\n"
        "recipe: {max_steps: 2, batch_size: 2, dtype: float32}\n"
    )
    found = run(project, "few-shot", "prompt", "full")
    assert {row["status"] for row in found.rows} == {"done"}
    assert all(0 <= row["test"]["token_f1"] <= 1 for row in found.rows)
    assert found.rows[0]["against_prompt"]["p"] <= 1


@pytest.mark.slow
def test_each_job_has_a_process_of_its_own(project: Path) -> None:
    """Its peak memory is its own, and what it dies of is said."""
    ballast = bytearray(1 << 30)
    found = run(project, "prompt")
    assert found.rows[0]["status"] == "done"
    assert found.rows[0]["peak_memory_bytes"] < len(ballast)
    told: list[int] = []
    plan = project / "out/plan.json"
    plan.write_text("{")
    processes.run_job(project / "out", Job("lora", 1e-3, 0), ["trained"], lambda done, of: told.append(done))
    died = json.loads(result_file(project / "out", "trained", "lora-0.001-seed-0").read_text())
    assert died["status"] == "failed"
    assert "its process ended with 1" in died["message"]


def test_a_new_method_is_a_class_and_a_line_in_the_table(
    project: Path, jobs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Toy(ZeroShot):
        name = "toy"
        title = "A toy"

    monkeypatch.setitem(METHODS, "toy", Toy())
    found = run(project, "toy", "zero-shot")
    assert [row["method"] for row in found.rows] == ["zero-shot", "toy"]
    assert found.rows[0]["test"]["log_loss"] == found.rows[1]["test"]["log_loss"]
    for name in ("comparison.md", "comparison.html"):
        assert "A toy" in (project / "out" / name).read_text() or "toy" in (project / "out" / name).read_text()
