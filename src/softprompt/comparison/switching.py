"""How long a running program takes to switch to another task, measured on what was learned.

Owns what a switch is for each method: from the disk, and where both are in memory already. Knows nothing of how
anything was learned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel

from softprompt.bases.base import Base
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.task import Task

_TIMES = 5
_TIMES_FULL = 3


@dataclass(frozen=True)
class Switch:
    """Medians in seconds.

    Attributes:
        from_disk: read the other task's file and put it in place.
        in_memory: put in place what was read before; None where nothing but reading it helps.
    """

    from_disk: float
    in_memory: float | None


def switch_text(base: Base, artifact: Path, task: Task) -> Switch:
    """Few-shot: read the other task's text and encode its labels."""

    def load() -> None:
        template = json.loads((artifact / "examples.json").read_text(encoding="utf-8"))["template"]
        Encoder(base, task.model_copy(update={"template": template}))

    return Switch(_seconds(load, _TIMES), 0.0)


def switch_prompt(base: Base, artifact: Path) -> Switch:
    """A prompt: its `[P, H]` numbers are read, checked against the base and copied into the model."""
    other = SoftPrompt.load(artifact, base)
    model = PromptedModel(base, [other])

    @torch.no_grad()
    def swap(prompt: SoftPrompt) -> None:
        model.prompts[0].copy_(prompt.embeddings)

    return Switch(
        _seconds(lambda: swap(SoftPrompt.load(artifact, base)), _TIMES), _seconds(lambda: swap(other), _TIMES)
    )


def switch_lora(base: Base, artifact: Path) -> Switch:
    """LoRA: PEFT's `load_adapter` and `set_adapter`; in memory `set_adapter` alone. The base is changed."""
    model: Any = PeftModel.from_pretrained(base.model, str(artifact), adapter_name="first")
    names = iter(range(_TIMES + 1))

    def load() -> None:
        name = f"task-{next(names)}"
        model.load_adapter(str(artifact), name)
        model.set_adapter(name)

    from_disk = _seconds(load, _TIMES)
    adapters = iter(["first", "task-0"] * _TIMES)
    return Switch(from_disk, _seconds(lambda: model.set_adapter(next(adapters)), _TIMES))


def switch_full(artifact: Path, load: Callable[[str], Base]) -> Switch:
    """Full fine-tuning: the other task's whole model is loaded."""
    return Switch(_seconds(lambda: load(str(artifact)), _TIMES_FULL), None)


def _seconds(work: Callable[[], object], times: int) -> float:
    """The median time of `work`, after one call that warms up."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])
