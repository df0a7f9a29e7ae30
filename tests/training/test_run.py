from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from transformers import TrainerCallback

from softprompt import (
    Base,
    DivergedError,
    Recipe,
    Row,
    Run,
    SoftPrompt,
    SoftPromptError,
    Task,
    WrongBaseError,
    evaluate,
    predict,
    train,
)
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel, PromptedOutput
from softprompt.reporting.run_report import write_report
from softprompt.tasks import Encoder
from softprompt.training.schedule import Schedule, learned_rows
from tests.conftest import make_base, make_tokenizer
from tests.models.families import make_model

TASK = Task(template="{text}:", labels=["yes", "no"])


def rows(count: int, start: int = 0) -> list[Row]:
    """Texts whose first letter tells their label."""
    found = []
    for i in range(start, start + count):
        text = ("m" if i % 2 else "w") + str(i * 37) * (1 + i % 3)
        found.append(Row({"text": text}, i % 2, " " + TASK.labels[i % 2], number=i + 1))  # type: ignore[index]
    return found


def recipe(**changed: Any) -> Recipe:
    settings = {"max_steps": 24, "batch_size": 4, "evaluate_every": 6, "save_every": 4, "warmup_steps": 2}
    return Recipe(**settings | changed)


def learn(base: Base, output: Path | None = None, **changed: Any) -> Run:
    prompt = SoftPrompt.from_vocabulary(base, 6)
    options: dict[str, Any] = {"train": rows(40), "validation": rows(12, 40), "recipe": recipe(), "output": output}
    return train(base, prompt, TASK, **options | changed)


class StopAt(TrainerCallback):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_training_learns_and_leaves_the_base_alone(tiny_base: Base) -> None:
    before = {name: p.clone() for name, p in tiny_base.model.named_parameters()}
    prompt = SoftPrompt.from_vocabulary(tiny_base, 6)
    start = prompt.embeddings.clone()
    settings = recipe(max_steps=60, learning_rate=0.1, log_every=5)
    run = train(tiny_base, prompt, TASK, train=rows(200), recipe=settings)
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    assert run.steps == 60
    assert torch.equal(prompt.embeddings, start)
    assert not torch.equal(run.prompt.embeddings, start)
    for name, parameter in tiny_base.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("family", ["openai_gpt", "rwkv", "bamba", "ctrl"])
@pytest.mark.parametrize("labels", [["yes", "no"], None])
def test_a_base_whose_own_generate_takes_no_embeddings(family: str, labels: list[str] | None, tmp_path: Path) -> None:
    """Classification and free text end with a validation and a report."""
    base = Base(make_model(family, vocab_size=258), make_tokenizer(), family)
    task = Task(template="{text}:", labels=labels, target=" {label}", max_new_tokens=5)
    prompt = SoftPrompt.from_vocabulary(base, 2)
    settings = recipe(max_steps=2, evaluate_every=2)
    run = train(base, prompt, task, train=rows(8), validation=rows(4, 8), recipe=settings, output=tmp_path / "run")
    assert run.validation is not None
    assert write_report(tmp_path / "run", base=base).is_file()


def test_special_tokens_in_rows_are_said(tiny_base: Base) -> None:
    some = [Row({"text": row.columns["text"] + "<eos>" * (i < 3)}, row.label) for i, row in enumerate(rows(8))]
    run = learn(tiny_base, train=some, recipe=recipe(max_steps=2, monitor=False))
    assert [diagnosis.sentence.partition(",")[0] for diagnosis in run.diagnoses] == [
        "3 of 8 training rows hold the text of a special token"
    ]


def test_same_seed_same_prompt(tiny_base: Base) -> None:
    first, second = learn(tiny_base), learn(make_base())
    assert torch.equal(first.prompt.embeddings, second.prompt.embeddings)
    other = learn(tiny_base, recipe=recipe(seed=5))
    assert not torch.equal(first.prompt.embeddings, other.prompt.embeddings)


@pytest.mark.parametrize("step", [3, 6, 8, 17, 24])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_an_interrupted_run_resumed_equals_an_uninterrupted_one(
    tiny_base: Base, tmp_path: Path, step: int, optimizer: str
) -> None:
    settings = recipe(optimizer=optimizer)
    whole = learn(tiny_base, tmp_path / "whole", recipe=settings)
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_base, tmp_path / "cut", recipe=settings, callbacks=[StopAt(step)])
    resumed = learn(make_base(), tmp_path / "cut", recipe=settings, resume=True)
    assert torch.equal(resumed.prompt.embeddings, whole.prompt.embeddings)
    assert (resumed.steps, resumed.best_step) == (whole.steps, whole.best_step)
    assert resumed.validation == whole.validation.model_copy(update={"seconds": resumed.validation.seconds})  # type: ignore[union-attr]


def test_a_finished_run_is_not_trained_further_by_resuming(tiny_base: Base, tmp_path: Path) -> None:
    whole = learn(tiny_base, tmp_path / "run")
    again = learn(tiny_base, tmp_path / "run", resume=True)
    assert torch.equal(again.prompt.embeddings, whole.prompt.embeddings)
    assert again.steps == whole.steps


def test_a_half_written_checkpoint_is_as_good_as_none(tiny_base: Base, tmp_path: Path) -> None:
    whole = learn(tiny_base, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_base, tmp_path / "cut", callbacks=[StopAt(10)])
    kept = tmp_path / "cut" / "checkpoint-8"
    shutil.copytree(kept, tmp_path / "cut" / ".checkpoint-being-written" / "checkpoint-12")
    (tmp_path / "cut" / ".checkpoint-being-written" / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")
    resumed = learn(tiny_base, tmp_path / "cut", resume=True)
    assert torch.equal(resumed.prompt.embeddings, whole.prompt.embeddings)


def test_a_damaged_checkpoint_is_named(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_base, tmp_path / "run", callbacks=[StopAt(10)])
    (tmp_path / "run" / "checkpoint-8" / "prompt.safetensors").write_bytes(b"\x00")
    with pytest.raises(SoftPromptError, match=r"checkpoint-8: the checkpoint is damaged"):
        learn(tiny_base, tmp_path / "run", resume=True)


def test_the_best_prompt_is_kept_and_patience_ends_the_run(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.8, 0.7, 0.8, 0.6, 0.9])
    prompts = []

    def fake(self: Evaluator, progress: Any = None) -> Evaluation:
        prompts.append(self.model.prompts[0].detach().clone())
        return Evaluation(n=1, accuracy=next(scores), seconds=0.0)

    monkeypatch.setattr(Evaluator, "evaluate", fake)
    run = learn(tiny_base, tmp_path / "run", recipe=recipe(max_steps=60, patience=3))
    assert (run.steps, run.best_step) == (30, 12)
    assert torch.equal(run.prompt.embeddings, prompts[1])
    again = learn(tiny_base, tmp_path / "run", recipe=recipe(max_steps=60, patience=3), resume=True)
    assert (again.steps, again.best_step) == (30, 12)
    assert len(prompts) == 5


def test_patience_goes_by_what_makes_a_prompt_the_best(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal scores the lower log loss is better, and brings patience back."""
    losses = iter([0.9, 0.8, 0.7, 0.6, 0.6, 0.65, 0.5])
    monkeypatch.setattr(
        Evaluator, "evaluate", lambda *_: Evaluation(n=1, accuracy=0.5, log_loss=next(losses), seconds=0.0)
    )
    run = learn(tiny_base, recipe=recipe(max_steps=60, evaluate_every=6, patience=2))
    assert (run.steps, run.best_step) == (36, 24)


def test_the_last_step_is_validated_whatever_the_interval(tiny_base: Base) -> None:
    run = learn(tiny_base, recipe=recipe(max_steps=8, evaluate_every=5))
    assert [entry["step"] for entry in run.history if "eval_accuracy" in entry] == [5, 8]


def test_without_validation_the_last_prompt_is_kept(tiny_base: Base) -> None:
    run = learn(tiny_base, validation=None)
    assert run.validation is None
    assert run.best_step == run.steps == 24


def test_a_fraction_of_the_rows_is_set_aside(tiny_base: Base) -> None:
    run = learn(tiny_base, validation=0.25)
    assert run.validation is not None
    assert run.validation.n == 10


def test_gradient_accumulation_learns_the_same(tiny_base: Base) -> None:
    whole, parts = learn(tiny_base), learn(tiny_base, recipe=recipe(gradient_accumulation_steps=2))
    assert torch.allclose(whole.prompt.embeddings, parts.prompt.embeddings, atol=2e-4)


def test_the_saved_prompt_says_what_it_is(tiny_base: Base, tmp_path: Path) -> None:
    run = learn(tiny_base, tmp_path / "run")
    assert run.path is not None
    loaded = SoftPrompt.load(run.path, base=tiny_base)
    assert torch.equal(loaded.embeddings, run.prompt.embeddings)
    card = loaded.card
    assert card.base == tiny_base.identity
    assert Task.from_dict(card.task) == TASK.resolved(head=False)
    assert card.recipe["learning_rate"] == 0.01
    assert card.metrics["validation"]["accuracy"] == run.validation.accuracy  # type: ignore[index,call-overload,union-attr]
    assert card.initialisation["method"] == "vocabulary"
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("grad_norm" in entry for entry in logged)
    assert any("eval_accuracy" in entry for entry in logged)


def test_an_existing_folder_is_not_overwritten(tiny_base: Base, tmp_path: Path) -> None:
    learn(tiny_base, tmp_path / "run")
    with pytest.raises(SoftPromptError, match="exists: choose another output, --resume its run or --force"):
        learn(tiny_base, tmp_path / "run")
    learn(tiny_base, tmp_path / "run", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SoftPromptError, match="not a run's folder"):
        learn(tiny_base, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_only_the_same_run_is_resumed(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="there is no run to resume"):
        learn(tiny_base, tmp_path / "run", resume=True)
    learn(tiny_base, tmp_path / "run")
    named = r"had another recipe \(batch_size: 4, now 2, learning_rate: 'auto', now 0\.5\): resume it as it was"
    with pytest.raises(SoftPromptError, match=named):
        learn(tiny_base, tmp_path / "run", resume=True, recipe=recipe(learning_rate=0.5, batch_size=2))
    with pytest.raises(SoftPromptError, match="had another training rows"):
        learn(tiny_base, tmp_path / "run", resume=True, train=rows(39))


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_prompt(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    from softprompt.training import loop

    if late:  # as of a GPU, which is asked a step later
        finite = loop._Finite
        monkeypatch.setattr(loop, "_Finite", lambda late: finite(late=True))
    good = learn(tiny_base, tmp_path / "good", recipe=recipe(max_steps=24), callbacks=[])
    forward, calls = PromptedModel.forward, []

    def failing(self: PromptedModel, *args: Any, **kwargs: Any) -> PromptedOutput:
        output = forward(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 15:
            output.loss = output.loss * float("nan")  # type: ignore[operator]
        return output

    monkeypatch.setattr(PromptedModel, "forward", failing)
    with pytest.raises(DivergedError, match=r"step 15 with learning_rate 0.01.* last good prompt .* is kept in"):
        learn(tiny_base, tmp_path / "run")
    kept = SoftPrompt.load(tmp_path / "run" / "prompt", base=tiny_base)
    assert bool(kept.embeddings.isfinite().all())
    assert good.steps == 24


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softprompt.training import loop

    save_file, calls = loop.save_file, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr(loop, "save_file", full)
    with pytest.raises(SoftPromptError, match=r"the checkpoint can't be written.*No space left"):
        learn(tiny_base, tmp_path / "run")
    monkeypatch.undo()
    whole = learn(tiny_base, tmp_path / "whole")
    assert (tmp_path / "run" / "checkpoint-8").is_dir()
    resumed = learn(tiny_base, tmp_path / "run", resume=True)
    assert torch.equal(resumed.prompt.embeddings, whole.prompt.embeddings)


def test_unusable_input_is_refused(tiny_base: Base) -> None:
    with pytest.raises(SoftPromptError, match="have the label"):
        learn(tiny_base, train=[row for row in rows(20) if row.label == 1])
    with pytest.raises(SoftPromptError, match="can't be shared"):
        learn(tiny_base, recipe=recipe(gradient_accumulation_steps=3))
    with pytest.raises(WrongBaseError, match="tiny-llama"):
        train(make_base(seed=1), SoftPrompt.from_vocabulary(tiny_base, 4), TASK, train=rows(8))


def test_long_texts_are_cut_and_counted(tiny_base: Base) -> None:
    long = [Row({"text": "m" * 100_000}, 1, " no"), *rows(20)]
    run = learn(tiny_base, train=long, recipe=recipe(max_steps=6))
    assert run.truncated == 1


@pytest.mark.long
def test_two_processes_learn_what_one_learns(tiny_base: Base, tmp_path: Path) -> None:
    script = tmp_path / "learn.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\n"
        "from tests.conftest import make_base\n"
        "from tests.training.test_run import learn\n"
        "learn(make_base(), Path(sys.argv[1]))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517"]
    result = subprocess.run(
        [*launch, str(script), str(tmp_path / "two")], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    one = learn(tiny_base)
    two = SoftPrompt.load(tmp_path / "two" / "prompt", base=tiny_base)
    assert torch.allclose(one.prompt.embeddings, two.embeddings, atol=2e-4)


FAULTS = {
    "texts of the validation rows are among the training rows": {"validation": rows(10)},
    "texts of the test rows are among the training rows": {"test": rows(10)},
    "training rows repeat an earlier one": {"train": rows(20) + rows(2)},
    "with more than one answer": {"train": [*rows(20), Row(rows(1)[0].columns, 1, " no")]},
    "The labels are uneven": {"train": [row for row in rows(40) if row.label == 0 or row.number < 5]},
    "There are no validation rows": {"validation": None},
    "24 steps of 4 rows see 96 of the 200 training rows (48%)": {"train": rows(200)},
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_faults_of_the_data_are_said_kept_and_reported(
    tiny_base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture, sentence: str
) -> None:
    caplog.set_level(logging.INFO, logger="softprompt")

    class Said(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            assert sentence in caplog.text  # before the first step

    run = learn(tiny_base, tmp_path / "run", callbacks=[Said()], **FAULTS[sentence])  # type: ignore[arg-type]
    assert sentence in " ".join(problem.text for problem in run.problems)
    assert sentence in " ".join(problem["text"] for problem in run.to_json()["problems"])
    assert sentence in write_report(tmp_path / "run").read_text()


def test_a_label_without_rows_is_said(tiny_base: Base, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="softprompt")
    task = Task(template="Text: {text}\nMood:", labels=["yes", "no", "maybe"])
    prompt = SoftPrompt.from_vocabulary(tiny_base, 3)
    run = train(tiny_base, prompt, task, train=rows(8), recipe=recipe(max_steps=2))
    said = "No training row has the label ['maybe']"
    assert any(said in problem.text for problem in run.problems)
    assert said in caplog.text


def test_a_sound_run_says_nothing(tiny_base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = learn(tiny_base, tmp_path / "run", test=rows(10, 60))
    assert run.problems == []
    assert "data: " not in caplog.text


@pytest.mark.parametrize("template", ["Text: {text}\\nMood:", "{text}\\tMood:"])
def test_backslashes_that_are_no_line_ends_are_said(tiny_base: Base, template: str) -> None:
    task = Task(template=template, labels=["yes", "no"])
    run = train(tiny_base, SoftPrompt.from_vocabulary(tiny_base, 3), task, train=rows(8), recipe=recipe(max_steps=2))
    assert any("holds a backslash and the letter" in problem.text for problem in run.problems)


class TestLock:
    def hold(self, folder: Path) -> subprocess.Popen[str]:
        """A process that trains in the folder until it is killed."""
        program = f"""
import pathlib, time
from softprompt.training.folder import locked
with locked(pathlib.Path({str(folder)!r})):
    print("held", flush=True)
    time.sleep(100)
"""
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    @pytest.mark.parametrize(
        "options", [{"force": True}, *(pytest.param(some, marks=pytest.mark.long) for some in ({"resume": True}, {}))]
    )
    def test_a_folder_in_which_a_run_trains_is_left_alone(
        self, tiny_base: Base, tmp_path: Path, options: dict[str, bool]
    ) -> None:
        folder = tmp_path / "run"
        learn(tiny_base, folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        other = self.hold(folder)
        try:
            with pytest.raises(SoftPromptError, match="another process trains there"):
                learn(tiny_base, folder, **options)
            found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            assert {path: content for path, content in found.items() if path.name != ".lock"} == before
        finally:
            other.kill()
            other.communicate()
        assert learn(tiny_base, folder, force=True).steps == 24  # its lock died with it
        assert not (folder / ".lock").exists()

    def test_a_folder_that_was_not_opened_is_not_left_behind(self, tiny_base: Base, tmp_path: Path) -> None:
        with pytest.raises(SoftPromptError, match="no run to resume"):
            learn(tiny_base, tmp_path / "run", resume=True)
        assert not (tmp_path / "run").exists()


def test_tables_in_memory_are_learned_and_asked_alike(tiny_base: Base, tmp_path: Path) -> None:
    found = rows(40)
    table = [{"text": row.columns["text"], "label": (row.target or "").strip()} for row in found]
    frame = pandas.DataFrame(table)
    for name, part in (("a.csv", frame[:20]), ("b.csv", frame[20:])):
        part.to_csv(tmp_path / name, index=False)
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    short = recipe(max_steps=3)
    kept = learn(tiny_base, train=found, validation=found[:8], recipe=short).prompt
    expected = evaluate(tiny_base, kept, TASK, found)
    asked = [one.probabilities for one in predict(tiny_base, kept, TASK, found)]
    for source in (table, frame, datasets.Dataset.from_list(table), files):
        run = learn(tiny_base, train=source, validation=table[:8], test=source, recipe=short)
        assert torch.equal(run.prompt.embeddings, kept.embeddings)
        assert evaluate(tiny_base, kept, TASK, source).log_loss == expected.log_loss
        if source is not files:
            assert [one.probabilities for one in predict(tiny_base, kept, TASK, source)] == asked
    with pytest.raises(SoftPromptError, match=r"'joy' is one text, and several are taken: put it in a list"):
        predict(tiny_base, kept, TASK, "joy")
    for wrong in (3, {"text": ["a"]}, None):
        with pytest.raises(SoftPromptError, match=r"is no table: give a file"):
            evaluate(tiny_base, kept, TASK, wrong)


def test_epochs_count_the_rows_that_are_learned_from(tiny_base: Base) -> None:
    run = learn(tiny_base, train=rows(40), validation=0.25, recipe=Recipe(epochs=1, batch_size=4))
    assert run.steps == 8
    assert run.prompt.card.recipe["max_steps"] == 8
    assert not any("steps of" in problem.text for problem in run.problems)


def test_only_what_is_learned_from_is_encoded(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in the order in which the rows would come were all of them encoded."""
    encoded: list[int] = []
    whole = Encoder.encode_rows

    def count(self: Encoder, given: Any, **options: Any) -> Any:
        encoded.append(len(given))
        return whole(self, given, **options)

    monkeypatch.setattr(Encoder, "encode_rows", count)
    given = rows(300)
    learn(tiny_base, train=given, validation=None, recipe=recipe(max_steps=3))
    assert encoded == [12]
    learn(tiny_base, train=given, validation=None, recipe=recipe(max_steps=90))
    assert encoded[1:] == [300]
    encoder = Encoder(tiny_base, TASK)
    for batches in (3, 50, 75, 90):
        used = learned_rows(300, 4, batches, 5)
        part = Schedule(whole(encoder, [given[i] for i in used]), 4, batches, 5, used, 300)
        all_rows = Schedule(whole(encoder, given), 4, batches, 5)
        assert [part[i] for i in range(len(part))] == [all_rows[i] for i in range(len(all_rows))]
