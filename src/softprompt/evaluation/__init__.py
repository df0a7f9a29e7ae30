"""How well a prompt answers, and against what."""

from softprompt.evaluation.evaluate import Evaluation, Evaluator, Prediction, evaluate, predict

__all__ = ["Evaluation", "Evaluator", "Prediction", "evaluate", "predict"]
