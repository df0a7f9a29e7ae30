"""Spans: where in a text an answer starts and ends, by a head of two rows, as in Transformers' classes for questions.

One row of the head scores each token as the start, the other as the end. The loss is the mean of both cross-entropies
over the text's tokens; virtual tokens are none of the choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softprompt.models.transfer import to_device


def mark_spans(labels: Tensor, rows: Tensor) -> Tensor:
    """`[N]` 1 at each text's first token of its span, 2 at the last, 3 where these are one, 0 elsewhere; -1: no span.

    Args:
        labels: `[N]` at the first token of a text's span how many tokens on its last one is, -100 elsewhere.
        rows: `[N]` the text of each token.
    """
    starts = (labels != -100).nonzero()[:, 0]
    ends = starts + labels[starts]
    within = (ends >= starts) & (ends < len(labels))
    if not within.all() or bool((rows[ends.clamp(0, len(labels) - 1)] != rows[starts]).any()):
        return labels.new_full(labels.shape, -1)
    marks = torch.zeros_like(labels)
    marks[starts] += 1
    marks[ends] += 2
    return marks


def span_losses(scores: Tensor, marks: Tensor, rows: Tensor) -> Tensor:
    """`[N]` what each token adds to its text's loss.

    Args:
        scores: `[N, 2]` of each token as the start and as the end.
        marks: `[N]` from `mark_spans`.
        rows: `[N]` the text of each token, ascending; on the CPU.
    """
    count = int(rows.max()) + 1
    (rows,) = to_device([rows], scores.device)
    index = rows[:, None].expand_as(scores)
    top = scores.detach().new_full((count, 2), float("-inf")).scatter_reduce(0, index, scores.detach(), "amax")
    total = scores.new_zeros(count, 2).index_add(0, rows, (scores - top[rows]).exp())
    likelihoods = scores - top[rows] - total.log()[rows]
    right = torch.stack([marks % 2, marks // 2], dim=1).to(scores)
    return -(likelihoods * right).sum(1) / 2
