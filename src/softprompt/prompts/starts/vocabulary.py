"""A start from words drawn at random.

Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 3.2
(https://aclanthology.org/2021.emnlp-main.243).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.bases.words import word_ids
from softprompt.errors import SoftPromptError
from softprompt.prompts.starts.values import check_count, embed, make_generator


def make(base: Base, num_virtual_tokens: int, *, seed: int = 0, most_common: int | None = None) -> Tensor:
    """The embeddings of P different tokens drawn at random, `[P, H]`.

    Special and added tokens and rows of the table that belong to no token are left out. `most_common` draws
    from that many of the most frequent tokens only (Lester et al. use 5,000), taken to be those of the lowest
    ids: an approximation, good where ids follow the order in which byte-pair merges were learnt.

    Raises:
        SoftPromptError: P or `most_common` out of bounds.
    """
    check_count(base, num_virtual_tokens)
    usable = word_ids(base)
    if most_common is not None:
        if not 1 <= most_common <= len(usable):
            raise SoftPromptError(f"most_common is {most_common}: it must be from 1 to {len(usable)} (usable tokens)")
        usable = usable[:most_common]
    if num_virtual_tokens > len(usable):
        raise SoftPromptError(
            f"{num_virtual_tokens} different virtual tokens cannot be drawn from {len(usable)} tokens: "
            "take fewer virtual tokens or a larger most_common"
        )
    drawn = torch.randperm(len(usable), generator=make_generator(seed))[:num_virtual_tokens]
    return embed(base, usable[drawn])


def remake(base: Base, said: Mapping[str, Any], num_virtual_tokens: int) -> Tensor:
    """The values again, from what a card says of them."""
    return make(base, num_virtual_tokens, seed=said.get("seed", 0), most_common=said.get("most_common"))
