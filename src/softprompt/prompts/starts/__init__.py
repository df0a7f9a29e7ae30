"""How a soft prompt starts: one file for each way, which makes the values and remakes them from a card.

A way has `make`, which gives a float32 tensor `[P, H]`, and `remake(base, said, num_virtual_tokens)`, which gives it
again from `card.initialisation`, or `NOT_REMADE`, which says why it can't. A new way is a file here and a line in
`METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from torch import Tensor

    from softprompt.bases.base import Base

# What a card calls a method, and the file that knows it.
METHODS = {
    "examples": "examples",
    "labels": "labels",
    "peft": "peft",
    "prompt": "transfer",
    "prune": "prune",
    "random": "random",
    "text": "text",
    "vocabulary": "vocabulary",
}


def remake(base: Base, said: Mapping[str, Any], num_virtual_tokens: int) -> Tensor:
    """The values `[P, H]` that a prompt started from, as its card tells.

    Raises:
        SoftPromptError: the card does not tell, or cannot be followed; the line says why.
    """
    method = said.get("method")
    if method is None:
        raise SoftPromptError("its card does not say how it started")
    if method not in METHODS:
        raise SoftPromptError(f"a start by the method {method!r} cannot be repeated from its card")
    way = import_module(f"softprompt.prompts.starts.{METHODS[str(method)]}")
    if not hasattr(way, "remake"):
        raise SoftPromptError(way.NOT_REMADE)
    try:
        values: Tensor = way.remake(base, said, num_virtual_tokens)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, SoftPromptError) else f"{type(error).__name__}: {error}"
        raise SoftPromptError(f"the initialisation on its card cannot be followed ({reason})") from None
    return values
