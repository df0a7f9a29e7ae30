"""Labels by a head `[L, H]`: a score for each label, read off the final hidden state of the text's last token.

The head is fitted in closed form before the first step, then trained together with the prompt, and fitted again at the
end where validation says so. A soft verbalizer without words (WARP: Hambardzumyan et al. 2021,
https://aclanthology.org/2021.acl-long.381); PEFT's SEQ_CLS. However many labels there are, a text is computed once and
nothing is computed after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from softprompt.errors import SoftPromptError
from softprompt.tasks.answers.answer import Asked, Labels
from softprompt.tasks.rows import Row

# Strengths of the ridge that are tried, as shares of the mean square of the states.
_STRENGTHS = torch.logspace(-4, 2, 25, dtype=torch.float64)
_LOG_SCALES = (-2.0, 6.0)  # natural logarithms, between which the scale lies


class Head(Labels):
    """See the module."""

    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        gold = self.gold(rows)
        return [[] for _ in gold] if len(gold) == len(rows) else None

    def learned(
        self, text: Sequence[int], target: Sequence[int], gold: int, places: Sequence[int] | None = None
    ) -> list[int]:
        return [*(-100 for _ in text[1:]), gold]

    def likelihoods(self, asked: Asked) -> Tensor:
        return asked.read_head().float().log_softmax(-1)


class Fitted(NamedTuple):
    """A head `[L, H]` in float32, and the ridge's alpha and the scale that it comes from."""

    head: Tensor
    alpha: float
    scale: float


def fit(states: Tensor, gold: Sequence[int], labels: int, weights: Tensor | None = None) -> Fitted:
    """The head that ridge regression gives, scaled so that its scores are the best log-likelihoods.

    scikit-learn's `Ridge(alpha, fit_intercept=False)` on one column of 0 and 1 for each label (with `sample_weight`),
    times a scale. The strength alpha is the one with the least squared error on rows left out one by one, which the
    closed form gives without leaving any out (Golub, Heath, Wahba 1979, "Generalized Cross-Validation as a Method for
    Choosing a Good Ridge Parameter", https://doi.org/10.1080/00401706.1979.10489751); the scale is the one with the
    least cross-entropy on the same.

    Args:
        states: `[n, H]` what is read.
        gold: each row's label.
        labels: L.
        weights: `[n]` of the rows; None: all alike.

    Raises:
        SoftPromptError: a state is not finite, or there are no rows.
    """
    if not len(states):
        raise SoftPromptError("there are no rows to fit a head on")
    if not states.isfinite().all():
        raise SoftPromptError("the base gives hidden states that are not finite: no head can be fitted on them")
    x, y = states.double(), torch.nn.functional.one_hot(torch.tensor(gold), labels).double()
    root = torch.ones(len(x), 1, dtype=torch.float64) if weights is None else weights.double().sqrt()[:, None]
    x, y, truth = x * root, y * root, torch.tensor(gold)
    values, vectors = torch.linalg.eigh(x.T @ x)
    values, rotated = values.clamp(min=0), x @ vectors
    onto = rotated.T @ y
    best: tuple[float, float, Tensor, Tensor] | None = None
    for strength in _STRENGTHS * x.square().mean() * len(x):
        shrunk = 1 / (values + strength)
        leverage = (rotated.square() @ shrunk)[:, None].clamp(max=1 - 1e-9)
        left_out = y - (y - rotated @ (shrunk[:, None] * onto)) / (1 - leverage)
        error = float((left_out - y).square().sum())
        if best is None or error < best[0]:
            best = error, float(strength), vectors @ (shrunk[:, None] * onto), left_out / root
    assert best is not None, "there are strengths"
    _, alpha, columns, left_out = best

    def cost(log_scale: float) -> float:
        return float((root[:, 0] ** 2 * _cross_entropy(left_out * math.exp(log_scale), truth)).sum())

    scale = math.exp(minimize_scalar(cost, bounds=_LOG_SCALES, method="bounded").x)
    return Fitted((columns.T * scale).float().contiguous(), alpha, scale)


def _cross_entropy(scores: Tensor, gold: Tensor) -> Tensor:
    """`[n]`, as if there were one row more of which nobody knows the label: else rows that are all told apart rightly
    would ask for scores without bounds."""
    smoothing = 1 / (len(gold) + 1)
    return torch.nn.functional.cross_entropy(scores, gold, reduction="none", label_smoothing=smoothing)
