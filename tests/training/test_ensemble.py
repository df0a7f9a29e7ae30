from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from softprompt import Base, SoftPrompt, SoftPromptError, Task, WrongBaseError
from softprompt.evaluation.evaluate import Evaluator, _evaluator, evaluate, predict
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.ensemble import Ensemble, load, vote
from softprompt.training.ensemble import train_ensemble
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
    together = _evaluator(tiny_base, ensemble, TASK, test).answers()
    assert torch.allclose(together, vote(alone), atol=1e-5)
    votes = alone.argmax(-1)  # of three members and two labels, one has the majority
    majority = [int(of_row.sum() > 1) for of_row in votes.T]
    told: list[int] = []
    found = evaluate(tiny_base, ensemble, TASK, test, progress=told.append)
    assert sum(told) == len(test)
    assert found.accuracy == sum(m == row.label for m, row in zip(majority, test, strict=True)) / len(test)
    ensemble.save(tmp_path / "ensemble")
    assert sorted(entry.name for entry in (tmp_path / "ensemble").iterdir()) == ["0", "1", "2"]
    again = Ensemble.load(tmp_path / "ensemble", tiny_base)
    for prompt, loaded in zip(ensemble.prompts, again.prompts, strict=True):
        assert torch.equal(prompt.embeddings, loaded.embeddings)
        assert loaded.card.metrics["ensemble"]["of"] == 3
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
        evaluate(tiny_base, Ensemble(start(tiny_base)), free, rows(4))
    with pytest.raises(SoftPromptError, match="cannot be read"):
        Ensemble.load(tmp_path / "nothing")
    with pytest.raises(SoftPromptError, match="is not an ensemble"):
        Ensemble.load(tmp_path)
    Ensemble(start(tiny_base, 2)).save(tmp_path / "two")
    with pytest.raises(SoftPromptError, match="exists"):
        Ensemble(start(tiny_base, 2)).save(tmp_path / "two")
    Ensemble(start(tiny_base, 2)).save(tmp_path / "two", force=True)
    with pytest.raises(SoftPromptError, match="votes on labels"):
        train_ensemble(tiny_base, start(tiny_base), free, train=rows(8))
    with pytest.raises(WrongBaseError):
        Ensemble.load(tmp_path / "two", make_base(seed=1))
    (tmp_path / "two/0").rename(tmp_path / "two/5")
    with pytest.raises(SoftPromptError, match="is not an ensemble"):
        Ensemble.load(tmp_path / "two")


def test_fewer_members_in_the_place_of_more_and_members_that_do_not_belong_together(
    tiny_base: Base, tmp_path: Path
) -> None:
    Ensemble(start(tiny_base, 3)).save(tmp_path / "one")
    Ensemble(start(tiny_base, 2)).save(tmp_path / "one", force=True)
    assert len(Ensemble.load(tmp_path / "one").prompts) == 2
    others = [SoftPrompt.from_vocabulary(tiny_base, 3, seed=9 + k) for k in range(2)]
    Ensemble(others).save(tmp_path / "other")
    shutil.rmtree(tmp_path / "one/1")
    shutil.copytree(tmp_path / "other/1", tmp_path / "one/1")
    with pytest.raises(SoftPromptError, match="not those of one ensemble"):
        load(tmp_path / "one")
    # Folders that were put together by hand, of prompts trained one by one, are an ensemble too.
    for k, prompt in enumerate(others):
        prompt.save(tmp_path / "own" / str(k))
    assert isinstance(load(tmp_path / "own"), Ensemble)
    assert isinstance(load(tmp_path / "own/0"), SoftPrompt)


def test_predict_takes_an_ensemble_for_a_prompt(tiny_base: Base) -> None:
    ensemble = Ensemble(start(tiny_base, 4))
    texts = [row.columns["text"] for row in rows(9)]
    found = predict(tiny_base, ensemble, TASK, texts)
    alone = [predict(tiny_base, prompt, TASK, texts) for prompt in ensemble.prompts]
    for answer, members in zip(found, zip(*alone, strict=True), strict=True):
        of_members = torch.tensor([list((one.probabilities or {}).values()) for one in members], dtype=torch.float64)
        expected = vote(of_members[:, None])[0].tolist()
        assert list((answer.probabilities or {}).values()) == pytest.approx(expected, rel=1e-4)
        assert answer.label == (TASK.labels or [])[max(range(2), key=expected.__getitem__)]


def test_members_with_heads_vote(tiny_base: Base, tmp_path: Path) -> None:
    task = TASK.answered_by("head")
    ensemble = train_ensemble(
        tiny_base, start(tiny_base), task, train=rows(40), validation=rows(12, 40), recipe=recipe(max_steps=4)
    )
    test = rows(30, 60)
    alone = torch.stack(
        [Evaluator(PromptedModel(tiny_base, [prompt]), task, test).answers() for prompt in ensemble.prompts]
    )
    told: list[int] = []
    together = _evaluator(tiny_base, ensemble, task, test).answers(told.append)
    assert torch.allclose(together, vote(alone), atol=1e-5)
    assert sum(told) == 30
    ensemble.save(tmp_path / "heads")
    again = Ensemble.load(tmp_path / "heads", tiny_base)
    assert torch.equal(_evaluator(tiny_base, again, task, test).answers(), together)
