"""Full fine-tuning: every weight of the base."""

from __future__ import annotations

from typing import ClassVar

import torch

from softprompt.bases.base import Base
from softprompt.comparison.methods.method import Switch, Work, seconds
from softprompt.comparison.methods.weights import Weights, WeightTuning
from softprompt.training.recipe import Recipe

_TIMES = 3


class Full(WeightTuning):
    """A whole model for each task."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "Full fine-tuning"
    marker: ClassVar[str] = "v"
    colour: ClassVar[str] = "#D55E00"
    needs_base: ClassVar[bool] = False

    def rate(self, recipe: Recipe) -> float:
        """The Trainer's default."""
        return 5e-5

    def prepare(self, work: Work) -> Weights:
        base, precision = work.base, None
        if base.dtype.itemsize < 4:
            # Steps of AdamW are lost in 16 bits: the weights stay in 32, the products are computed in 16.
            precision = "bf16" if base.dtype == torch.bfloat16 else "fp16"
            base = work.load(work.plan.base, dtype="float32")
        base.model.requires_grad_(True)
        return Weights(base, base.model, precision)

    def load(self, work: Work, *, again: bool) -> Base:
        return work.load(str(work.artifact))

    def switch(self, work: Work) -> Switch:
        """The other task's whole model is loaded."""
        return Switch(seconds(lambda: work.load(str(work.artifact)), _TIMES), None)
