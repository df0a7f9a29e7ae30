"""What a prompt has learned: its words, its drift, what matters in it, and what can go."""

from softprompt.inspection.inspection import Inspection, inspect
from softprompt.inspection.pruning import Pruned, prune

__all__ = ["Inspection", "Pruned", "inspect", "prune"]
