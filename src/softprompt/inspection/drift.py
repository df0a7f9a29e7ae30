"""Where a prompt started, rebuilt from its card, and how far each virtual token has gone since.

Owns which initialisations can be repeated. Does not know what a virtual token means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts import initializers
from softprompt.prompts.prompt import SoftPrompt


def rebuild_start(base: Base, prompt: SoftPrompt) -> Tensor:
    """The `[P, H]` values that a prompt started from, as its card tells.

    Raises:
        SoftPromptError: the card does not tell, or cannot be followed; the line says why.
    """
    start = _rebuild(base, prompt.card.initialisation, prompt.num_virtual_tokens)
    if start.shape != prompt.embeddings.shape:
        raise SoftPromptError(
            f"its card describes a start of shape {list(start.shape)}, but it is {list(prompt.embeddings.shape)}"
        )
    return start


def _rebuild(base: Base, said: Mapping[str, Any], count: int) -> Tensor:
    method = said.get("method")
    try:
        if method == "text":
            return initializers.text(base, count, said["text"], spread=bool(said.get("spread", False)))
        if method == "labels":
            return initializers.labels(
                base, count, said["labels"], fill_text=said.get("fill_text"), seed=said.get("seed", 0)
            )
        if method == "vocabulary":
            return initializers.vocabulary(base, count, seed=said.get("seed", 0), most_common=said.get("most_common"))
        if method == "random":
            return initializers.random(
                base, count, seed=said.get("seed", 0), distribution=said.get("distribution", "table")
            )
        if method == "prune":
            whole = _rebuild(base, said["initialisation"], said["num_virtual_tokens"])
            return whole[torch.tensor(said["kept"], dtype=torch.long)]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, SoftPromptError) else f"{type(error).__name__}: {error}"
        raise SoftPromptError(f"the initialisation on its card cannot be followed ({reason})") from None
    if method == "prompt":
        raise SoftPromptError("it started from another prompt, of which its card keeps the SHA-256 only")
    if method is None:
        raise SoftPromptError("its card does not say how it started")
    raise SoftPromptError(f"a start by the method {method!r} cannot be repeated from its card")
