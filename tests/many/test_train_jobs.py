"""Runs side by side, each as it would be alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from softprompt import Base, DivergedError, Row, Run, SoftPrompt, Task, train
from softprompt.models.prompted import PromptedModel, PromptedOutput
from softprompt.training.many import Job, shape, train_jobs
from tests.training.test_run import TASK, recipe, rows

HEAD = Task(template="{text}:", labels=["yes", "no"], answer="head")
OTHER = Task(template="Is it {text}?", labels=["certainly", "n"])


def other_rows(count: int, start: int = 0) -> list[Row]:
    return [
        Row(row.columns, row.label, " " + (OTHER.labels or [])[row.label or 0], number=row.number)
        for row in rows(count, start)
    ]


def jobs(base: Base, folder: Path, *, head: bool = False, **changed: Any) -> list[Job]:
    """Three runs that differ in their rows, their template, their prompt's length and their patience."""
    settings = {"max_steps": 12, "learning_rate": 1e-3, "evaluate_every": 4} | changed
    tasks = [HEAD, HEAD, HEAD] if head else [TASK, OTHER, TASK]
    found = []
    for k, task in enumerate(tasks):
        make = other_rows if task is OTHER else rows
        data = (make(30 + k), None if k == 2 else make(12, 50 + k), None)
        own = recipe(**settings, seed=k, patience=1 + k)
        prompt = SoftPrompt.from_vocabulary(base, 3 + k, seed=k)
        found.append(Job(prompt, task.resolved(head=head), data, own, folder / str(k)))
    return found


def together(base: Base, some: list[Job], folder: Path, **options: Any) -> list[Run | Exception]:
    found: dict[int, Run | Exception] = {}
    train_jobs(base, some, folder / "shared", found.__setitem__, **options)
    assert not (folder / "shared").exists()
    return [found[k] for k in range(len(some))]


def alone(base: Base, job: Job, folder: Path | None = None) -> Run:
    train_rows, checks, _ = job.data
    return train(base, job.prompt, job.task, train=train_rows, validation=checks, recipe=job.recipe, output=folder)


@pytest.mark.parametrize(
    "changed",
    [{}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0}, {"max_grad_norm": 0.01, "max_tokens": 32}],
    ids=["plain", "accumulated, unclipped", "clipped, in turns"],
)
@pytest.mark.parametrize("head", [False, True], ids=["words", "heads"])
def test_side_by_side_equals_one_by_one(tiny_base: Base, tmp_path: Path, head: bool, changed: dict[str, Any]) -> None:
    some = jobs(tiny_base, tmp_path, head=head, **changed)
    assert len({shape(job.task, job.recipe) for job in some}) == 1
    for job, run in zip(some, together(tiny_base, some, tmp_path), strict=True):
        own = alone(tiny_base, job, tmp_path / "alone" / job.output.name)
        assert isinstance(run, Run)
        assert not torch.allclose(own.prompt.embeddings, job.prompt.embeddings, atol=1e-3)
        torch.testing.assert_close(run.prompt.embeddings, own.prompt.embeddings, rtol=0, atol=1e-5)
        if own.prompt.head is not None:
            torch.testing.assert_close(run.prompt.head, own.prompt.head, rtol=0, atol=1e-5)
        assert (run.steps, run.best_step, run.truncated) == (own.steps, own.best_step, own.truncated)
        kept, asked = (
            {one.name for one in place.iterdir()} for place in (job.output, tmp_path / "alone" / job.output.name)
        )
        assert kept == {name for name in asked if not name.startswith("checkpoint")}
        assert (job.output / "run.json").read_text() == (tmp_path / "alone" / job.output.name / "run.json").read_text()
        losses, others = ([one["loss"] for one in each.history if "loss" in one] for each in (run, own))
        assert losses == pytest.approx(others, abs=1e-4)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [2, 6, 9])
def test_a_group_goes_on(tiny_base: Base, tmp_path: Path, step: int) -> None:
    whole = together(tiny_base, jobs(tiny_base, tmp_path / "whole"), tmp_path)
    some = jobs(tiny_base, tmp_path / "some")
    stopped = [
        *some[:2],
        Job(*(getattr(some[2], key) for key in ("prompt", "task", "data", "recipe", "output")), [StopAt(step)]),
    ]
    with pytest.raises(KeyboardInterrupt):
        together(tiny_base, stopped, tmp_path)
    assert (tmp_path / "shared" / "checkpoint-4").exists() == (4 < step < 8)
    again = together(tiny_base, some, tmp_path, resume=True)
    for one, other in zip(whole, again, strict=True):
        assert isinstance(one, Run)
        assert isinstance(other, Run)
        assert torch.equal(one.prompt.embeddings, other.prompt.embeddings)
        assert (one.steps, one.best_step, len(one.history)) == (other.steps, other.best_step, len(other.history))


def test_one_that_diverges_leaves_the_others(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = jobs(tiny_base, tmp_path)
    expected = [alone(tiny_base, job) for job in some]
    forward = PromptedModel.forward
    seen = []

    def failing(self: PromptedModel, *args: Any, **kwargs: Any) -> PromptedOutput:
        output = forward(self, *args, **kwargs)
        if len(self.prompts) == 3 and (kwargs["prompt_index"] == 1).any():
            seen.append(0)
            if len(seen) > 5:  # what is beside it is spoilt too
                output.loss = output.loss * float("nan")  # type: ignore[operator]
        return output

    monkeypatch.setattr(PromptedModel, "forward", failing)
    first, second, third = together(tiny_base, some, tmp_path)
    assert isinstance(second, DivergedError)
    assert "NaN or infinite at step 6" in str(second)
    assert f"the last good prompt (step 4) is kept in {tmp_path / '1' / 'prompt'}" in str(second)
    for run, own in ((first, expected[0]), (third, expected[2])):
        assert isinstance(run, Run)
        torch.testing.assert_close(run.prompt.embeddings, own.prompt.embeddings, rtol=0, atol=1e-5)
        assert run.steps == own.steps


def test_one_that_cannot_begin_leaves_the_others(tiny_base: Base, tmp_path: Path) -> None:
    some = jobs(tiny_base, tmp_path)
    some[0].output.mkdir()
    (some[0].output / "thesis.txt").write_text("mine")
    bad = [row for row in rows(30) if row.label]
    some[1] = replace(some[1], task=TASK.resolved(head=False), data=(bad, None, None))
    first, second, third = together(tiny_base, some, tmp_path)
    assert "choose another output" in str(first)
    assert "have the label" in str(second)
    assert isinstance(third, Run)
    assert not (tmp_path / "1").exists()
    assert (some[0].output / "thesis.txt").read_text() == "mine"


def test_what_learns_alone() -> None:
    assert shape(TASK, recipe(report_to=["tensorboard"])) is None
    assert shape(HEAD, recipe(class_weights="balanced")) is None
    assert shape(TASK, recipe(seed=1, patience=2)) == shape(OTHER, recipe())
    assert shape(TASK, recipe()) != shape(TASK, recipe(batch_size=2))
    assert shape(TASK.resolved(head=False), recipe()) != shape(HEAD, recipe())
