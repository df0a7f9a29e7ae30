"""What is to be learned: the task, its rows, their tokens, and how answers are measured.

Imports no other room of the house.
"""

from softprompt.tasks.encode import Encoded, Encoder
from softprompt.tasks.metrics import classification_metrics, text_metrics
from softprompt.tasks.rows import Row, load_rows, rows_from
from softprompt.tasks.splits import check_trainable, split_rows, with_validation
from softprompt.tasks.task import Task

__all__ = [
    "Encoded",
    "Encoder",
    "Row",
    "Task",
    "check_trainable",
    "classification_metrics",
    "load_rows",
    "rows_from",
    "split_rows",
    "text_metrics",
    "with_validation",
]
