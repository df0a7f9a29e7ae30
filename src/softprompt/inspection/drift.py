"""Where a prompt started, rebuilt from its card, and how far each virtual token has gone since.

Knows nothing of what a virtual token means.
"""

from __future__ import annotations

from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts import starts
from softprompt.prompts.prompt import SoftPrompt


def rebuild_start(base: Base, prompt: SoftPrompt) -> Tensor:
    """The `[P, H]` values that a prompt started from, as its card tells.

    Raises:
        SoftPromptError: the card does not tell, or cannot be followed; the line says why.
    """
    start = starts.remake(base, prompt.card.initialisation, prompt.num_virtual_tokens)
    if start.shape != prompt.embeddings.shape:
        raise SoftPromptError(
            f"its card describes a start of shape {list(start.shape)}, but it is {list(prompt.embeddings.shape)}"
        )
    return start
