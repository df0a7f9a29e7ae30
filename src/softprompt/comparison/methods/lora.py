"""LoRA: low-rank matrices beside the base's own.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685), by PEFT.
"""

from __future__ import annotations

from typing import Any, ClassVar

from peft import LoraConfig, PeftModel, get_peft_model

from softprompt.bases.base import Base
from softprompt.comparison.methods.method import TIMES, Switch, Work, seconds
from softprompt.comparison.methods.weights import Weights, WeightTuning, with_model
from softprompt.training.recipe import Recipe

_RANK = 8


class Lora(WeightTuning):
    """Rank 8 on all linear layers."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = f"LoRA, rank {_RANK}"
    marker: ClassVar[str] = "^"
    colour: ClassVar[str] = "#009E73"

    def rate(self, recipe: Recipe) -> float:
        """About ten times the rate of full fine-tuning: Schulman et al. 2025, "LoRA Without Regret",
        https://thinkingmachines.ai/blog/lora/."""
        return 5e-4

    def prepare(self, work: Work) -> Weights:
        config = LoraConfig(task_type="CAUSAL_LM", r=_RANK, lora_alpha=2 * _RANK, target_modules="all-linear")
        return Weights(work.base, get_peft_model(work.base.model, config))

    def load(self, work: Work, *, again: bool) -> Base:
        base = work.load(work.plan.base) if again else work.base  # an adapter needs a base that has none yet
        model: Any = PeftModel.from_pretrained(base.model, str(work.artifact))
        return with_model(base, model.get_base_model())

    def switch(self, work: Work) -> Switch:
        """PEFT's `load_adapter` and `set_adapter`; in memory `set_adapter` alone."""
        # On a base of its own: PEFT would put a second adapter on top of the first.
        base, folder = work.load(work.plan.base), str(work.artifact)
        model: Any = PeftModel.from_pretrained(base.model, folder, adapter_name="first")
        names = iter(range(TIMES + 1))

        def load() -> None:
            name = f"task-{next(names)}"
            model.load_adapter(folder, name)
            model.set_adapter(name)

        from_disk = seconds(load)
        adapters = iter(["first", "task-0"] * TIMES)
        return Switch(from_disk, seconds(lambda: model.set_adapter(next(adapters))))
