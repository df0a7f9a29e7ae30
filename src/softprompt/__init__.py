"""softprompt: one frozen language model, any number of tasks, a few kilobytes each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softprompt.errors import SoftPromptError, WrongBaseError
    from softprompt.evaluation import Evaluation, Prediction, evaluate, predict
    from softprompt.models.base import Base, load_base
    from softprompt.models.peft import accelerate_peft
    from softprompt.models.prompted import PromptedModel, PromptedOutput
    from softprompt.prompts import BaseIdentity, Card, SoftPrompt
    from softprompt.tasks import Row, Task, load_rows
    from softprompt.training import DivergedError, Recipe, Run, train

__version__ = "0.1.0"

__all__ = [
    "Base",
    "BaseIdentity",
    "Card",
    "DivergedError",
    "Evaluation",
    "Prediction",
    "PromptedModel",
    "PromptedOutput",
    "Recipe",
    "Row",
    "Run",
    "SoftPrompt",
    "SoftPromptError",
    "Task",
    "WrongBaseError",
    "accelerate_peft",
    "evaluate",
    "load_base",
    "load_rows",
    "predict",
    "train",
]

# Each name is imported when it is first asked for: PyTorch and Transformers take seconds, which a command that only
# prints its help should not.
_HOMES = {
    "errors": ("SoftPromptError", "WrongBaseError"),
    "evaluation": ("Evaluation", "Prediction", "evaluate", "predict"),
    "models.base": ("Base", "load_base"),
    "models.peft": ("accelerate_peft",),
    "models.prompted": ("PromptedModel", "PromptedOutput"),
    "prompts": ("BaseIdentity", "Card", "SoftPrompt"),
    "tasks": ("Row", "Task", "load_rows"),
    "training": ("DivergedError", "Recipe", "Run", "train"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"softprompt.{home}"), name)
    raise AttributeError(f"module 'softprompt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
