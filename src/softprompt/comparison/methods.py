"""What is compared: the methods, and the few settings that each of them is tried with.

Owns the methods' names and their grids. Knows nothing of how a method is trained or measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.errors import SoftPromptError

METHODS = ("zero-shot", "few-shot", "prompt", "lora", "full")
TRAINED = ("prompt", "lora", "full")

LORA_RANK = 8
# The middle of each grid. LoRA with rank 8 on all linear layers takes about ten times the rate of full fine-tuning
# (Schulman et al. 2025, "LoRA Without Regret", https://thinkingmachines.ai/blog/lora/); 5e-5 is the Trainer's default.
# The prompt's own is the recipe's.
_MIDDLE = {"lora": 5e-4, "full": 5e-5}
_STEP = 3.0  # between two rates of a grid: three of them span an order of magnitude
# Examples for each label; of free text four times as many in all. As few as fit are taken.
_SHOTS = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Job:
    """One method with one setting and one seed: what a process of its own learns.

    Attributes:
        method: one of `METHODS`.
        setting: the peak learning rate, or for few-shot the examples of each label; None where there is none.
        seed: of the order of the rows, of what is drawn at random and of the choice of examples.
    """

    method: str
    setting: float | None
    seed: int

    @property
    def name(self) -> str:
        """A file's name for it."""
        setting = "" if self.setting is None else f"-{self.setting:.3g}"
        return f"{self.method}{setting}-seed-{self.seed}"


def check_methods(methods: Sequence[str]) -> list[str]:
    """The methods, each once, in the table's order.

    Raises:
        SoftPromptError: one is unknown, or there is none.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise SoftPromptError(f"methods: {', '.join(unknown) or 'none'}: choose of {', '.join(METHODS)}")
    return [method for method in METHODS if method in methods]


def grid(method: str, prompt_rate: float, *, one: bool) -> list[float | None]:
    """The settings that a method is tried with: three for every method that has any, or one.

    Args:
        method: one of `METHODS`.
        prompt_rate: the recipe's learning rate, the middle of the prompt's grid.
        one: the middle one alone; of the examples, the most.
    """
    if method == "zero-shot":
        return [None]
    if method == "few-shot":
        return [_SHOTS[-1]] if one else list(_SHOTS)
    middle = _MIDDLE.get(method, prompt_rate)
    return [middle] if one else [middle / _STEP, middle, middle * _STEP]
