"""Rates and norms of single virtual tokens: what the recipe's `token_learning_rates` and `max_token_norm` do.

Owns what happens to a prompt between two optimiser steps. Knows tensors and the Trainer's callbacks; nothing of the
optimiser, whose steps are scaled after it has taken them, nor of the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from softprompt.models.words import word_norms
from softprompt.prompts.initializers import EmbeddingSource
from softprompt.training.recipe import Recipe


class TokenControl(TrainerCallback):
    """Scales each virtual token's step by its norm, and holds its norm below a limit.

    A step of AdamW or Adafactor, weight decay included, is proportional to the rate: to scale it after it was taken is
    to have had another rate. That of virtual token i is the prompt's times |p_i| / mean |p_j|, by the norms before the
    step (You, Gitman, Ginsburg 2017, "Large Batch Training of Convolutional Networks",
    https://arxiv.org/abs/1708.03888, there for a layer's weights); a virtual token of zeros has the prompt's rate.

    Args:
        prompts: the `[P, H]` tensors that are trained.
        by_norm: whether steps are scaled.
        limit: the greatest norm that a virtual token may have after a step; None: any.
    """

    def __init__(self, prompts: Iterable[Tensor], *, by_norm: bool, limit: float | None) -> None:
        self._prompts, self._by_norm, self._limit = list(prompts), by_norm, limit
        self._before: list[Tensor] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._before = [prompt.detach().clone() for prompt in self._prompts]

    @torch.no_grad()
    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for prompt, before in zip(self._prompts, self._before, strict=True):
            if self._by_norm:
                norms = before.norm(dim=1, keepdim=True)
                factors = torch.where(norms > 0, norms / norms.mean(), 1.0)
                prompt.copy_(before + factors * (prompt - before))
            if self._limit is not None:
                norms = prompt.norm(dim=1, keepdim=True)
                prompt.mul_(self._limit / norms.clamp(min=self._limit))  # by exactly 1 below the limit


def token_control(base: EmbeddingSource, prompts: Iterable[Tensor], recipe: Recipe) -> list[TrainerCallback]:
    """What a recipe asks for, as callbacks of the Trainer's kind: none where it asks for nothing."""
    by_norm = recipe.token_learning_rates == "norm"
    if not by_norm and not recipe.max_token_norm:
        return []
    limit = recipe.max_token_norm * float(word_norms(base).median()) if recipe.max_token_norm else None
    return [TokenControl(prompts, by_norm=by_norm, limit=limit)]
