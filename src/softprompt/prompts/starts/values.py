"""What all starts share: the limits on P, ids and embeddings of words, repeated or cut to P, seeded numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError


def check_positive(num_virtual_tokens: int) -> None:
    """Refuse a P that is no whole number from 1 on."""
    if isinstance(num_virtual_tokens, bool) or not isinstance(num_virtual_tokens, int) or num_virtual_tokens < 1:
        raise SoftPromptError(f"num_virtual_tokens is {num_virtual_tokens!r}: it must be a whole number from 1 on")


def check_count(base: Base, num_virtual_tokens: int) -> None:
    """Refuse a P that leaves no room for text."""
    check_positive(num_virtual_tokens)
    limit = base.max_positions
    if limit is not None and num_virtual_tokens >= limit:
        raise SoftPromptError(
            f"{num_virtual_tokens} virtual tokens leave no room for text in the {limit} positions of base "
            f"'{base.identity.name}': take fewer than {limit}"
        )


def encode(tokenizer: Any, text: object, what: str, *, special_tokens: bool = False) -> Tensor:
    """The ids of a text; `what` names it in errors."""
    if not isinstance(text, str) or not text.strip():
        raise SoftPromptError(f"{what} is empty or not a text: {text!r}")
    ids = tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
    if not ids:
        raise SoftPromptError(f"{what} has no tokens in this tokenizer: {text!r}")
    return torch.tensor(ids)


def embed(base: Base, ids: Tensor) -> Tensor:
    """Word embeddings, float32 on the CPU."""
    if (highest := int(ids.max())) >= base.embedding_count:
        raise SoftPromptError(
            f"token id {highest} has no embedding: base '{base.identity.name}' has "
            f"{base.embedding_count} embeddings; the tokenizer is not that base's"
        )
    return base.embed(ids).detach().to("cpu", torch.float32)


def tile(rows: Tensor, count: int) -> Tensor:
    """The rows repeated from the first on, or cut."""
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def make_generator(seed: int) -> torch.Generator:
    """Random numbers of a seed, which is checked."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise SoftPromptError(f"seed is {seed!r}: it must be a whole number from 0 on")
    return torch.Generator().manual_seed(seed)
