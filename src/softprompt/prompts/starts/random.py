"""A start from random values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.starts.values import check_count, make_generator

# Embeddings looked up at a time, so that a large table is never copied whole.
_CHUNK = 4096


def make(
    base: Base,
    num_virtual_tokens: int,
    *,
    seed: int = 0,
    distribution: Literal["table", "normal"] = "table",
) -> Tensor:
    """Random values, `[P, H]`.

    `distribution="table"` is normal with the mean and the standard deviation that each dimension has in the
    embedding table. `"normal"` is PEFT's N(0, 1), often many times larger than any word's embedding; it is
    for comparison.

    Raises:
        SoftPromptError: P out of bounds, or another distribution.
    """
    check_count(base, num_virtual_tokens)
    noise = torch.randn(num_virtual_tokens, base.hidden_size, generator=make_generator(seed))
    if distribution == "normal":
        return noise
    if distribution != "table":
        raise SoftPromptError(f"distribution is {distribution!r}: it must be 'table' or 'normal'")
    total = squares = torch.zeros(base.hidden_size, dtype=torch.float64)
    for start in range(0, base.embedding_count, _CHUNK):
        ids = torch.arange(start, min(start + _CHUNK, base.embedding_count))
        rows = base.embed(ids).cpu().double()
        total, squares = total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
    mean = total / base.embedding_count
    deviation = (squares / base.embedding_count - mean.square()).clamp(min=0).sqrt()
    return noise * deviation.float() + mean.float()


def remake(base: Base, said: Mapping[str, Any], num_virtual_tokens: int) -> Tensor:
    """The values again, from what a card says of them."""
    return make(base, num_virtual_tokens, seed=said.get("seed", 0), distribution=said.get("distribution", "table"))
