from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from softprompt import Base, Diagnosis, SoftPrompt
from softprompt.bases.words import word_norms
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.training.schedule import Lanes, Schedule, flatten
from softprompt.training.trajectory import Trajectory
from tests.conftest import make_base
from tests.training.runs import TASK, learn, recipe, rows


class Witness(TrainerCallback):
    """Keeps the prompt before and after every step."""

    def __init__(self) -> None:
        self.before: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before[state.global_step + 1] = model.prompts[0].detach().clone()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after[state.global_step] = model.prompts[0].detach().clone()


class StopAt(TrainerCallback):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trajectory(folder: Path) -> Trajectory:
    return Trajectory.read(folder / "monitor.jsonl")


def test_what_is_measured_is_what_happened(tiny_base: Base, tmp_path: Path) -> None:
    witness, prompt = Witness(), SoftPrompt.from_vocabulary(tiny_base, 6)
    learn(tiny_base, tmp_path / "run", prompt, callbacks=[witness])
    found, words = trajectory(tmp_path / "run"), word_norms(tiny_base)
    assert found.start is not None
    assert found.start.norm == pytest.approx(prompt.embeddings.norm(dim=1).tolist())
    assert found.start.vocabulary_mean == pytest.approx(float(words.mean()))
    assert found.start.vocabulary_percentiles[-1] == pytest.approx(float(words.max()))
    assert [one.step for one in found.measurements] == [1, *range(2, 25, 2)]
    assert [one.step for one in found.validations] == [6, 12, 18, 24]
    for one in found.measurements:
        before, after = witness.before[one.step], witness.after[one.step]
        assert one.norm == pytest.approx(after.norm(dim=1).tolist(), rel=1e-6)
        ratio = (after - before).norm(dim=1) / before.norm(dim=1)
        assert one.update == pytest.approx(ratio.tolist(), rel=1e-5)
        assert one.drift == pytest.approx((after - prompt.embeddings).norm(dim=1).tolist(), rel=1e-5, abs=1e-6)
        cosine = torch.cosine_similarity(after, prompt.embeddings, dim=1)
        assert one.cosine == pytest.approx(cosine.tolist(), rel=1e-5)
        assert one.z == pytest.approx(((after.norm(dim=1) - words.mean()) / words.std()).tolist(), rel=1e-3, abs=1e-3)
    assert found.measurements[-1].learning_rate < found.measurements[2].learning_rate


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_is_that_of_the_whole_batch_before_clipping(tiny_base: Base, tmp_path: Path, parts: int) -> None:
    prompt = SoftPrompt.from_vocabulary(tiny_base, 6)
    learn(tiny_base, tmp_path / "run", prompt, recipe=recipe(gradient_accumulation_steps=parts, max_grad_norm=1e-3))
    encoded = Encoder(tiny_base, TASK).encode_rows(rows(40))
    schedule = Schedule(encoded, 4, 24, 0)
    model = PromptedModel(tiny_base, [prompt])
    loss = model(**flatten([Lanes([schedule], 4)[i] for i in range(4)])).loss
    loss.backward()
    first = trajectory(tmp_path / "run").measurements[0]
    assert model.prompts[0].grad is not None
    assert first.gradient == pytest.approx(model.prompts[0].grad.norm(dim=1).tolist(), rel=1e-4)
    assert math.hypot(*first.gradient) > 1e-2
    assert first.loss == pytest.approx(loss.item(), rel=1e-4)


def test_a_run_with_the_monitor_is_a_run_without_it(tiny_base: Base, tmp_path: Path) -> None:
    watched = learn(tiny_base, tmp_path / "watched")
    alone = learn(make_base(), tmp_path / "alone", recipe=recipe(monitor=False))
    assert torch.equal(watched.prompt.embeddings, alone.prompt.embeddings)
    assert not (tmp_path / "alone" / "monitor.jsonl").exists()
    assert alone.diagnoses == []
    assert not any(key.startswith("prompt_") for entry in alone.history for key in entry)
    # The monitor is no part of what is learned: a run goes on with it or without.
    resumed = learn(make_base(), tmp_path / "alone", resume=True)
    assert torch.equal(resumed.prompt.embeddings, watched.prompt.embeddings)


@pytest.mark.parametrize("step", [3, 9])
def test_a_resumed_run_has_no_step_twice_and_none_missing(tiny_base: Base, tmp_path: Path, step: int) -> None:
    learn(tiny_base, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(make_base(), tmp_path / "cut", callbacks=[StopAt(step)])
    with (tmp_path / "cut" / "monitor.jsonl").open("ab") as file:
        file.write(b'{"kind": "measurement", "step": 8, "lo')  # as a kill leaves it
    resumed = learn(make_base(), tmp_path / "cut", resume=True)
    whole, cut = trajectory(tmp_path / "whole"), trajectory(tmp_path / "cut")
    assert cut.start == whole.start
    assert [one.step for one in cut.validations] == [one.step for one in whole.validations]
    assert [one.model_dump(exclude={"loss"}) for one in cut.measurements] == [
        one.model_dump(exclude={"loss"}) for one in whole.measurements
    ]
    lines = (tmp_path / "cut" / "monitor.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(whole.measurements) + len(whole.validations)
    assert all(json.loads(line) for line in lines)
    again = learn(make_base(), tmp_path / "cut", resume=True)  # over: nothing is trained
    assert again.diagnoses == resumed.diagnoses


def test_loggers_and_the_log_get_the_figures(tiny_base: Base, tmp_path: Path) -> None:
    heard: list[list[Diagnosis]] = []
    run = learn(
        tiny_base,
        tmp_path / "run",
        recipe=recipe(learning_rate=1e-6, report_to=["tensorboard"]),
        diagnosed=lambda found: heard.append(list(found)),
    )
    entries = [entry for entry in run.history if "loss" in entry]
    measured = trajectory(tmp_path / "run").measurements
    for entry, one in zip(entries, measured, strict=True):
        assert entry["prompt_gradient_smallest"] == min(one.gradient)
        assert entry["prompt_gradient_largest"] == max(one.gradient)
        assert entry["prompt_drift"] == pytest.approx(sum(one.drift) / 6)
        assert min(one.update) <= entry["prompt_update_ratio"] <= max(one.update)
        assert {"prompt_norm", "prompt_norm_z", "prompt_cosine_to_start"} <= set(entry)
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("prompt_update_ratio" in entry for entry in logged)
    events = list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert any(b"train/prompt_update_ratio" in path.read_bytes() for path in events)
    assert len(heard) == len(measured) + 4  # after every entry and validation
    assert heard[-1] == run.diagnoses
    assert "learning rate too low" in {diagnosis.name for diagnosis in run.diagnoses}
    assert run.to_json()["diagnoses"][0].keys() == {"name", "sentence"}


def test_a_start_that_was_trained_before_is_known(tiny_base: Base, tmp_path: Path) -> None:
    first = learn(tiny_base, tmp_path / "first")
    for prompt, trained in [
        (first.prompt, True),
        (SoftPrompt.from_prompt(first.prompt), True),
        (SoftPrompt.random(tiny_base, 6), False),
    ]:
        learn(tiny_base, tmp_path / "next", prompt, force=True, recipe=recipe(max_steps=2))
        start = trajectory(tmp_path / "next").start
        assert start is not None
        assert start.trained is trained
