"""What a prompt has learned: its words, its drift, what matters in it, what can go, and what it gives away."""

from softprompt.inspection.canaries import plant_canaries
from softprompt.inspection.inspection import Inspection, inspect
from softprompt.inspection.leakage import Leakage, leakage
from softprompt.inspection.pruning import Pruned, prune

__all__ = ["Inspection", "Leakage", "Pruned", "inspect", "leakage", "plant_canaries", "prune"]
