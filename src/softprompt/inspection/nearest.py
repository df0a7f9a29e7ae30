"""The words nearest to each virtual token, by direction and by distance.

Owns the search over the vocabulary. Does not know which vectors it is asked about.

What is nearest is a hint, not a translation: Khashabi et al. 2022, "Prompt Waywardness: The Curious Case of Discretized
Interpretation of Continuous Prompts" (https://aclanthology.org/2022.naacl-main.266).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.bases.words import word_embeddings, written


@dataclass(frozen=True)
class Neighbour:
    """A word and how near it is.

    Attributes:
        token: the word as text.
        value: cosine (1: the same direction) or Euclidean distance (0: the same place).
    """

    token: str
    value: float


@dataclass(frozen=True)
class Neighbourhood:
    """What stands around one vector.

    Attributes:
        by_cosine: the words of most similar direction, the nearest first.
        by_distance: the words at the least Euclidean distance, the nearest first.
    """

    by_cosine: list[Neighbour]
    by_distance: list[Neighbour]


@torch.no_grad()
def nearest_ids(base: Base, vectors: Tensor, count: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """The words around each of the vectors `[N, H]`, by "cosine" and by "distance": ids, and what they are ranked by.

    Both are `[N, count]`, or as many as there are words, the nearest first; the greatest rank is the nearest.
    """
    length = len(vectors)
    best = {kind: (torch.empty(length, 0, dtype=torch.long), torch.empty(length, 0)) for kind in ("cosine", "distance")}
    directions = torch.nn.functional.normalize(vectors, dim=1)
    for ids, rows in word_embeddings(base):
        found = {
            "cosine": directions @ torch.nn.functional.normalize(rows, dim=1).T,
            # Of |v - w|^2 the part that differs between words; the distances of the few that are shown come later.
            "distance": 2 * vectors @ rows.T - rows.square().sum(dim=1),
        }
        for kind, ranks in found.items():
            all_ids = torch.cat([best[kind][0], ids.expand(length, -1)], dim=1)
            all_ranks = torch.cat([best[kind][1], ranks], dim=1)
            top = all_ranks.topk(min(count, all_ranks.shape[1]), dim=1)
            best[kind] = (all_ids.gather(1, top.indices), top.values)
    return best


@torch.no_grad()
def find_neighbours(base: Base, vectors: Tensor, count: int = 5) -> list[Neighbourhood]:
    """The words around each of the vectors `[N, H]`; special, added and untrained tokens are not among them.

    Args:
        base: whose words.
        vectors: float32 `[N, H]`.
        count: words of each kind, or as many as there are.
    """
    best = nearest_ids(base, vectors, count)
    near = best["distance"][0]
    distances = (base.embed(near).cpu() - vectors[:, None]).norm(dim=2)
    order = distances.argsort(dim=1)
    best["distance"] = (near.gather(1, order), distances.gather(1, order))

    def neighbours(kind: str, row: int) -> list[Neighbour]:
        ids, values = (column[row].tolist() for column in best[kind])
        return [Neighbour(written(base.tokenizer, token), value) for token, value in zip(ids, values, strict=True)]

    return [Neighbourhood(neighbours("cosine", row), neighbours("distance", row)) for row in range(len(vectors))]
