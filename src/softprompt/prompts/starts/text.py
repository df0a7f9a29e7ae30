"""A start from the embeddings of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.prompts.starts.values import check_count, embed, encode, tile


def make(base: Base, num_virtual_tokens: int, text: str, *, spread: bool = False) -> Tensor:
    """The embeddings of `text`, `[P, H]`; the tokenizer adds no special tokens to it.

    A text of fewer than P tokens is repeated from its start. Of a longer one the first P tokens are taken, or
    with `spread` P tokens at even distances from the first to the last.

    Raises:
        SoftPromptError: P out of bounds, or a text that is empty.
    """
    check_count(base, num_virtual_tokens)
    ids = encode(base.tokenizer, text, "the text to initialise from")
    if spread and len(ids) > num_virtual_tokens:
        ids = ids[torch.arange(num_virtual_tokens) * (len(ids) - 1) // max(num_virtual_tokens - 1, 1)]
    return embed(base, tile(ids, num_virtual_tokens))


def remake(base: Base, said: Mapping[str, Any], num_virtual_tokens: int) -> Tensor:
    """The values again, from what a card says of them."""
    return make(base, num_virtual_tokens, said["text"], spread=bool(said.get("spread", False)))
