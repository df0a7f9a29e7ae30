"""A start from another prompt."""

from __future__ import annotations

from torch import Tensor

from softprompt.prompts.starts.values import check_positive, tile

NOT_REMADE = "it started from another prompt, of which its card keeps the SHA-256 only"


def make(embeddings: Tensor, num_virtual_tokens: int) -> Tensor:
    """Another prompt's `[P', H]` virtual tokens repeated or cut to `[P, H]`.

    Starting from a prompt that was trained on another task is Vu et al. 2022, "SPoT: Better Frozen Model
    Adaptation through Soft Prompt Transfer" (https://arxiv.org/abs/2110.07904).

    Raises:
        SoftPromptError: P below 1.
    """
    check_positive(num_virtual_tokens)
    return tile(embeddings.detach(), num_virtual_tokens).float()
