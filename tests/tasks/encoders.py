"""An encoder of a tokenizer alone, for tests that need no model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from softprompt.tasks.encode import Encoder
from softprompt.tasks.task import Task


def make_encoder(tokenizer: Any, task: Task, room: int | None = None) -> Encoder:
    family = SimpleNamespace(apart=False)
    base: Any = SimpleNamespace(tokenizer=tokenizer, family=family, room=lambda virtual_tokens=0: room)
    return Encoder(base, task)
