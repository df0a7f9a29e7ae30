"""A job of a comparison: one method with one setting and one seed.

Owns its name. Knows nothing of what is done.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One method with one setting and one seed: what a process of its own learns.

    Attributes:
        method: its name.
        setting: the peak learning rate, or for few-shot the examples of each label; None where there is none.
        seed: of the order of the rows, of what is drawn at random and of the choice of examples.
    """

    method: str
    setting: float | None
    seed: int

    @property
    def name(self) -> str:
        """A file's name for it."""
        setting = "" if self.setting is None else f"-{self.setting:.3g}"
        return f"{self.method}{setting}-seed-{self.seed}"
