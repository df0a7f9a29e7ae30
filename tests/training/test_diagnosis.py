"""Each fault is found in a run that has it, and none in runs that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from softprompt import Base, Row, Run, SoftPrompt
from softprompt.training.diagnosis import diagnose
from softprompt.training.trajectory import Measurement, Trajectory, Validated
from tests.conftest import make_tokenizer
from tests.training.runs import learn, recipe, rows
from tests.training.test_trajectory import start

RECORDED = Path(__file__).parent / "recorded"


def names(run: Run) -> list[str]:
    return [diagnosis.name for diagnosis in run.diagnoses]


def sentence(run: Run, name: str) -> str:
    return next(diagnosis.sentence for diagnosis in run.diagnoses if diagnosis.name == name)


@pytest.mark.parametrize("rate", [0.03, 0.1])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_healthy_run_is_left_in_peace(tiny_base: Base, rate: float, optimizer: str) -> None:
    settings = recipe(max_steps=60, learning_rate=rate, evaluate_every=15, optimizer=optimizer)
    run = learn(tiny_base, train=rows(400), validation=rows(60, 400), recipe=settings)
    assert run.diagnoses == []


def test_a_trained_prompt_that_goes_on_is_left_in_peace(tiny_base: Base) -> None:
    settings = recipe(max_steps=60, learning_rate=0.1)
    first = learn(tiny_base, train=rows(400), validation=None, recipe=settings)
    again = learn(tiny_base, None, first.prompt, train=rows(400), validation=None, recipe=recipe(learning_rate=0.03))
    assert again.diagnoses == []


def test_tokens_out_of_sight_are_dead() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=4,  # two layers reach back twice three tokens
        initializer_range=0.3,
        pad_token_id=1,
    )
    model = MistralForCausalLM(config).eval().requires_grad_(False)
    base = Base(model=model, tokenizer=make_tokenizer(), name="tiny-mistral")
    # Three tokens of text before the label: the prompt's last ones are within reach, the first ones are not.
    short = [Row({"text": f"{'mw'[i % 2]}{i % 10}"}, i % 2, [" yes", " no"][i % 2]) for i in range(40)]
    run = learn(base, None, SoftPrompt.from_vocabulary(base, 12), train=short, validation=None)
    assert "dead tokens" in names(run)
    said = sentence(run, "dead tokens")
    count = int(said.split()[0])
    assert 6 <= count < 12
    assert f"of 12 virtual tokens (0, 1, 2, 3, 4, 5{', ' if count > 6 else ')'}" in said
    assert said.endswith(f"set prompt.num_virtual_tokens to {12 - count}")


def test_a_prompt_that_the_loss_does_not_see_is_dead() -> None:
    run = steady(gradient=[0.0, 0.0])
    (found,) = [one for one in diagnose(run) if one.name == "dead tokens"]
    assert found.sentence.startswith("all 2 virtual tokens get a gradient of 0")


def test_tokens_explode_and_the_rate_is_too_high(tiny_base: Base) -> None:
    run = learn(tiny_base, recipe=recipe(learning_rate=20.0, max_steps=40))
    assert {"exploding tokens", "learning rate too high"} <= set(names(run))
    assert "now 20, to about 2," in sentence(run, "exploding tokens")
    assert "lower recipe.learning_rate, now 20, to about" in sentence(run, "learning rate too high")


def test_a_rate_that_moves_nothing_is_too_low_and_the_loss_is_flat(tiny_base: Base) -> None:
    run = learn(tiny_base, train=rows(400), recipe=recipe(learning_rate=1e-5, max_steps=40))
    assert names(run) == ["learning rate too low", "flat loss"]
    assert "raise recipe.learning_rate, now 1e-05, to about" in sentence(run, "learning rate too low")
    assert "within its noise of" in sentence(run, "flat loss")


def test_worked_examples_may_leave_little_to_learn(tiny_base: Base) -> None:
    examples = SoftPrompt.from_examples(tiny_base, ["m1: no\n", "w2: yes\n"], 8)
    settings = recipe(learning_rate=1e-5, max_steps=40)
    run = learn(tiny_base, None, examples, train=rows(400), validation=None, recipe=settings)
    assert names(run) == ["learning rate too low"]


def test_pefts_random_start_is_outside_the_vocabulary(tiny_base: Base) -> None:
    far = SoftPrompt.random(tiny_base, 6, distribution="normal")
    run = learn(tiny_base, None, far)
    assert "start outside the vocabulary" in names(run)
    assert f"median norm of {far.embeddings.norm(dim=1).sort().values[2:4].mean():.3g}" in sentence(
        run, "start outside the vocabulary"
    )
    near = SoftPrompt(far.embeddings * 0.01)
    assert "start outside the vocabulary" in names(learn(tiny_base, None, near))


def test_a_prompt_that_learns_rows_by_heart_overfits(tiny_base: Base) -> None:
    settings = recipe(max_steps=120, learning_rate=0.1, evaluate_every=10, patience=99, log_every=5)
    run = learn(
        tiny_base,
        None,
        SoftPrompt.from_vocabulary(tiny_base, 12),
        train=rows(8, by_chance=3),
        validation=rows(40, 40, by_chance=4),
        recipe=settings,
    )
    assert names(run) == ["overfitting"]
    said = sentence(run, "overfitting")
    assert "validation log loss got worse" in said
    assert "stop at about step" in said


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("rate-0.03", []),
        ("rate-0.3", []),
        ("rate-0.001", ["learning rate too low"]),
        ("lester", ["learning rate too high"]),
        ("start-normal", ["start outside the vocabulary"]),
        ("rate-3", ["exploding tokens", "learning rate too high"]),
    ],
)
def test_runs_of_the_real_base(file: str, expected: list[str]) -> None:
    """Recorded on SmolLM2-135M with the demonstration's film reviews; every measurement but not every digit."""
    run = Trajectory.read(RECORDED / f"{file}.jsonl")
    assert run.measurements
    assert [diagnosis.name for diagnosis in diagnose(run)] == expected


def steady(validations: list[tuple[int, dict[str, float]]] | None = None, **changed: Any) -> Trajectory:
    """A run of 12 entries in which the loss falls from 2 by a tenth each time, and what else is given."""
    numbers = {"gradient": [1.0, 0.5], "update": [0.05, 0.05], "norm": [1.5, 1.5], "z": [0.0, 0.0]}
    numbers |= {"drift": [0.5, 0.5], "cosine": [0.9, 0.9]} | changed
    return Trajectory(
        start(),
        [Measurement(step=10 * i, loss=2 * 0.9**i, learning_rate=0.03, **numbers) for i in range(12)],
        [Validated(step=step, figures=figures) for step, figures in validations or []],
    )


def test_a_steady_run_is_left_in_peace() -> None:
    assert diagnose(steady()) == []
    assert diagnose(Trajectory()) == []
    assert diagnose(Trajectory(start())) == []


@pytest.mark.parametrize(
    ("figures", "overfits"),
    [
        ([0.6, 0.5, 0.6, 0.7], True),
        ([0.6, 0.5, 0.6, 0.5], False),  # it jumps
        ([0.6, 0.5, 0.52, 0.53], False),  # within what a validation is uncertain by
        ([0.6, 0.5, 0.6], False),  # too early to tell
        ([0.6, 0.5, 0.4, 0.3], False),
    ],
)
def test_overfitting_takes_two_validations_that_are_clearly_worse(figures: list[float], overfits: bool) -> None:
    for values, name in ((figures, "log_loss"), ([1 - value for value in figures], "exact_match")):
        run = steady([(25 * i + 25, {name: value, "n": 100.0}) for i, value in enumerate(values)])
        assert [one.name for one in diagnose(run)] == ["overfitting"] * overfits


def test_it_is_no_overfitting_within_the_first_pass() -> None:
    run = steady([(25 * i + 25, {"log_loss": value}) for i, value in enumerate([0.6, 0.5, 0.6, 0.7])])
    assert run.start is not None
    run.start = run.start.model_copy(update={"steps_per_pass": 100})
    assert diagnose(run) == []


def test_a_loss_that_only_jumps_is_flat() -> None:
    run = steady()
    jumps = [0.70, 0.78, 0.66, 0.73, 0.69, 0.75, 0.68, 0.77, 0.71, 0.65, 0.74, 0.70]
    run.measurements = [
        one.model_copy(update={"loss": loss}) for one, loss in zip(run.measurements, jumps, strict=True)
    ]
    assert [one.name for one in diagnose(run)] == ["flat loss"]
    run.measurements = [
        one.model_copy(update={"loss": loss - 0.005 * one.step})
        for one, loss in zip(run.measurements, jumps, strict=True)
    ]
    assert diagnose(run) == []


def test_it_is_no_overfitting_while_the_training_loss_stays() -> None:
    run = steady([(25 * i + 25, {"log_loss": value}) for i, value in enumerate([0.6, 0.5, 0.6, 0.7])])
    run.measurements = [one.model_copy(update={"loss": 2 - 0.001 * one.step}) for one in run.measurements]
    assert "overfitting" not in [one.name for one in diagnose(run)]
