"""Prompt tuning beside its peers: the same rows, steps and batches, measured on the user's own task."""

from softprompt.comparison.compare import Comparison, compare

__all__ = ["Comparison", "compare"]
