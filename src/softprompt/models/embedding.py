"""Embeddings of whole texts: the mean of a text's final hidden states behind its prompt, and the loss over pairs.

The mean is over the text's own tokens, the special ones included, as Sentence-BERT has it (Reimers and Gurevych 2019,
https://aclanthology.org/D19-1410); virtual tokens are not among them. The loss asks each first text for its second one
among the second texts of the batch (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

from softprompt.errors import SoftPromptError
from softprompt.models.family import Batch
from softprompt.models.transfer import to_device

SCALE = 20.0  # by which cosines are multiplied, as in the sentence-transformers library


class Prompted(Protocol):
    """What is asked of a `PromptedModel`."""

    max_tokens: int | None

    def hidden(self, vectors: Sequence[Tensor], batch: Batch) -> Tensor:
        """Final hidden states at the places that a batch asks for."""


def embed(model: Prompted, vectors: Sequence[Tensor], tokens: Tensor, lengths: Sequence[int], k: Tensor) -> Tensor:
    """Embeddings `[B, H]` of length 1, float32 or wider.

    Args:
        model: the base with its prompts.
        vectors: the K prompts.
        tokens: `[N]` the texts' ids, text after text.
        lengths: of the B texts, which sum to N.
        k: `[B]` which prompt stands before each.
    """
    sizes = torch.tensor(list(lengths))
    rows = torch.arange(len(sizes)).repeat_interleave(sizes)
    columns = torch.arange(len(tokens)) - (sizes.cumsum(0) - sizes)[rows]
    hidden = model.hidden(vectors, Batch(tokens, list(lengths), k.tolist(), rows, columns))
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    rows, sizes = to_device([rows, sizes], hidden.device)
    total = hidden.new_zeros(len(sizes), hidden.shape[1]).index_add(0, rows, hidden)
    return normalize(total / sizes[:, None], dim=-1)


def embedding(states: Tensor) -> Tensor:
    """`[H]` the embedding, as `embed` has it, of one text from the states `[T, H]` of its tokens."""
    return normalize(states.mean(0), dim=0)


def pair_losses(
    model: Prompted, vectors: Sequence[Tensor], tokens: Tensor, lengths: Sequence[int], starts: Tensor, k: Tensor
) -> Tensor:
    """`[B]` the loss of each pair of texts among the pairs of the batch that stand behind the same prompt.

    A second text that is the row's own is no other one, wherever in the batch it stands. With `max_tokens` the texts
    are computed in parts, whose activations are computed again in the backward pass: the loss is that of the whole.

    Args:
        model, vectors, k: as `embed` takes them.
        tokens: `[N]` the pairs' ids, first and second text one after the other.
        lengths: of the B pairs.
        starts: `[B]` where in each pair the second text starts.

    Raises:
        SoftPromptError: a text of a pair is empty.
    """
    ends = torch.tensor(list(lengths), device=starts.device)
    if bool(((starts < 1) | (starts >= ends)).any()):
        raise SoftPromptError("a pair is two texts of a token or more, with its one label at the second's first token")
    sizes = torch.stack([starts, ends - starts], 1).flatten().tolist()
    found = torch.cat(list(_in_parts(model, vectors, tokens.split(sizes), k.repeat_interleave(2))))
    first, second = found[0::2], found[1::2]
    scores = SCALE * first @ second.T
    texts = [(prompt, tuple(text)) for prompt, text in zip(k.tolist(), _second(tokens, sizes), strict=True)]
    others = [[i == j or (a[0] == b[0] and a != b) for j, b in enumerate(texts)] for i, a in enumerate(texts)]
    scores = scores.masked_fill(~torch.tensor(others, device=scores.device), float("-inf"))
    return cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")


def _second(tokens: Tensor, sizes: list[int]) -> list[list[int]]:
    return [text.tolist() for text in tokens.split(sizes)[1::2]]


def _in_parts(model: Prompted, vectors: Sequence[Tensor], texts: Sequence[Tensor], k: Tensor) -> list[Tensor]:
    """The embeddings of texts, at most `max_tokens` at a time."""
    limit = model.max_tokens
    if limit is None or sum(map(len, texts)) <= limit:
        return [embed(model, vectors, torch.cat(list(texts)), [len(text) for text in texts], k)]
    found, start = [], 0
    while start < len(texts):
        stop, total = start + 1, len(texts[start])
        while stop < len(texts) and total + len(texts[stop]) <= limit:
            total += len(texts[stop])
            stop += 1
        some = texts[start:stop]
        found.append(
            checkpoint(
                embed,
                model,
                vectors,
                torch.cat(list(some)),
                [len(text) for text in some],
                k[start:stop],
                use_reentrant=False,
            )
        )
        start = stop
    return found
