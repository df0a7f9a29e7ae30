"""How well a prompt answers, and against what."""

from softprompt.evaluation.calibration import calibrate
from softprompt.evaluation.evaluate import Evaluation, Evaluator, Prediction, evaluate, predict

__all__ = ["Evaluation", "Evaluator", "Prediction", "calibrate", "evaluate", "predict"]
