from __future__ import annotations

from typing import Any

import pytest
import torch

from softprompt import Base, DivergedError, Recipe, Row, SoftPrompt, SoftPromptError, Task, WrongBaseError, train
from softprompt.models.prompted import PromptedModel, PromptedOutput
from softprompt.training.side_by_side import Member, train_side_by_side
from tests.conftest import make_base
from tests.training.test_run import TASK, recipe, rows

# Its labels have one to seven tokens, so that the prompts' shares of a step's targets differ.
UNEVEN = Task(template="{text}:", labels=["y", "certainly"])


def uneven(count: int) -> list[Row]:
    return [
        Row(row.columns, row.label, " " + (UNEVEN.labels or [])[row.label or 0], number=row.number)
        for row in rows(count)
    ]


def together(base: Base, prompts: list[SoftPrompt], settings: Recipe, **changed: Any) -> list[Member]:
    options: dict[str, Any] = {"train": rows(40), "validation": rows(12, 40), "seeds": [0] * len(prompts)}
    options |= changed
    starts = list(zip(prompts, options.pop("seeds"), strict=True))
    return train_side_by_side(base, starts, options.pop("task", TASK), recipe=settings, **options)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "adafactor"},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0},
        {"max_grad_norm": 0.01, "max_tokens": 32},
    ],
    ids=["adamw", "adafactor", "accumulated, unclipped", "clipped, in turns"],
)
def test_side_by_side_equals_runs_of_their_own(tiny_base: Base, changed: dict[str, Any]) -> None:
    prompts = [SoftPrompt.from_vocabulary(tiny_base, 3 + k, seed=k) for k in range(2)]
    seeds = [0, 5]
    # Adafactor's first updates are hardly more than signs, which magnify what is rounded otherwise.
    tolerance = 2e-3 if "optimizer" in changed else 2e-4
    settings = recipe(max_steps=9, evaluate_every=4, monitor=False, **changed)
    examples = {"train": uneven(40), "validation": uneven(12), "task": UNEVEN}
    found = together(tiny_base, prompts, settings, seeds=seeds, **examples)
    for prompt, seed, member in zip(prompts, seeds, found, strict=True):
        alone = train(
            tiny_base,
            prompt,
            UNEVEN,
            train=uneven(40),
            validation=uneven(12),
            recipe=settings.model_copy(update={"seed": seed}),
        )
        assert not torch.allclose(alone.prompt.embeddings, prompt.embeddings, atol=1e-2)
        assert torch.allclose(member.learned.embeddings, alone.prompt.embeddings, atol=tolerance)
        assert member.step == alone.best_step
        assert member.validation is not None
        assert alone.validation is not None
        assert member.validation.log_loss == pytest.approx(alone.validation.log_loss, abs=tolerance)


def test_without_validation_the_last_prompts_are_kept(tiny_base: Base) -> None:
    prompts = [SoftPrompt.from_vocabulary(tiny_base, 4, seed=k) for k in range(2)]
    settings = recipe(max_steps=5, monitor=False)
    found = together(tiny_base, prompts, settings, validation=None)
    alone = train(tiny_base, prompts[1], TASK, train=rows(40), recipe=settings)
    assert torch.allclose(found[1].learned.embeddings, alone.prompt.embeddings, atol=2e-4)
    assert [member.step for member in found] == [5, 5]
    assert found[0].validation is None


def test_a_member_out_of_patience_keeps_its_best(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompt.evaluation.evaluate import Evaluation, Evaluator

    scores = {3: iter([0.5, 0.4, 0.3]), 4: iter([0.1, 0.2, 0.3, 0.2, 0.1])}

    def fake(self: Evaluator, progress: Any = None) -> Evaluation:
        return Evaluation(n=1, accuracy=next(scores[len(self.model.prompts[0])]), seconds=0.0)

    monkeypatch.setattr(Evaluator, "evaluate", fake)
    prompts = [SoftPrompt.from_vocabulary(tiny_base, count) for count in (3, 4)]
    found = together(tiny_base, prompts, recipe(max_steps=60, evaluate_every=2, patience=2))
    assert [member.step for member in found] == [2, 6]
    assert [next(left, None) for left in scores.values()] == [None, None]


def test_unusable_input_is_refused(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [SoftPrompt.from_vocabulary(tiny_base, 3, seed=k) for k in range(2)]
    with pytest.raises(SoftPromptError, match="calibrate is for one prompt alone"):
        together(tiny_base, prompts, recipe(calibrate=True))
    with pytest.raises(SoftPromptError, match="have the label"):
        together(tiny_base, prompts, recipe(), train=[row for row in rows(20) if row.label])
    with pytest.raises(WrongBaseError, match="tiny-llama"):
        together(make_base(seed=1), prompts, recipe())
    forward = PromptedModel.forward

    def failing(self: PromptedModel, *args: Any, **kwargs: Any) -> PromptedOutput:
        output = forward(self, *args, **kwargs)
        output.loss = output.loss * float("nan")  # type: ignore[operator]
        return output

    monkeypatch.setattr(PromptedModel, "forward", failing)
    with pytest.raises(DivergedError, match=r"prompt 0 became NaN or infinite at step 1 with learning_rate 0.01"):
        together(tiny_base, prompts, recipe(max_grad_norm=0.0))
