"""Heads: scores of a task's labels, read off final hidden states.

As in PEFT's SEQ_CLS, a score is a row of the head times the final hidden state of the text's last token, without a
bias: a hidden state has a direction that hardly changes, along which a row holds one (measured: no less accurate).
Where Transformers' class has a bias, as those of encoders have, it is one column more: `[L, H + 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from softprompt.models.transfer import to_device


def read_head(hidden: Tensor, head: Tensor) -> Tensor:
    """Scores `[..., L]` in float32 or wider, of hidden states `[..., H]` by a head `[L, H]` or `[L, H + 1]`."""
    states = with_ones(hidden.to(torch.promote_types(hidden.dtype, head.dtype)), head)
    return states @ head.to(hidden.device).T


def with_ones(hidden: Tensor, head: Tensor) -> Tensor:
    """Hidden states `[..., H]` as a head takes them: with a one at their end where it has a bias."""
    return pad(hidden, (0, 1), value=1.0) if head.shape[-1] == hidden.shape[-1] + 1 else hidden


def read_heads(hidden: Tensor, heads: Sequence[Tensor], head_of_place: Sequence[int]) -> Tensor:
    """Scores `[A, L]` of hidden states `[A, H]`, each by its own of several heads `[L, H]`."""
    if len(heads) == 1:
        return read_head(hidden, heads[0])
    (index,) = to_device([torch.tensor(head_of_place)], hidden.device)
    every = torch.stack(list(heads))  # of few prompts side by side: cheaper than going through them one by one
    return torch.einsum("ah,alh->al", with_ones(hidden.to(every.dtype), every), every[index])
