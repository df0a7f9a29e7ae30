"""Full fine-tuning: every weight of the base is trained, and a whole model is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompt.bases.base import Base
from softprompt.bases.load import load_base
from softprompt.comparison.measuring import median_seconds
from softprompt.comparison.methods.fine_tuning import FineTuning
from softprompt.comparison.methods.method import Work
from softprompt.errors import SoftPromptError


class FullFineTuning(FineTuning):
    """The base itself, unfrozen."""

    name, title, needs_base = "full", "Full fine-tuning", False
    usual_rate = 5e-5  # the Trainer's default

    def adapt(self, work: Work) -> tuple[Base, Any]:
        base = work.base
        if base.quantization is not None:
            raise SoftPromptError(f"full fine-tuning needs a base that is not quantised, which {base.quantization} is")
        if base.dtype.itemsize < 4:  # steps of AdamW are lost in 16 bits
            base = load_base(work.plan.base, dtype="float32")
        return base, base.model.requires_grad_(True)

    def save(self, model: Any, base: Base, folder: Path) -> None:
        super().save(model, base, folder)
        base.tokenizer.save_pretrained(str(folder))  # a model without its tokenizer answers nothing

    def load(self, work: Work) -> Base:
        return load_base(str(work.folder), dtype=work.recipe.dtype)

    def switch(self, work: Work) -> tuple[float, float | None]:
        """The other task's whole model is loaded."""
        return median_seconds(lambda: self.load(work), times=3), None
