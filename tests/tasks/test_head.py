from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from softprompt import SoftPromptError, Task
from softprompt.tasks.answers.head import _STRENGTHS, fit


def features(rows: int, width: int, labels: int, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """States around a mean of their label, with a direction that all share as hidden states have."""
    generator = torch.Generator().manual_seed(seed)
    gold = [i % labels for i in range(rows)]
    centres = torch.randn(labels, width, generator=generator)
    return centres[gold] + 0.7 * torch.randn(rows, width, generator=generator) + 5, gold


@pytest.mark.parametrize(("rows", "width", "labels"), [(120, 8, 3), (30, 40, 5), (400, 16, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fitted_head_is_scikit_learns_ridge(rows: int, width: int, labels: int, weighted: bool) -> None:
    states, gold = features(rows, width, labels)
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(1)) + 0.5 if weighted else None
    found = fit(states, gold, labels, weights)
    ridge = Ridge(alpha=found.alpha, fit_intercept=False)
    ridge.fit(states.double().numpy(), np.eye(labels)[gold], sample_weight=None if weights is None else weights.numpy())
    np.testing.assert_allclose(found.head.numpy() / found.scale, ridge.coef_, rtol=1e-3, atol=1e-5)


def test_the_strength_is_the_best_on_rows_left_out_one_by_one() -> None:
    states, gold = features(40, 12, 3)
    targets = np.eye(3)[gold]
    x = states.double().numpy()
    errors = {}
    for alpha in (_STRENGTHS * float(np.square(x).mean()) * len(x)).tolist():
        left = [np.arange(40) != row for row in range(40)]
        models = [Ridge(alpha=alpha, fit_intercept=False).fit(x[rows], targets[rows]) for rows in left]
        errors[alpha] = sum(((models[i].predict(x[i : i + 1])[0] - targets[i]) ** 2).sum() for i in range(40))
    assert fit(states, gold, 3).alpha == pytest.approx(min(errors, key=errors.__getitem__))


def test_its_scores_are_log_likelihoods_that_fit_rows_it_has_not_seen() -> None:
    states, gold = features(2000, 8, 4)
    found = fit(states[:200], gold[:200], 4)
    truth = torch.tensor(gold[200:])

    def loss(scale: float) -> float:
        return float(torch.nn.functional.cross_entropy(states[200:] @ found.head.T * scale, truth))

    assert min(loss(0.4), loss(2.5)) > loss(1.0)


def test_rows_that_are_all_told_apart_ask_for_no_certainty() -> None:
    generator = torch.Generator().manual_seed(0)
    gold = [i % 2 for i in range(50)]
    states = torch.eye(8)[gold] * 9 + 0.1 * torch.randn(50, 8, generator=generator)
    found = torch.softmax(states @ fit(states, gold, 2).head.T, 1).max(1).values
    assert found.min() > 0.9
    assert found.max() < 1 - 1e-4


def test_labels_without_a_row_and_with_one() -> None:
    states, gold = features(60, 8, 3)
    found = fit(states, [*gold[:-1], 3], 5).head  # label 3 has one row, label 4 none
    assert found.shape == (5, 8)
    assert found.isfinite().all()
    assert not (states @ found.T).argmax(1).eq(4).any()


def test_more_labels_than_rows() -> None:
    states, _ = features(6, 8, 2)
    assert fit(states, list(range(6)), 10).head.isfinite().all()


def test_states_that_are_not_finite() -> None:
    states, gold = features(6, 8, 2)
    states[3, 2] = float("nan")
    with pytest.raises(SoftPromptError, match="not finite"):
        fit(states, gold, 2)


def test_no_rows() -> None:
    with pytest.raises(SoftPromptError, match="no rows"):
        fit(torch.zeros(0, 8), [], 2)


def test_a_task_names_its_kind_of_answer() -> None:
    auto = Task(template="{text}", labels=["a", "b"])
    assert (auto.kind, auto.resolved(head=True).kind, auto.answered_by("head").kind) == ("words", "head", "head")
    assert Task(template="{text}", target="{answer}").resolved(head=True).kind == "text"
    with pytest.raises(SoftPromptError, match=r"answer: 'heads' is no kind of answer: choose one of auto, words, head"):
        Task(template="{text}", labels=["a", "b"], answer="heads")
    with pytest.raises(SoftPromptError, match="answer: head needs labels"):
        Task(template="{text}", target="{answer}", answer="head")
    with pytest.raises(SoftPromptError, match="answer: text has no labels"):
        Task(template="{text}", labels=["a", "b"], answer="text")


def test_strengths_are_in_order() -> None:
    assert all(low < high for low, high in pairwise(_STRENGTHS.tolist()))
