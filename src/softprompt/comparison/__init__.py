"""Prompt tuning on the user's own task: beside its peers, measured; and what to expect of it before."""

from softprompt.comparison.advice import Advice, advise
from softprompt.comparison.compare import Comparison, compare

__all__ = ["Advice", "Comparison", "advise", "compare"]
