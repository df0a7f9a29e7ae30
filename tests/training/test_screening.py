from __future__ import annotations

import pytest
import torch

from softprompt import Base, SoftPromptError
from softprompt.training.screening import candidates, choose_start, try_out
from softprompt.training.taskfile import PromptStart, make_prompt
from tests.training.test_run import TASK, recipe, rows

ROWS = rows(40)


def test_one_candidate_is_what_the_task_file_describes(tiny_base: Base) -> None:
    start = PromptStart(num_virtual_tokens=4, init_text="Mood?")
    chosen = choose_start(tiny_base, start, TASK, ROWS, None, recipe())
    assert chosen.sha256 == make_prompt(tiny_base, start, TASK).sha256


@pytest.mark.parametrize("init", ["text", "examples", "random", "labels"])
def test_candidates_differ_and_the_first_is_the_described_one(tiny_base: Base, init: str) -> None:
    start = PromptStart(num_virtual_tokens=24, init=init, candidates=4, seed=3)  # type: ignore[arg-type]
    found = candidates(tiny_base, start, TASK, ROWS)
    assert found[0].sha256 == make_prompt(tiny_base, start, TASK, ROWS).sha256
    assert len({prompt.sha256 for prompt in found}) == 4
    assert [prompt.num_virtual_tokens for prompt in found] == [24] * 4


def test_the_best_by_its_trial_starts_the_run_as_it_was(tiny_base: Base) -> None:
    start = PromptStart(num_virtual_tokens=4, init="vocabulary", candidates=3)
    chosen = choose_start(tiny_base, start, TASK, ROWS, rows(12, 40), recipe())
    prompts = candidates(tiny_base, start, TASK)
    trials = try_out(tiny_base, prompts, TASK, ROWS, rows(12, 40), recipe())
    losses = [trial.validation.log_loss for trial in trials if trial.validation]
    assert len(set(losses)) == 3
    best = losses.index(min(losses))  # type: ignore[type-var]
    assert torch.equal(chosen.embeddings, prompts[best].embeddings)
    assert chosen.card.initialisation == prompts[best].card.initialisation
    again = choose_start(tiny_base, start, TASK, ROWS, rows(12, 40), recipe())
    assert again.sha256 == chosen.sha256  # so that a run can be resumed


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="candidates"):
        PromptStart(candidates=0)
    with pytest.raises(SoftPromptError, match="average"):
        recipe(average=1.0)
    with pytest.raises(SoftPromptError, match="residual"):
        recipe(residual=-1)
