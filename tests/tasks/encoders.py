"""An encoder of a tokenizer alone, for tests that need no model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from softprompt.bases.families import FAMILIES
from softprompt.tasks.encode import Encoder
from softprompt.tasks.task import Task


def make_encoder(tokenizer: Any, task: Task, room: int | None = None) -> Encoder:
    base: Any = SimpleNamespace(tokenizer=tokenizer, room=lambda virtual_tokens=0: room, family=FAMILIES["causal"])
    return Encoder(base, task)
