"""Private training: gradients row by row, the mechanism, its account, and what is refused."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants import PRVAccountant
from opacus.accountants.utils import get_noise_multiplier
from torch import Tensor

from softprompt import Base, Recipe, Row, Run, SoftPrompt, SoftPromptError, Task, grow, train
from softprompt.comparison.plan import make_plan
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.training.ensemble import train_ensemble
from softprompt.training.privacy import Mechanism, make_mechanism
from softprompt.training.recipe import Private
from softprompt.training.schedule import flatten
from softprompt.training.taskfile import load_task_file
from tests.conftest import make_base
from tests.training.test_run import TASK, StopAt, recipe, rows

PRIVATE = {"epsilon": 8, "delta": 1e-3}


def learn(base: Base, output: Path | None = None, prompt: SoftPrompt | None = None, **changed: Any) -> Run:
    settings = {"private": PRIVATE | {"seed": 7}, "evaluate_every": 6, "monitor": False}
    options: dict[str, Any] = {"train": rows(60), "validation": rows(12, 60), "recipe": recipe(**settings)}
    return train(base, prompt or SoftPrompt.from_vocabulary(base, 6), TASK, output=output, **options | changed)


def examples(base: Base, task: Task, count: int) -> list[dict[str, Any]]:
    some = rows(count)
    if task.labels is None:  # of several target tokens
        some = [Row(row.columns, None, " " + "yes" * (1 + i % 3)) for i, row in enumerate(some)]
    encoded = Encoder(base, task, virtual_tokens=5).encode_rows(some)
    return [encoded.example(row) | {"prompt": 0} for row in range(count)]


def gradients_one_by_one(model: PromptedModel, batch: list[dict[str, Any]]) -> tuple[list[float], list[list[Tensor]]]:
    """The loss and the gradients of batches of one row."""
    losses, grads = [], []
    for one in batch:
        model.zero_grad()
        flat = flatten([one])
        out = model(flat["input_ids"], labels=flat["labels"], lengths=flat["lengths"])
        assert out.loss is not None
        out.loss.backward()
        losses.append(out.loss.item())
        grads.append([parameter.grad.clone() for parameter in model.parameters()])  # type: ignore[union-attr]
    return losses, grads


def gradients_together(model: PromptedModel, batch: list[dict[str, Any]]) -> tuple[Tensor, list[Tensor]]:
    flat = flatten(batch)
    return model.row_gradients(flat["input_ids"], flat["labels"], flat["lengths"])


@pytest.mark.parametrize("route", ["packed", "shared_prefix", "concatenated"])
@pytest.mark.parametrize("max_tokens", [None, 40])
@pytest.mark.parametrize(
    "task", [TASK, TASK.answered_by("head"), Task(template="{text}:", target=" {label}")], ids=["words", "head", "text"]
)
def test_gradients_of_rows_are_those_of_one_row_batches(
    tiny_base: Base, task: Task, max_tokens: int | None, route: str
) -> None:
    prompt = SoftPrompt.from_vocabulary(tiny_base, 5)
    if task.kind == "head":
        prompt = replace(prompt, head=torch.randn(2, 32))
    model = PromptedModel(tiny_base, [prompt], max_tokens=max_tokens, route=route)
    batch = examples(tiny_base, task, 9)
    losses, expected = gradients_one_by_one(model, batch)
    found_losses, found = gradients_together(model, batch)
    assert found_losses.tolist() == pytest.approx(losses, rel=1e-4)
    assert [list(one.shape) for one in found] == [[9, 5, 32], [9, 2, 32]][: len(found)]
    for row, grads in enumerate(expected):
        for one, grad in zip(found, grads, strict=True):
            assert torch.allclose(one[row], grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()) + 1e-7)


def test_gradients_of_rows_in_bfloat16_are_as_near_to_float32_as_those_of_one_row_batches() -> None:
    prompt = SoftPrompt.from_vocabulary(make_base(), 5)
    batch = examples(make_base(), TASK, 16)
    _, exact = gradients_one_by_one(PromptedModel(make_base(), [prompt]), batch)
    model = PromptedModel(make_base(torch.bfloat16), [prompt])
    _, alone = gradients_one_by_one(model, batch)
    _, (together,) = gradients_together(model, batch)

    def error(grads: list[Tensor]) -> float:
        return float(torch.stack([g - one[0] for g, one in zip(grads, exact, strict=True)]).norm())

    assert error(list(together)) <= 1.25 * error([one[0] for one in alone])


def test_no_rows_have_no_gradients(tiny_base: Base) -> None:
    model = PromptedModel(tiny_base, [SoftPrompt.from_vocabulary(tiny_base, 5)])
    losses, (grads,) = gradients_together(model, [])
    assert (list(losses.shape), list(grads.shape)) == ([0], [0, 5, 32])
    two = PromptedModel(tiny_base, [SoftPrompt.from_vocabulary(tiny_base, 5)] * 2)
    batch = examples(tiny_base, TASK, 2)
    with pytest.raises(SoftPromptError, match="for one prompt, not 2"):
        gradients_together(two, batch)


def mechanism(noise: float = 1.0, rows: int = 1000, batch_size: int = 50, limit: float = 1.0) -> Mechanism:
    return Mechanism(Private(epsilon=8, max_grad_norm=limit), rows, batch_size, noise, secret=3)


def test_each_row_is_clipped_over_all_that_is_trained() -> None:
    silent = mechanism(noise=0.0, batch_size=2, limit=5.0)
    prompts, heads = torch.zeros(2, 3, 4), torch.zeros(2, 1, 4)
    prompts[0, 0, 0], heads[0, 0, 0] = 30, 40  # of norm 50: to a tenth
    prompts[1, 2, 1] = 2  # short enough
    prompt, head = silent.privatise([prompts, heads], 0)
    assert prompt[0, 0].item() == pytest.approx(3 / 2)
    assert head[0, 0].item() == pytest.approx(4 / 2)
    assert prompt[2, 1].item() == pytest.approx(2 / 2)
    assert prompt.count_nonzero() == 2


def test_the_noise_has_its_deviation_and_is_new_at_each_step() -> None:
    noisy = mechanism(noise=2.0, batch_size=10, limit=3.0)
    (first,), (second,), (again,) = (noisy.privatise([torch.zeros(0, 100, 100)], step) for step in (0, 1, 0))
    assert torch.equal(first, again)
    assert abs(float(torch.stack([first.flatten(), second.flatten()]).corrcoef()[0, 1])) < 0.05
    assert first.std().item() == pytest.approx(2.0 * 3.0 / 10, rel=0.03)
    assert first.mean().item() == pytest.approx(0, abs=0.03)
    other = Mechanism(noisy.settings, 1000, 10, 2.0, secret=4)
    assert not torch.equal(other.privatise([torch.zeros(0, 100, 100)], 0)[0], first)
    assert "secret" not in repr(noisy)


def test_rows_are_drawn_by_poisson_sampling() -> None:
    drawn = [mechanism().drawn(step) for step in range(400)]
    sizes = torch.tensor([float(len(some)) for some in drawn])
    assert sizes.mean().item() == pytest.approx(50, abs=1.5)
    assert sizes.var().item() == pytest.approx(1000 * 0.05 * 0.95, rel=0.25)
    counts = torch.bincount(torch.tensor([row for some in drawn for row in some]), minlength=1000).float()
    assert counts.mean().item() == pytest.approx(20, abs=0.6)
    assert counts.var().item() == pytest.approx(400 * 0.05 * 0.95, rel=0.25)


def test_the_account_is_the_accountants_own(tiny_base: Base) -> None:
    run = learn(tiny_base)
    said = run.prompt.card.metrics["private"]
    assert isinstance(said, dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noise = get_noise_multiplier(
            target_epsilon=8, target_delta=1e-3, sample_rate=4 / 60, steps=24, accountant="prv"
        )
        account = PRVAccountant()
        for _ in range(24):
            account.step(noise_multiplier=noise, sample_rate=4 / 60)
        expected = account.get_epsilon(1e-3)
    assert said["noise_multiplier"] == noise
    assert said["epsilon"] == expected <= 8
    assert (said["sample_rate"], said["steps"], said["delta"]) == (4 / 60, 24, 1e-3)
    assert str(said["accountant"]).startswith("opacus ")
    spent = [entry["eval_epsilon"] for entry in run.history if "eval_epsilon" in entry]
    assert len(spent) == 4
    assert spent == sorted(spent)
    assert spent[-1] == expected
    assert run.prompt.card.recipe["private"] == PRIVATE | {"max_grad_norm": 1.0}  # without the seed
    assert run.prompt.card.calibration is None


def test_a_private_step_is_what_its_parts_are(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of AdamW without momentum's past moves by the rate in the direction of the private gradient."""
    taken: list[list[Tensor]] = []
    privatise = Mechanism.privatise

    def watched(self: Mechanism, gradients: Any, step: int) -> list[Tensor]:
        taken.append(privatise(self, gradients, step))
        return taken[-1]

    monkeypatch.setattr(Mechanism, "privatise", watched)
    start = SoftPrompt.from_vocabulary(tiny_base, 6)
    settings = recipe(private=PRIVATE | {"seed": 1}, max_steps=1, warmup_steps=0, learning_rate=0.01)
    run = learn(tiny_base, prompt=start, recipe=settings, validation=None)
    ((gradient,),) = taken
    assert torch.allclose(run.prompt.embeddings, start.embeddings - 0.01 * gradient.sign(), atol=1e-5)


def test_it_learns_where_the_noise_allows(tiny_base: Base) -> None:
    """A third of the way that training without noise goes in as many steps, at least."""
    settings = recipe(max_steps=30, batch_size=60, learning_rate=0.1, log_every=10, monitor=False)
    private = settings.model_copy(update={"private": Private(**PRIVATE)})
    falls = []
    for one in (settings, private):
        history = learn(tiny_base, train=rows(600), validation=None, recipe=one).history
        losses = [entry["loss"] for entry in history if "loss" in entry]
        falls.append(losses[0] - losses[-1])
    assert falls[1] > falls[0] / 3


@pytest.mark.parametrize("step", [3, 8, 17])
def test_a_resumed_run_equals_an_uninterrupted_one_and_goes_on_with_its_account(
    tiny_base: Base, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives the seed, a run that is resumed has that of its checkpoint."""
    settings = recipe(private=PRIVATE)
    seeds = iter([11, 11, 12])
    monkeypatch.setattr("secrets.randbits", lambda bits: next(seeds))
    whole = learn(tiny_base, tmp_path / "whole", recipe=settings)
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_base, tmp_path / "cut", recipe=settings, callbacks=[StopAt(step)])
    resumed = learn(make_base(), tmp_path / "cut", recipe=settings, resume=True)
    if step >= settings.save_every:  # else nothing was kept, and it began anew
        assert torch.equal(resumed.prompt.embeddings, whole.prompt.embeddings)
    assert resumed.prompt.card.metrics["private"] == whole.prompt.card.metrics["private"]


def test_the_seed_is_in_no_file_but_the_checkpoint(tiny_base: Base, tmp_path: Path) -> None:
    seed = 8_241_736_529
    learn(tiny_base, tmp_path / "run", recipe=recipe(private=PRIVATE), validation=None)
    card = json.loads((tmp_path / "run/prompt/card.json").read_text("utf-8"))
    assert "seed" not in card["recipe"]["private"]
    learn(tiny_base, tmp_path / "run", recipe=recipe(private=PRIVATE | {"seed": seed}), force=True)
    for file in (tmp_path / "run/prompt").iterdir():
        assert str(seed).encode() not in file.read_bytes()


def test_without_a_seed_no_two_runs_are_the_same(tiny_base: Base) -> None:
    settings = recipe(private=PRIVATE, max_steps=2)
    first, second = (learn(tiny_base, recipe=settings) for _ in range(2))
    assert not torch.equal(first.prompt.embeddings, second.prompt.embeddings)


def test_a_head_starts_at_zero_and_is_not_fitted(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a head was fitted")

    monkeypatch.setattr("softprompt.training.heads.fit", fitted)
    monkeypatch.setattr("softprompt.training.run.fit", fitted)
    task = TASK.answered_by("head")
    settings = recipe(private=PRIVATE, max_steps=6)
    options: dict[str, Any] = {"train": rows(60), "validation": rows(12, 60), "recipe": settings}
    run = train(tiny_base, SoftPrompt.from_vocabulary(tiny_base, 6), task, **options)
    assert run.prompt.head is not None
    assert run.prompt.head.any()
    assert run.prompt.card.metrics["head"] == "trained"


def test_what_is_private_and_what_is_not_is_said(tiny_base: Base, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        learn(tiny_base, recipe=recipe(private=PRIVATE | {"seed": 0}, max_steps=6))
    said = caplog.text
    assert "Validation rows are not protected" in said
    assert "is spent after 6 steps" in said
    assert "recipe.private.seed is set" in said
    caplog.clear()
    first = learn(tiny_base, recipe=recipe(max_steps=2)).prompt
    learn(tiny_base, recipe=recipe(private=PRIVATE, max_steps=2), prompt=SoftPrompt.from_prompt(first))
    assert "what that has learned is not in this account" in caplog.text
    learn(tiny_base, recipe=recipe(max_steps=2), prompt=SoftPrompt.from_examples(tiny_base, ["m37: no"], 4))
    assert "starts from words of training rows" in caplog.text


def refused(base: Base, prompt: SoftPrompt | None = None, count: int = 40, **changed: Any) -> str:
    settings = recipe(**{"private": PRIVATE} | changed)
    with pytest.raises(SoftPromptError) as caught:
        make_mechanism(settings, prompt or SoftPrompt.from_vocabulary(base, 4), count)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_promises_that_cannot_be_kept_are_refused(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = {"epsilon": 0.05, "delta": 1e-5}
    said = refused(tiny_base, private=strict)
    assert "epsilon 0.05 can't be reached in 24 steps of 4 of 40 rows" in said
    least, needed = re.search(r"drown them; (\S+) can be, or with (\S+) rows", said).groups()  # type: ignore[union-attr]
    start = SoftPrompt.from_vocabulary(tiny_base, 4)
    enough = make_mechanism(recipe(private=strict), start, int(needed.replace(",", "")))
    assert enough is not None
    assert enough.noise_multiplier <= 4
    assert make_mechanism(recipe(private=strict | {"epsilon": 1.1 * float(least)}), start, 40) is not None
    assert "can't be reached" in refused(tiny_base, private={"epsilon": 1e-4, "delta": 1e-5})
    assert "batch_size 41 is more than the 40 training rows" in refused(tiny_base, batch_size=41)
    assert "delta 0.1 lets one of 40 rows be told: choose less than 0.025" in refused(
        tiny_base, private={"epsilon": 8, "delta": 0.1}
    )
    examples = SoftPrompt.from_examples(tiny_base, ["m37: no"], 4)
    assert "starts from examples holds words of the rows" in refused(tiny_base, examples)
    labels = SoftPrompt.from_labels(tiny_base, ["yes", "no"], 4)
    assert "choose prompt.init: text, vocabulary or random" in refused(tiny_base, labels)
    assert "needs virtual tokens" in refused(tiny_base, SoftPrompt.none(tiny_base, 2))
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    assert "pip install 'softprompt[private]'" in refused(tiny_base)


@pytest.mark.parametrize(
    ("private", "said"),
    [
        ({"epsilon": 0}, "recipe: private.epsilon: .*greater than 0"),
        ({"epsilon": -1}, "private.epsilon"),
        ({"epsilon": math.nan}, "private.epsilon"),
        ({"epsilon": 101}, "private.epsilon: .*less than or equal to 100"),
        ({}, "private.epsilon"),
        ({"epsilon": 8, "delta": 0}, "private.delta"),
        ({"epsilon": 8, "delta": 1}, "private.delta"),
        ({"epsilon": 8, "max_grad_norm": 0}, "private.max_grad_norm"),
        ({"epsilon": 8, "noise": 1}, "private.noise"),
        (8, "private"),
    ],
)
def test_settings_without_a_meaning_are_refused(private: Any, said: str) -> None:
    with pytest.raises(SoftPromptError, match=said):
        Recipe(private=private)


@pytest.mark.parametrize(
    "changed", [{"gradient_accumulation_steps": 2}, {"class_weights": "balanced"}, {"calibrate": True}]
)
def test_what_looks_at_the_rows_unprotected_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SoftPromptError, match=f"{next(iter(changed))} .* is not for private"):
        Recipe(private=PRIVATE, **changed)
    assert Recipe(private=PRIVATE, calibrate=False).private is not None


def test_what_asks_the_rows_more_than_once_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    settings = recipe(private=PRIVATE)
    starts = [SoftPrompt.from_vocabulary(tiny_base, 4, seed=seed) for seed in range(2)]
    with pytest.raises(SoftPromptError, match="leave it out for prompts side by side"):
        train_ensemble(tiny_base, starts, TASK, train=rows(40), validation=rows(8, 40), recipe=settings)
    with pytest.raises(SoftPromptError, match="which trains several times"):
        grow(tiny_base, lambda n: starts[0], TASK, train=rows(40), validation=rows(8, 40), recipe=settings)
    (tmp_path / "train.csv").write_text("text,label\n" + "a b,yes\nc d,no\n" * 20)
    lines = ["name: mood", "base: smollm2-135m", "data: {train: train.csv, validation: 0.2}"]
    lines += ["recipe: {private: {epsilon: 8}}", 'task: {template: "{text}:", labels: [yes, no]}']
    (tmp_path / "task.yaml").write_text("\n".join(lines))
    file = load_task_file(tmp_path / "task.yaml", ["recipe.private.delta=1e-3"])
    assert file.recipe.private == Private(epsilon=8, delta=1e-3)
    with pytest.raises(SoftPromptError, match="whose other methods are not private"):
        make_plan(file, quick=False)
    with pytest.raises(SoftPromptError, match="auto reads the labels off the rows"):
        load_task_file(tmp_path / "task.yaml", ["task.labels=auto"])
