"""How well a prompt answers, and against what."""

from softprompt.evaluation.calibration import calibrate
from softprompt.evaluation.evaluate import Evaluation, Evaluator, evaluate, predict
from softprompt.tasks.answers.answer import Prediction

__all__ = ["Evaluation", "Evaluator", "Prediction", "calibrate", "evaluate", "predict"]
