"""Prompt tuning on the user's own task: what is wrong before it begins, and how it does beside its peers."""

from softprompt.comparison.compare import Comparison, compare
from softprompt.comparison.problems import Check, check

__all__ = ["Check", "Comparison", "check", "compare"]
