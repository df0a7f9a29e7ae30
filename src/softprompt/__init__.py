"""softprompt: one frozen language model, any number of tasks, a few kilobytes each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from softprompt.noise import silence as _silence

if TYPE_CHECKING:
    from softprompt.bases.base import Base
    from softprompt.bases.identity import BaseIdentity
    from softprompt.bases.load import load_base
    from softprompt.errors import SoftPromptError, UnknownPromptError, WrongBaseError
    from softprompt.evaluation import Evaluation, Prediction, calibrate, evaluate, predict
    from softprompt.inspection import Inspection, Leakage, Pruned, inspect, leakage, plant_canaries, prune
    from softprompt.models.peft import LabelSmoothing, accelerate_peft
    from softprompt.models.prompted import PromptedModel, PromptedOutput
    from softprompt.prompts import Card, PromptLibrary, SoftPrompt
    from softprompt.prompts.ensemble import Ensemble
    from softprompt.reporting.run_report import write_report
    from softprompt.tasks import Row, Task, load_rows
    from softprompt.training.diagnosis import Diagnosis
    from softprompt.training.ensemble import train_ensemble
    from softprompt.training.growth import Growth, grow
    from softprompt.training.loop import DivergedError
    from softprompt.training.recipe import Recipe
    from softprompt.training.run import Run, train

__version__ = "0.1.0"

__all__ = [
    "Base",
    "BaseIdentity",
    "Card",
    "Diagnosis",
    "DivergedError",
    "Ensemble",
    "Evaluation",
    "Growth",
    "Inspection",
    "LabelSmoothing",
    "Leakage",
    "Prediction",
    "PromptLibrary",
    "PromptedModel",
    "PromptedOutput",
    "Pruned",
    "Recipe",
    "Row",
    "Run",
    "SoftPrompt",
    "SoftPromptError",
    "Task",
    "UnknownPromptError",
    "WrongBaseError",
    "accelerate_peft",
    "calibrate",
    "evaluate",
    "grow",
    "inspect",
    "leakage",
    "load_base",
    "load_rows",
    "plant_canaries",
    "predict",
    "prune",
    "train",
    "train_ensemble",
    "write_report",
]

# Each name is imported when it is first asked for: PyTorch and Transformers take seconds, which a command that only
# prints its help should not.
_HOMES = {
    "bases.base": ("Base",),
    "bases.identity": ("BaseIdentity",),
    "bases.load": ("load_base",),
    "errors": ("SoftPromptError", "UnknownPromptError", "WrongBaseError"),
    "evaluation": ("Evaluation", "Prediction", "calibrate", "evaluate", "predict"),
    "inspection": ("Inspection", "Leakage", "Pruned", "inspect", "leakage", "plant_canaries", "prune"),
    "models.peft": ("LabelSmoothing", "accelerate_peft"),
    "models.prompted": ("PromptedModel", "PromptedOutput"),
    "prompts": ("Card", "PromptLibrary", "SoftPrompt"),
    "prompts.ensemble": ("Ensemble",),
    "reporting.run_report": ("write_report",),
    "tasks": ("Row", "Task", "load_rows"),
    "training.diagnosis": ("Diagnosis",),
    "training.ensemble": ("train_ensemble",),
    "training.growth": ("Growth", "grow"),
    "training.loop": ("DivergedError",),
    "training.recipe": ("Recipe",),
    "training.run": ("Run", "train"),
}


_silence()


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"softprompt.{home}"), name)
    raise AttributeError(f"module 'softprompt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
