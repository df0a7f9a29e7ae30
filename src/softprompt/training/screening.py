"""Where to start: several first prompts tried for a few steps side by side, and the most promising one taken.

The sensitivity of prompt tuning to its start is measured in Lester, Al-Rfou, Constant 2021, section 3.2
(https://aclanthology.org/2021.emnlp-main.243); to race candidates and keep the best is one round of successive halving
(Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943).

Owns the candidates and the choice. The run then starts from the candidate as it was, not from where the trial left it.
"""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.models.base import Base
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.recipe import Recipe
from softprompt.training.side_by_side import Member, train_side_by_side
from softprompt.training.taskfile import PromptStart, make_prompt

# A trial: enough steps that a start which only looks bad can show itself, on enough rows to tell candidates apart.
_STEPS = 10
_ROWS = 100
# These ways to start draw at random, so that another seed is another candidate.
_DRAWN = ("examples", "random", "vocabulary")


def choose_start(
    base: Base,
    start: PromptStart,
    task: Task,
    train: Sequence[Row],
    validation: Sequence[Row] | None,
    recipe: Recipe,
) -> SoftPrompt:
    """The prompt to start from: the only one, or the best of `start.candidates` by a trial.

    Args:
        base: the frozen base.
        start: how prompts start. The first candidate is the one it describes.
        task: what is learned.
        train: the training rows.
        validation: the rows to choose on; None: training rows.
        recipe: the run's settings, which the trials follow for a few steps.

    Raises:
        SoftPromptError: a candidate can't be made, or the rows can't be used.
        DivergedError: a candidate's gradient became NaN or infinite.
    """
    if start.candidates == 1:
        return make_prompt(base, start, task, train)
    prompts = candidates(base, start, task, train)
    members = try_out(base, prompts, task, train, validation, recipe)
    return prompts[max(range(len(prompts)), key=lambda i: _promise(members[i], task))]


def candidates(base: Base, start: PromptStart, task: Task, train: Sequence[Row] = ()) -> list[SoftPrompt]:
    """The described prompt, and others: with other seeds, or where nothing is drawn, random words of the vocabulary."""
    first = make_prompt(base, start, task, train)
    seeds = range(start.seed + 1, start.seed + start.candidates)
    if start.init in _DRAWN:
        return [first, *(make_prompt(base, start.model_copy(update={"seed": seed}), task, train) for seed in seeds)]
    count = first.num_virtual_tokens
    return [first, *(SoftPrompt.from_vocabulary(base, count, seed=seed) for seed in seeds)]


def try_out(
    base: Base,
    prompts: Sequence[SoftPrompt],
    task: Task,
    train: Sequence[Row],
    validation: Sequence[Row] | None,
    recipe: Recipe,
) -> list[Member]:
    """Each candidate after a few steps on the same batches, validated."""
    steps = min(_STEPS, recipe.max_steps)
    trial = recipe.model_copy(
        update={
            "max_steps": steps,
            "warmup_steps": min(recipe.warmup_steps, steps // 5),
            "evaluate_every": steps,
            "residual": 0,
            "average": 0.0,
            "calibrate": False,
            "report_to": [],
        }
    )
    rows = validation or train
    rows = rows[:: max(1, len(rows) // _ROWS)]  # from all over: a file may be sorted by label
    seeds = [recipe.seed] * len(prompts)
    return train_side_by_side(base, prompts, task, train=train, validation=rows, recipe=trial, seeds=seeds)


def _promise(member: Member, task: Task) -> float:
    """What a trial is judged by: after so few steps the log loss tells more than the share of right answers."""
    assert member.validation is not None, "trials are validated"
    loss = member.validation.log_loss
    return float(getattr(member.validation, task.metric)) if loss is None else -loss
