from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt import Base, SoftPrompt, SoftPromptError, Task, WrongBaseError
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.training.ensemble import Ensemble, train_ensemble, vote
from tests.conftest import make_base
from tests.training.test_run import TASK, recipe, rows


def start(base: Base, count: int = 3) -> list[SoftPrompt]:
    return [SoftPrompt.from_vocabulary(base, 3 + k, seed=k) for k in range(count)]


def test_the_ensemble_equals_voting_its_members_one_by_one(tiny_base: Base, tmp_path: Path) -> None:
    settings = recipe(max_steps=6)
    ensemble = train_ensemble(
        tiny_base, start(tiny_base), TASK, train=rows(40), validation=rows(12, 40), recipe=settings
    )
    test = rows(30, 60)
    alone = torch.stack(
        [Evaluator(PromptedModel(tiny_base, [prompt]), TASK, test).answers() for prompt in ensemble.prompts]
    )
    together = ensemble.member_probabilities(tiny_base, TASK, test)
    assert torch.allclose(together, alone, atol=1e-5)
    votes = alone.argmax(-1)  # of three members and two labels, one has the majority
    majority = [int(of_row.sum() > 1) for of_row in votes.T]
    found = ensemble.evaluate(tiny_base, TASK, test)
    assert found.accuracy == sum(m == row.label for m, row in zip(majority, test, strict=True)) / len(test)
    ensemble.save(tmp_path / "ensemble")
    assert sorted(entry.name for entry in (tmp_path / "ensemble").iterdir()) == ["0", "1", "2"]
    again = Ensemble.load(tmp_path / "ensemble", tiny_base)
    for prompt, loaded in zip(ensemble.prompts, again.prompts, strict=True):
        assert torch.equal(prompt.embeddings, loaded.embeddings)
        assert loaded.card.metrics["ensemble"] == 3
    assert [prompt.card.recipe["seed"] for prompt in again.prompts] == [0, 1, 2]
    # A member is a prompt like any other.
    assert Task.from_dict(SoftPrompt.load(tmp_path / "ensemble/1", tiny_base).card.task) == TASK


def test_a_tie_is_decided_by_the_mean_probability() -> None:
    members = torch.tensor([[[0.6, 0.3, 0.1]], [[0.1, 0.8, 0.1]]])
    assert vote(members).argmax(-1).tolist() == [1]
    sure = torch.tensor([[[1.0, 0.0]], [[0.49, 0.51]], [[0.49, 0.51]]])
    assert vote(sure).argmax(-1).tolist() == [1]  # one sure member does not outvote two
    assert vote(sure).sum(-1).tolist() == pytest.approx([1.0])


def test_unusable_input_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="at least one prompt"):
        train_ensemble(tiny_base, [], TASK, train=rows(8))
    free = Task(template="{text}", target="{answer}")
    with pytest.raises(SoftPromptError, match="votes on labels"):
        Ensemble(start(tiny_base)).evaluate(tiny_base, free, rows(4))
    with pytest.raises(SoftPromptError, match="cannot be read"):
        Ensemble.load(tmp_path / "nothing")
    with pytest.raises(SoftPromptError, match="is not an ensemble"):
        Ensemble.load(tmp_path)
    Ensemble(start(tiny_base, 2)).save(tmp_path / "two")
    with pytest.raises(SoftPromptError, match="exists"):
        Ensemble(start(tiny_base, 2)).save(tmp_path / "two")
    Ensemble(start(tiny_base, 2)).save(tmp_path / "two", force=True)
    with pytest.raises(WrongBaseError):
        Ensemble.load(tmp_path / "two", make_base(seed=1))
    (tmp_path / "two/0").rename(tmp_path / "two/5")
    with pytest.raises(SoftPromptError, match="is not an ensemble"):
        Ensemble.load(tmp_path / "two")
