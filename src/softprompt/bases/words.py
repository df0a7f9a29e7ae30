"""The base's words: which token ids stand for one, how they are written, and their embeddings in turn.

Owns what counts as a word: not special, not added, and with an embedding of its own. Knows nothing of prompts beyond
what a base looks like to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base

_CHUNK = 4096  # embeddings looked up at a time, so that a large table is never copied whole


def word_ids(base: Base) -> Tensor:
    """The ids of the words, in ascending order."""
    tokenizer = base.tokenizer
    left_out = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = sorted(set(tokenizer.get_vocab().values()) - left_out)
    return torch.tensor([token for token in ids if token < base.embedding_count], dtype=torch.long)


def word_embeddings(base: Base) -> Iterator[tuple[Tensor, Tensor]]:
    """The words' ids `[C]` and embeddings `[C, H]`, float32 on the CPU, chunk by chunk.

    Rows of zeros are left out: nobody has trained them.
    """
    for ids in word_ids(base).split(_CHUNK):
        rows = base.embed(ids).cpu()
        used = rows.any(dim=1)
        yield ids[used], rows[used]


def word_norms(base: Base) -> Tensor:
    """The Euclidean norms of the words' embeddings, `[at most V]` float32 on the CPU."""
    return torch.cat([rows.norm(dim=1) for _, rows in word_embeddings(base)])


def written(tokenizer: Any, token: int) -> str:
    """A token as text; of one that is only a part of a character, the tokenizer's own name."""
    text: str = tokenizer.decode([token])
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text or not text else text
