from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from softprompt import SoftPrompt, SoftPromptError, load_base
from softprompt.comparison import Comparison, compare, processes
from softprompt.comparison.folder import Folder
from softprompt.comparison.jobs import Job
from softprompt.comparison.methods import METHODS
from softprompt.comparison.methods.method import Method, Work
from softprompt.comparison.plan import make_plan
from softprompt.comparison.table import Figures
from softprompt.evaluation.calibration import measure_priors
from softprompt.models.prompted import PromptedModel
from softprompt.training.taskfile import TaskFile, load_task_file
from tests.comparison.toys import Toy, diverges, interrupts, needs_memory, once
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

    def run_here(work: Callable[..., None], arguments: Any, log: Path, heard: Callable[[Any], None]) -> int:
        _, job, _, parts = arguments
        done.append((job.name, tuple(parts)))
        work(heard, *arguments)
        return 0

    monkeypatch.setattr(processes, "run", run_here)
    return done


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[Method], None]:
    """Adds a method to the table."""
    return lambda method: monkeypatch.setitem(METHODS, method.name, method)


def task_file(project: Path, *overrides: str) -> TaskFile:
    return load_task_file(project / "task.yaml", overrides)


def run(project: Path, *methods: str, overrides: Sequence[str] = (), **options: Any) -> Comparison:
    settings: dict[str, Any] = {"output": project / "out", "quick": True}
    return compare(task_file(project, *overrides), methods or None, **settings | options)


def figures(found: Comparison) -> dict[str, Figures]:
    """Those of each method, all of which are done."""
    assert {row.status for row in found.rows} == {"done"}
    return {row.method.name: row.figures for row in found.rows if row.figures is not None}


def test_every_figure_comes_from_real_objects(project: Path, jobs: list[Any], base_folder: Path) -> None:
    shares: list[float] = []
    comparison = run(project, progress=lambda what, share: shares.append(share))
    rows = figures(comparison)
    assert list(rows) == list(METHODS)
    base = make_base()
    all_parameters = base.model.num_parameters()
    assert {found.trained.base_parameters for found in rows.values()} == {all_parameters}
    adapted = get_peft_model(make_base().model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    assert {method: found.trained.trainable_parameters for method, found in rows.items()} == {
        "zero-shot": 0,
        "few-shot": 0,
        "probe": 2 * 32,
        "prompt": 4 * 32,
        "lora": adapted.get_nb_trainable_parameters()[0],
        "full": all_parameters,
    }
    kept = Folder(project / "out")
    for (name, _), (method, found) in zip(jobs, rows.items(), strict=True):
        size = sum(file.stat().st_size for file in kept.artifact(name).rglob("*") if file.is_file())
        assert found.trained.artifact_bytes == size
        assert found.bytes_of_100_tasks == 100 * size + (0 if method == "full" else 4 * all_parameters)
        assert found.trained.peak_memory_bytes > 4 * all_parameters
        assert found.tested.test.n == 10
        assert found.interval is not None
        assert found.interval[0] <= found.tested.test.accuracy <= found.interval[1]
        assert found.share == found.trained.trainable_parameters / all_parameters
    sizes = [rows[method].trained.artifact_bytes for method in ("prompt", "lora", "full")]
    assert sizes == sorted(sizes)
    for method in ("prompt", "lora", "full"):
        assert rows[method].trained.train_seconds >= rows[method].trained.best_seconds > 0
        assert rows[method].tested.switch_seconds > 0
        assert [entry["step"] for entry in rows[method].trained.curve] == [2, 4, 6]
    assert rows["prompt"].tested.switch_in_memory_seconds < rows["prompt"].tested.switch_seconds
    assert rows["full"].tested.switch_in_memory_seconds is None
    assert rows["prompt"].against_prompt is None
    assert rows["zero-shot"].against_prompt.p <= 1
    assert rows["zero-shot"].tested.switch_seconds == 0
    assert 0 == shares[0] <= shares[-1] <= 1
    assert shares == pytest.approx(sorted(shares))
    # What was learned is there to be used.
    SoftPrompt.load(kept.artifact(jobs[3][0]), base)
    assert load_base(kept.artifact(jobs[5][0])).hidden_size == 32
    document = json.loads((project / "out/comparison.json").read_text())
    assert document == json.loads(json.dumps(comparison.to_json()))
    assert "| trainable parameters | 0 | 0 | 64 | 128 |" in (project / "out/comparison.md").read_text()


def test_all_methods_are_read_by_a_head_alike(project: Path, jobs: list[Any], base_folder: Path) -> None:
    methods = ("zero-shot", "probe", "prompt", "lora", "full")
    rows = figures(run(project, *methods, overrides=["task.answer=head"]))
    head = 2 * 32
    adapted = get_peft_model(make_base().model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    assert {method: found.trained.trainable_parameters for method, found in rows.items()} == {
        "zero-shot": 0,
        "probe": head,
        "prompt": 4 * 32 + head,
        "lora": adapted.get_nb_trainable_parameters()[0] + head,
        "full": make_base().model.num_parameters() + head,
    }
    kept = Folder(project / "out")
    for (name, _), method in zip(jobs, methods, strict=True):
        files = {file.name for file in kept.artifact(name).rglob("*")}
        assert ("head.safetensors" in files) == (method in ("lora", "full"))
    prompt = SoftPrompt.load(kept.artifact(jobs[2][0]), make_base())
    assert prompt.head is not None


def test_a_method_is_a_line_in_the_table(project: Path, jobs: list[Any], add: Callable[[Method], None]) -> None:
    """Somebody's own method is trained, chosen, compared and shown, and nothing else is touched."""
    add(Toy())
    found = run(project, "zero-shot", "toy", "prompt", quick=False)
    assert [name for name, _ in jobs if name.startswith("toy")] == [
        *(f"toy-{rate}-seed-0" for rate in ("0.333", "1", "3")),
        "toy-0.333-seed-0",  # all alike: the first is tested
    ]
    toy = figures(found)["toy"]
    assert (toy.settings, toy.edge, toy.trained.trainable_parameters) == ([1 / 3], True, 1)
    assert toy.tested.test.accuracy == figures(found)["zero-shot"].tested.test.accuracy
    assert toy.against_prompt is not None
    row = found.to_json()["rows"][-1]
    assert (row["method"], row["switch_seconds"], row["switch_in_memory_seconds"]) == ("toy", 0.5, None)
    for name in ("comparison.md", "comparison.html"):
        text = (project / "out" / name).read_text()
        for words in ("A method called toy", "500.0 ms", "not possible", "rate 0.333", "at the end of its grid"):
            assert words in text
    assert "toy" in METHODS
    with pytest.raises(SoftPromptError, match="choose of zero-shot, few-shot, probe, prompt, lora, full, toy"):
        run(project, "toys")


def test_what_is_finished_is_not_repeated(project: Path, jobs: list[Any], add: Callable[[Method], None]) -> None:
    first = run(project, "zero-shot", "prompt")
    assert [parts for _, parts in jobs] == [("trained", "tested")] * 2
    jobs.clear()
    add(Toy("toy", interrupts))
    with pytest.raises(KeyboardInterrupt):
        run(project, "zero-shot", "prompt", "toy", "few-shot")
    assert [name.split("-")[0] for name, _ in jobs] == ["few", "toy"]
    assert run(project, "zero-shot", "prompt").rows == first.rows
    with pytest.raises(SoftPromptError, match="holds another comparison: choose another --output, or --force"):
        run(project, "prompt", overrides=["recipe.max_steps=3"])
    (project / "mine").mkdir()
    (project / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(SoftPromptError, match="not a comparison's folder"):
        run(project, "prompt", output=project / "mine", force=True)
    assert (project / "mine/thesis.txt").exists()


def test_what_an_earlier_version_left_is_gone_on_with(project: Path, jobs: list[Any]) -> None:
    """It wrote what is not known as null, had no words for some faults, and may have been stopped while it wrote."""
    first = run(project, "zero-shot", "few-shot", "prompt", "full")
    jobs.clear()
    found = {file.name.split("-")[0]: file for file in (project / "out/tested").iterdir()}
    for name, key in (("full", "switch_in_memory_seconds"), ("prompt", "something_older")):
        found[name].write_text(json.dumps(json.loads(found[name].read_text()) | {key: None}))
    found["zero"].write_text('{"method": "zero-shot", "status": "do')
    found["few"].write_text('{"method": "few-shot", "setting": 4.0, "seed": 0, "status": "missing", "message": "?"}')
    again = run(project, "zero-shot", "few-shot", "prompt", "full")
    assert jobs == [("zero-shot-seed-0", ("tested",)), ("few-shot-4-seed-0", ("tested",))]
    assert [row.status for row in again.rows] == ["done"] * 4
    assert again.rows[2:] == first.rows[2:]


def test_every_trained_method_is_calibrated_as_the_recipe_says(
    project: Path, jobs: list[Any], base_folder: Path
) -> None:
    methods = ("zero-shot", "prompt", "lora", "full")
    dtype = "recipe.dtype=float32"
    plain = run(project, *methods, output=project / "plain", overrides=[dtype])
    found = run(project, *methods, overrides=[dtype, "recipe.calibrate=true"])
    one, two = figures(plain), figures(found)
    same = [one[method].tested.test.log_loss == two[method].tested.test.log_loss for method in methods]
    assert same == [True, False, False, False]
    plan = make_plan(task_file(project), quick=True)
    for method in methods[2:]:
        setting = two[method].settings[0]
        learned = Folder(project / "out").artifact(Job(METHODS[method], setting, 0).name)
        work = Work(plan, plan.validation, setting, 0, learned, lambda done, of: None)
        model = PromptedModel(METHODS[method].load(work), [])
        expected = measure_priors(model, plan.task, plan.train, virtual_tokens=4)
        assert json.loads((learned / "priors.json").read_text()) == pytest.approx(expected, rel=1e-4)


def test_settings_are_chosen_on_validation_and_only_the_best_is_tested(project: Path, jobs: list[Any]) -> None:
    found = run(project, "few-shot", "prompt", quick=False, seeds=2, overrides=["recipe.max_steps=3"])
    tested = [name for name, parts in jobs if "tested" in parts]
    assert len(jobs) == 2 * 2 * (3 + 1)
    assert len(tested) == 2 * 2
    rows = figures(found)
    assert [row.seeds for row in found.rows] == [2, 2]
    for one in rows.values():
        assert len(one.settings) == 2
        assert one.spread is not None
    for seed in (0, 1):
        results = [
            json.loads(file.read_text()) for file in (project / "out/trained").glob(f"prompt-*-seed-{seed}.json")
        ]
        assert sorted(result["setting"] for result in results) == pytest.approx([0.01 / 3, 0.01, 0.03])
        best = max(results, key=lambda one: (one["validation"]["accuracy"], -one["validation"]["log_loss"]))
        assert rows["prompt"].settings[seed] == best["setting"]
        assert Job(METHODS["prompt"], best["setting"], seed).name in tested
    kept = {folder.name for folder in (project / "out/artifacts").iterdir()}
    assert kept == set(tested)


def test_a_method_that_diverges_says_so_and_the_others_go_on(
    project: Path, jobs: list[Any], add: Callable[[Method], None]
) -> None:
    add(Toy())
    found = run(project, "full", "toy", overrides=["recipe.weight_decay=1e30"])
    full, toy = found.rows
    assert (full.status, toy.status) == ("diverged", "done")
    assert full.figures is None
    assert full.message is not None
    assert re.fullmatch(r"the loss became NaN or infinite at step \d with learning rate 5e-05", full.message)
    assert {found.to_json()["rows"][0][key] for key in ("test", "settings", "peak_memory_bytes")} == {None}
    for name in ("comparison.md", "comparison.html"):
        text = (project / "out" / name).read_text()
        assert "diverged" in text
        assert "Full fine-tuning: the loss became NaN" in text
    jobs.clear()
    run(project, "full", overrides=["recipe.weight_decay=1e30"])
    assert jobs == []  # it would diverge again


def test_a_lack_of_memory_may_be_over_the_next_time(
    project: Path, jobs: list[Any], add: Callable[[Method], None]
) -> None:
    add(Toy("toy", needs_memory))
    assert run(project, "toy").rows[0].status == "out of memory"
    add(Toy("toy"))
    assert run(project, "toy").rows[0].status == "done"
    assert [name for name, _ in jobs] == ["toy-1-seed-0"] * 2


def test_a_setting_that_goes_wrong_is_said_and_not_chosen(
    project: Path, jobs: list[Any], add: Callable[[Method], None]
) -> None:
    add(Toy("toy", once(diverges)))
    found = run(project, "toy", quick=False)
    assert figures(found)["toy"].settings == [1.0]
    assert found.rows[0].failures == ["0.333: diverged"]
    assert "A method called toy: settings that failed: 0.333: diverged." in (project / "out/comparison.md").read_text()


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
    assert any("names no test rows" in note for note in found.notes)
    assert figures(found)["few-shot"].tested.test.n == 8
    plan = make_plan(task_file(project, *overrides), quick=True)
    assert plan.test == plan.validation


def test_rows_are_set_aside_where_there_is_no_validation(project: Path, jobs: list[Any]) -> None:
    found = run(project, "zero-shot", overrides=["data.validation=null"])
    plan = make_plan(task_file(project, "data.validation=null"), quick=True)
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
    rows = figures(found)
    assert all(0 <= one.tested.test.token_f1 <= 1 for one in rows.values())
    assert rows["few-shot"].against_prompt.p <= 1
