"""A start from the class labels.

Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 3.2
(https://aclanthology.org/2021.emnlp-main.243).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.starts import text, vocabulary
from softprompt.prompts.starts.values import check_count, embed, encode


def make(
    base: Base,
    num_virtual_tokens: int,
    labels: Sequence[str],
    *,
    fill_text: str | None = None,
    seed: int = 0,
) -> Tensor:
    """One virtual token for each class label, in order, then filled up to P, `[P, H]`.

    A label's virtual token is the mean of its tokens' embeddings. Each label is encoded exactly as given:
    with the space that it has in the target (" positive") its tokens are those which the base is to produce.
    Of more than P labels the first P are taken. What is left is filled as by `text` from `fill_text`, or
    where that is None as by `vocabulary` with `seed`.

    Raises:
        SoftPromptError: P out of bounds, no labels, or a label or `fill_text` that is empty.
    """
    check_count(base, num_virtual_tokens)
    if isinstance(labels, str) or not labels:
        raise SoftPromptError(f"initialising from labels needs a list of one label or more, not {labels!r}")
    encoded = [encode(base.tokenizer, label, f"label {n}") for n, label in enumerate(labels, start=1)]
    rows = [embed(base, ids).mean(dim=0) for ids in encoded[:num_virtual_tokens]]
    tensor = torch.stack(rows)
    left = num_virtual_tokens - len(rows)
    if left == 0:
        return tensor
    filling = vocabulary.make(base, left, seed=seed) if fill_text is None else text.make(base, left, fill_text)
    return torch.cat([tensor, filling])


def remake(base: Base, said: Mapping[str, Any], num_virtual_tokens: int) -> Tensor:
    """The values again, from what a card says of them."""
    return make(base, num_virtual_tokens, said["labels"], fill_text=said.get("fill_text"), seed=said.get("seed", 0))
