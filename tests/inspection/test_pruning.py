from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt import Base, SoftPrompt, SoftPromptError, Task, WrongBaseError, evaluate, inspect, prune
from softprompt.inspection.importance import measure_importance
from tests.conftest import make_base
from tests.training.runs import TASK, learn, recipe, rows

CHECK = rows(24, 400)


@pytest.fixture(scope="module")
def trained() -> SoftPrompt:
    settings = recipe(max_steps=60, learning_rate=0.1, log_every=20)
    return learn(make_base(), train=rows(400), validation=None, recipe=settings).prompt


def test_importance_is_what_the_prompt_loses_without_a_token(tiny_base: Base, trained: SoftPrompt) -> None:
    done: list[int] = []
    found = measure_importance(tiny_base, trained, TASK, CHECK, done.append)
    assert sum(done) == 7 * len(CHECK)
    assert found.measure == "log_loss"
    whole = evaluate(tiny_base, trained, TASK, CHECK)
    assert found.whole.log_loss == whole.log_loss
    for token, score in enumerate(found.scores):
        left = SoftPrompt(torch.cat([trained.embeddings[:token], trained.embeddings[token + 1 :]]))
        assert score == pytest.approx(evaluate(tiny_base, left, TASK, CHECK).log_loss - whole.log_loss, abs=1e-6)


def test_the_only_token_can_be_left_out(tiny_base: Base) -> None:
    one = SoftPrompt.from_text(tiny_base, "m", 1)
    (without,) = measure_importance(tiny_base, one, TASK, CHECK).without
    bare = evaluate(tiny_base, None, TASK, CHECK)
    assert without.log_loss == pytest.approx(bare.log_loss)


def test_free_text_is_measured_by_its_metric(tiny_base: Base) -> None:
    task = Task(template="{text}:", target=" {text}", metric="token_f1", max_new_tokens=2)
    found = measure_importance(tiny_base, SoftPrompt.from_text(tiny_base, "mo", 2), task, rows(3))
    assert found.measure == "token_f1"
    assert found.scores == [found.whole.token_f1 - one.token_f1 for one in found.without]  # type: ignore[operator]


def test_the_least_important_tokens_go(tiny_base: Base, trained: SoftPrompt, tmp_path: Path) -> None:
    before = trained.embeddings.clone()
    scores = measure_importance(tiny_base, trained, TASK, CHECK).scores
    found = prune(tiny_base, trained, TASK, CHECK, 4)
    assert torch.equal(trained.embeddings, before)
    assert max(scores[token] for token in found.dropped) <= min(scores[token] for token in found.kept)
    assert sorted(found.kept + found.dropped) == list(range(6))
    assert torch.equal(found.prompt.embeddings, trained.embeddings[found.kept])
    found.prompt.save(tmp_path / "small")
    small = SoftPrompt.load(tmp_path / "small", base=tiny_base)
    measured = evaluate(tiny_base, small, Task.from_dict(small.card.task), CHECK)
    assert found.after.log_loss == measured.log_loss
    start = small.card.initialisation
    assert (start["method"], start["sha256"], start["kept"]) == ("prune", trained.sha256, found.kept)
    metrics = small.card.metrics
    assert metrics["validation"]["log_loss"] == found.after.log_loss  # type: ignore[index,call-overload]
    assert metrics["before_pruning"]["log_loss"] == found.before.log_loss  # type: ignore[index,call-overload]
    # What a pruned prompt started from is known still.
    assert inspect(tiny_base, small).drift_unknown is None
    assert found.to_json().keys() == {"num_virtual_tokens", "kept", "dropped", "before", "after"}


def test_keeping_all_changes_nothing(tiny_base: Base, trained: SoftPrompt) -> None:
    found = prune(tiny_base, trained, TASK, CHECK, 6)
    assert torch.equal(found.prompt.embeddings, trained.embeddings)
    assert found.before.log_loss == found.after.log_loss


@pytest.mark.parametrize("keep", [0, -1, 7, 2.0, True])
def test_a_number_that_cannot_be_kept_is_refused(tiny_base: Base, trained: SoftPrompt, keep: int) -> None:
    with pytest.raises(SoftPromptError, match="the prompt has 6 virtual tokens; keep 1 to 6 of them"):
        prune(tiny_base, trained, TASK, CHECK, keep)


def test_a_prompt_of_another_base_is_refused(trained: SoftPrompt) -> None:
    with pytest.raises(WrongBaseError, match="tiny-llama"):
        prune(make_base(seed=1), trained, TASK, CHECK, 2)
