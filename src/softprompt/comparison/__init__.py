"""Prompt tuning on the user's own task: what is wrong before it begins, and how it does beside its peers."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softprompt.comparison.problems import Check, check
    from softprompt.comparison.runner import Comparison, compare

__all__ = ["Check", "Comparison", "check", "compare"]


# Imported when first asked for: the processes of the jobs come by here before they know where to print to.
_HOMES = {"Check": "problems", "check": "problems", "Comparison": "runner", "compare": "runner"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'softprompt.comparison' has no attribute {name!r}")
    return getattr(import_module(f"softprompt.comparison.{_HOMES[name]}"), name)
