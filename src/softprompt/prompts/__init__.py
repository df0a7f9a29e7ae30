"""What a soft prompt is: its tensor, how it starts, its card, the folder and the library that it is in."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softprompt.prompts.card import Card
    from softprompt.prompts.library import PromptLibrary
    from softprompt.prompts.prompt import SoftPrompt

__all__ = ["Card", "PromptLibrary", "SoftPrompt"]

# Each name is imported when it is first asked for: a library is listed without PyTorch.
_HOMES = {
    "Card": "card",
    "PromptLibrary": "library",
    "SoftPrompt": "prompt",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'softprompt.prompts' has no attribute {name!r}")
    return getattr(import_module(f"softprompt.prompts.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
