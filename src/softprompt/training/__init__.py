"""How a prompt is learned: recipes, the loop, the run and its folder."""

from softprompt.training.diagnosis import Diagnosis
from softprompt.training.growth import Growth, grow
from softprompt.training.loop import DivergedError
from softprompt.training.recipe import Recipe
from softprompt.training.run import Run, train

__all__ = ["Diagnosis", "DivergedError", "Growth", "Recipe", "Run", "grow", "train"]
