"""What a soft prompt is: its tensor, how it starts, what its file says of itself, the folder and the library it is in.

Knows no other room: all that it needs of a base model is `EmbeddingSource`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softprompt.prompts.card import BaseIdentity, Card
    from softprompt.prompts.initializers import EmbeddingSource
    from softprompt.prompts.library import PromptLibrary
    from softprompt.prompts.prompt import SoftPrompt

__all__ = ["BaseIdentity", "Card", "EmbeddingSource", "PromptLibrary", "SoftPrompt"]

# Each name is imported when it is first asked for: a library is listed without PyTorch.
_HOMES = {
    "BaseIdentity": "card",
    "Card": "card",
    "EmbeddingSource": "initializers",
    "PromptLibrary": "library",
    "SoftPrompt": "prompt",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'softprompt.prompts' has no attribute {name!r}")
    return getattr(import_module(f"softprompt.prompts.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
