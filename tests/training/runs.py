"""A task whose rule a tiny base learns, and runs of it.

Owns the rows and the settings that the tests of the monitor, the diagnoses and the report share.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from softprompt import Base, Recipe, Row, Run, SoftPrompt, Task, train

TASK = Task(template="{text}:", labels=["yes", "no"])


def rows(count: int, start: int = 0, *, by_chance: int | None = None) -> list[Row]:
    """Texts whose first letter tells their label, or with `by_chance`, a seed, nothing does."""
    coin = random.Random(by_chance)
    found = []
    for i in range(start, start + count):
        text = ("m" if i % 2 else "w") + str(i * 37) * (1 + i % 3)
        label = i % 2 if by_chance is None else coin.randrange(2)
        found.append(Row({"text": text}, label, " " + ["yes", "no"][label], number=i + 1))
    return found


def recipe(**changed: Any) -> Recipe:
    settings = {"max_steps": 24, "batch_size": 4, "evaluate_every": 6, "save_every": 4, "warmup_steps": 2}
    return Recipe(**settings | {"log_every": 2} | changed)


def learn(base: Base, output: Path | None = None, prompt: SoftPrompt | None = None, **changed: Any) -> Run:
    """A short run: 24 steps, an entry every 2, a validation every 6."""
    options: dict[str, Any] = {"train": rows(40), "validation": rows(12, 40), "recipe": recipe(), "output": output}
    return train(base, prompt or SoftPrompt.from_vocabulary(base, 6), TASK, **options | changed)
