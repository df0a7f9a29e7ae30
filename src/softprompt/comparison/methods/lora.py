"""LoRA, by PEFT, on all linear layers.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

from itertools import count
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model

from softprompt.bases.base import Base
from softprompt.bases.load import load_base
from softprompt.comparison.measuring import median_seconds
from softprompt.comparison.methods.fine_tuning import FineTuning
from softprompt.comparison.methods.method import Work

RANK = 8


class Lora(FineTuning):
    """A low-rank adapter beside each linear layer."""

    name, title = "lora", f"LoRA, rank {RANK}"
    # About ten times full fine-tuning's: Schulman et al. 2025, "LoRA Without Regret"
    # (https://thinkingmachines.ai/blog/lora/).
    usual_rate = 5e-4

    def adapt(self, work: Work) -> tuple[Base, Any]:
        kind = work.base.family.task_type
        config = LoraConfig(task_type=kind, r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        return work.base, get_peft_model(work.base.model, config)

    def release(self, model: Any) -> None:
        model.unload()  # PEFT would put a second adapter on top of the first

    def load(self, work: Work) -> Base:
        PeftModel.from_pretrained(work.base.model, str(work.folder))
        return work.base

    def switch(self, work: Work) -> tuple[float, float | None]:
        """PEFT's `load_adapter` and `set_adapter`; in memory `set_adapter` alone."""
        base = load_base(work.plan.base, **work.recipe.loading())  # the work's own may hold an adapter
        model: Any = PeftModel.from_pretrained(base.model, str(work.folder), adapter_name="task-0")
        numbers = count(1)

        def load() -> None:
            name = f"task-{next(numbers)}"
            model.load_adapter(str(work.folder), name)
            model.set_adapter(name)

        from_disk = median_seconds(load)
        return from_disk, median_seconds(lambda: model.set_adapter(f"task-{next(numbers) % 2}"))
