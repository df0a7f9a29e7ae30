"""Training a head: fitted, trained together with the prompt, resumed, chosen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import softprompt as sp
from softprompt.models.prompted import PromptedModel
from softprompt.training.ensemble import train_ensemble
from softprompt.training.heads import choose_answer
from softprompt.training.run import rows_around
from tests.training.test_run import StopAt

TASK = sp.Task(template="{text}:", labels=["yes", "no", "maybe"], answer="head")


def rows(count: int, start: int = 0) -> list[sp.Row]:
    """Texts whose first letter tells their label."""
    return [
        sp.Row({"text": "mwz"[i % 3] + str(i * 37) * (1 + i % 3)}, i % 3, " " + TASK.labels[i % 3], number=i + 1)  # type: ignore[index]
        for i in range(start, start + count)
    ]


def learn(base: sp.Base, output: Path | None = None, length: int = 4, **changed: Any) -> sp.Run:
    recipe = sp.Recipe(
        **{"max_steps": 24, "batch_size": 4, "evaluate_every": 6, "save_every": 4, "warmup_steps": 2} | changed
    )
    prompt = sp.SoftPrompt.from_vocabulary(base, length) if length else sp.SoftPrompt.none(base, 3)
    return sp.train(base, prompt, TASK, train=rows(60), validation=rows(18, 60), recipe=recipe, output=output)


def test_a_head_is_fitted_and_trained(tiny_base: sp.Base, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in tiny_base.model.named_parameters()}
    run = learn(tiny_base, tmp_path / "run")
    head = run.prompt.head
    assert head is not None
    assert head.shape == (3, tiny_base.hidden_size)
    assert run.to_json()["trainable_parameters"] == (4 + 3) * tiny_base.hidden_size
    assert run.prompt.card.task is not None
    assert run.prompt.card.task["answer"] == "head"
    assert run.validation is not None
    assert run.validation.accuracy is not None
    loaded = sp.SoftPrompt.load(tmp_path / "run/prompt", tiny_base)
    found = sp.evaluate(tiny_base, loaded, sp.Task.from_dict(loaded.card.task), rows(18, 60))
    assert found.accuracy == run.validation.accuracy
    assert found.log_loss == pytest.approx(run.validation.log_loss)
    for name, parameter in tiny_base.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_head_has_a_rate_of_its_own(tiny_base: sp.Base) -> None:
    """With a rate of next to nothing it stays what was fitted."""
    still = learn(tiny_base, head_learning_rate=1e-12, max_steps=6, evaluate_every=100)
    moved = learn(tiny_base, head_learning_rate=1e-2, max_steps=6, evaluate_every=100)
    probe = learn(tiny_base, length=0)
    assert probe.steps == 0
    assert still.prompt.head is not None
    assert not torch.equal(still.prompt.embeddings, sp.SoftPrompt.from_vocabulary(tiny_base, 4).embeddings)
    assert not torch.allclose(still.prompt.head, moved.prompt.head, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("step", [3, 8, 17])
def test_a_resumed_run_is_the_same_run(tiny_base: sp.Base, tmp_path: Path, step: int, weights: str) -> None:
    whole = learn(tiny_base, tmp_path / "whole", class_weights=weights)
    settings: dict[str, Any] = {"max_steps": 24, "batch_size": 4, "evaluate_every": 6, "save_every": 4}
    recipe = sp.Recipe(**settings, warmup_steps=2, class_weights=weights)
    prompt = sp.SoftPrompt.from_vocabulary(tiny_base, 4)
    common: dict[str, Any] = {"train": rows(60), "validation": rows(18, 60), "recipe": recipe}
    with pytest.raises(KeyboardInterrupt):
        sp.train(tiny_base, prompt, TASK, output=tmp_path / "run", callbacks=[StopAt(step)], **common)
    resumed = sp.train(tiny_base, prompt, TASK, output=tmp_path / "run", resume=True, **common)
    assert torch.equal(resumed.prompt.embeddings, whole.prompt.embeddings)
    assert torch.equal(resumed.prompt.head, whole.prompt.head)  # type: ignore[arg-type]


def test_side_by_side_equals_alone(tiny_base: sp.Base) -> None:
    recipe = sp.Recipe(max_steps=12, batch_size=4, evaluate_every=6, warmup_steps=2, monitor=False, max_grad_norm=0.5)
    starts = [sp.SoftPrompt.from_vocabulary(tiny_base, 4, seed=k) for k in range(2)]
    both = train_ensemble(tiny_base, starts, TASK, train=rows(60), validation=None, recipe=recipe)
    for k, start in enumerate(starts):
        alone = sp.train(tiny_base, start, TASK, train=rows(60), recipe=recipe.model_copy(update={"seed": k}))
        torch.testing.assert_close(both.prompts[k].embeddings, alone.prompt.embeddings, rtol=0, atol=2e-3)
        torch.testing.assert_close(both.prompts[k].head, alone.prompt.head, rtol=0, atol=2e-3)


def test_a_linear_probe_trains_nothing(tiny_base: sp.Base, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = learn(tiny_base, tmp_path / "run", length=0)
    assert (run.steps, run.prompt.num_virtual_tokens) == (0, 0)
    assert "the head is fitted, and nothing is trained" in caplog.text
    loaded = sp.SoftPrompt.load(tmp_path / "run/prompt", tiny_base)
    assert sp.predict(tiny_base, loaded, TASK, ["m37"]) == sp.predict(tiny_base, run.prompt, TASK, ["m37"])


def test_rows_beyond_the_most_are_said(tiny_base: sp.Base, caplog: pytest.LogCaptureFixture) -> None:
    learn(tiny_base, length=0, fit_rows=30)
    assert "the head is fitted on 30 of 60 training rows" in caplog.text


@pytest.mark.parametrize(
    ("labels", "count", "kind"), [(2, 100, "words"), (3, 6, "head"), (3, 5, "words"), (20, 400, "head")]
)
def test_the_kind_of_answer_is_chosen(labels: int, count: int, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    task = sp.Task(template="{text}", labels=[f"l{i}" for i in range(labels)])
    with caplog.at_level(logging.INFO):
        assert choose_answer(task, rows(count)).kind == kind
    assert f"({labels} labels, {count} training rows)" in caplog.text
    assert choose_answer(task.answered_by("words"), rows(count)).kind == "words"


def test_auto_goes_by_the_prompts_head(tiny_base: sp.Base) -> None:
    prompt, auto = learn(tiny_base).prompt, sp.Task(template="{text}:", labels=["yes", "no", "maybe"])
    assert sp.predict(tiny_base, prompt, auto, ["m37"]) == sp.predict(tiny_base, prompt, TASK, ["m37"])


def test_a_prompt_without_the_head_that_is_asked(tiny_base: sp.Base) -> None:
    prompt = sp.SoftPrompt.from_vocabulary(tiny_base, 4)
    with pytest.raises(sp.SoftPromptError, match="answered by a head, which this prompt has not"):
        sp.predict(tiny_base, prompt, TASK, ["m37"])
    bare = sp.predict(tiny_base, None, TASK, ["m37"])
    assert bare == sp.predict(tiny_base, None, TASK.answered_by("words"), ["m37"])


def test_heads_in_turns(tiny_base: sp.Base) -> None:
    """A batch in parts has the gradient of the whole."""
    prompt = sp.SoftPrompt(torch.randn(3, tiny_base.hidden_size), head=torch.randn(3, tiny_base.hidden_size))
    ids, labels = torch.randint(2, 60, (6, 5)), torch.full((6, 5), -100)
    labels[:, -1] = torch.tensor([0, 1, 2, 0, 1, 2])
    grads = []
    for most in (None, 11):
        model = PromptedModel(tiny_base, [prompt], max_tokens=most)
        model(ids, labels=labels).loss.backward()
        grads.append((model.prompts[0].grad, model.heads[0].grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_balanced_labels_are_not_crowded_out(tiny_base: sp.Base) -> None:
    many = [row for row in rows(240) if row.label == 0 or row.number <= 12]
    found = {}
    for weights in ("none", "balanced"):
        recipe = sp.Recipe(max_steps=2, batch_size=4, warmup_steps=0, class_weights=weights)
        run = sp.train(tiny_base, sp.SoftPrompt.none(tiny_base, 3), TASK, train=many, recipe=recipe)
        figures = sp.evaluate(tiny_base, run.prompt, TASK, rows(60, 300))
        found[weights] = figures.macro_f1
    assert found["balanced"] is not None
    assert found["none"] is not None
    assert found["balanced"] > found["none"]


def test_the_loss_weighs_labels(tiny_base: sp.Base) -> None:
    prompt = sp.SoftPrompt(torch.randn(3, tiny_base.hidden_size), head=torch.randn(3, tiny_base.hidden_size))
    ids, labels = torch.randint(2, 60, (3, 4)), torch.full((3, 4), -100)
    labels[:, -1] = torch.tensor([0, 1, 2])
    model = PromptedModel(tiny_base, [prompt])
    plain = model(ids, labels=labels).row_loss
    model.label_weights = torch.tensor([1.0, 0.0, 2.5])
    torch.testing.assert_close(model(ids, labels=labels).row_loss, plain * model.label_weights)


def test_weights_without_a_head(tiny_base: sp.Base) -> None:
    recipe = sp.Recipe(max_steps=2, class_weights="balanced")
    start = sp.SoftPrompt.from_vocabulary(tiny_base, 2)
    with pytest.raises(sp.SoftPromptError, match="class_weights is for answers by a head"):
        sp.train(tiny_base, start, TASK.answered_by("words"), train=rows(12), recipe=recipe)


def test_labels_in_another_order_are_the_same_answers(tiny_base: sp.Base) -> None:
    prompt = learn(tiny_base).prompt
    turned = sp.Task(template="{text}:", labels=["maybe", "yes", "no"], answer="head")
    (one,), (other,) = (sp.predict(tiny_base, prompt, task, ["m37"]) for task in (TASK, turned))
    assert one.label == other.label
    assert one.probabilities == pytest.approx(other.probabilities)
    other_labels = sp.Task(template="{text}:", labels=["yes", "no", "never"], answer="head")
    with pytest.raises(sp.SoftPromptError, match="learned for other labels: 'maybe' is not in both"):
        sp.predict(tiny_base, prompt, other_labels, ["m37"])
    bare = sp.SoftPrompt(prompt.embeddings, head=prompt.head)
    with pytest.raises(sp.SoftPromptError, match="head has 3 rows, but the task has 2 labels"):
        sp.predict(tiny_base, bare, sp.Task(template="{text}", labels=["a", "b"], answer="head"), ["m37"])


def test_a_task_of_a_thousand_labels(tiny_base: sp.Base) -> None:
    labels = [f"label {i}" for i in range(1000)]
    task = sp.Task(template="{text}:", labels=labels)
    many = [sp.Row({"text": f"text {i}"}, i % 1000, f" {labels[i % 1000]}", number=i + 1) for i in range(2000)]
    recipe = sp.Recipe(max_steps=2, batch_size=4, warmup_steps=0)
    run = sp.train(tiny_base, sp.SoftPrompt.from_vocabulary(tiny_base, 2), task, train=many, recipe=recipe)
    assert run.prompt.head is not None
    assert run.prompt.head.shape == (1000, tiny_base.hidden_size)
    assert len(sp.predict(tiny_base, run.prompt, task, ["text 7"])[0].probabilities or {}) == 1000


def test_nothing_to_learn(tiny_base: sp.Base) -> None:
    with pytest.raises(sp.SoftPromptError, match="nothing to learn without virtual tokens"):
        sp.train(tiny_base, sp.SoftPrompt.none(tiny_base, 3), TASK.answered_by("words"), train=rows(12))


@pytest.mark.parametrize("answer", ["head", "words"])
def test_every_row_before_and_after_the_steps_is_told(tiny_base: sp.Base, answer: str) -> None:
    """As many as `rows_around` says beforehand: fitted on, calibrated on, validated again."""
    task, told, at = TASK.model_copy(update={"answer": answer}), 0, []

    class Turns(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            at.append(told)

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            at.append(told)

    def tell(rows: int) -> None:
        nonlocal told
        told += rows

    recipe = sp.Recipe(max_steps=4, batch_size=4, evaluate_every=100, calibrate="auto")
    prompt = sp.SoftPrompt.from_vocabulary(tiny_base, 4)
    parts = {"train": rows(60), "validation": rows(18, 60)}
    sp.train(tiny_base, prompt, task, **parts, recipe=recipe, callbacks=[Turns()], progress=tell)  # type: ignore[arg-type]
    before, after = rows_around(task, recipe, 60, 18)
    assert (before, after) == ((60, 78) if answer == "head" else (0, 78))
    assert at == [before, before + 18]
    assert told == before + 18 + after
