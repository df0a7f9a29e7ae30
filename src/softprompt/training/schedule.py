"""The rows of a run in the order in which they are learned, and as the batches that the model takes.

Owns the order, a function of the seed alone, and the flat form of a batch. Knows nothing of models or the loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from softprompt.tasks.encode import Encoded

# Batches whose rows are sorted by length together: enough for little padding, few enough to stay shuffled.
_SORTED_BATCHES = 50


def learned_rows(count: int, batch_size: int, batches: int, seed: int) -> list[int]:
    """Which of `count` rows a run of so many batches learns from, in ascending order."""
    return sorted(set(_drawn(count, batches * batch_size, seed)[0].tolist()))


def _drawn(count: int, wanted: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """The first `wanted` rows of a run, each seen once before any is seen again, and the generator after that."""
    generator = torch.Generator().manual_seed(seed)
    passes = math.ceil(wanted / count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])[:wanted], generator


class Schedule(Dataset[dict[str, Any]]):
    """The rows of a whole run in the order in which they are learned, a function of the seed alone.

    Every row is seen once before any is seen again. Rows of like length stand in one batch; the batches are shuffled.

    Args:
        encoded: the training rows.
        batch_size: rows in a batch.
        batches: batches in the run.
        seed: of the order.
        learned: where `encoded` holds those rows only that `learned_rows` names, these; None: it holds all.
        count: rows in all.
    """

    def __init__(
        self,
        encoded: Encoded,
        batch_size: int,
        batches: int,
        seed: int,
        learned: Sequence[int] | None = None,
        count: int | None = None,
    ) -> None:
        self._encoded = encoded
        targets: Sequence[list[int]] = encoded.target_ids or [[]] * len(encoded.input_ids)
        lengths = torch.tensor([len(x) + len(y) for x, y in zip(encoded.input_ids, targets, strict=True)])
        rows, generator = _drawn(len(lengths) if count is None else count, batches * batch_size, seed)
        if learned is not None:  # where each stands in `encoded`
            rows = torch.searchsorted(torch.tensor(learned), rows)
        chunks = []
        for some in rows.split(_SORTED_BATCHES * batch_size):
            together = some[lengths[some].argsort(descending=True, stable=True)].split(batch_size)
            chunks += [together[i] for i in torch.randperm(len(together), generator=generator).tolist()]
        self._order: list[int] = torch.cat(chunks).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._encoded.example(self._order[place])


class Lanes(Dataset[dict[str, Any]]):
    """The schedules of several prompts, a part of each prompt's batch at a time.

    Args:
        schedules: one for each prompt, of one length.
        part: rows of a prompt that stand together.
    """

    def __init__(self, schedules: Sequence[Schedule], part: int) -> None:
        self._schedules, self._part = schedules, part

    def __len__(self) -> int:
        return len(self._schedules) * len(self._schedules[0])

    def __getitem__(self, place: int) -> dict[str, Any]:
        batch, within = divmod(place, self._part * len(self._schedules))
        lane, row = divmod(within, self._part)
        return self._schedules[lane][batch * self._part + row] | {"prompt": lane}


def flatten(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as a flat batch: `input_ids` and `labels` `[N]`, text after text; `lengths` and `prompt_index` `[B]`."""
    return {
        "input_ids": torch.tensor([token for row in rows for token in row["ids"]], dtype=torch.long),
        "labels": torch.tensor([label for row in rows for label in row["labels"]], dtype=torch.long),
        "lengths": torch.tensor([len(row["ids"]) for row in rows], dtype=torch.long),
        "prompt_index": torch.tensor([row["prompt"] for row in rows], dtype=torch.long),
    }


def of_prompts(batch: dict[str, Tensor], kept: Sequence[int]) -> dict[str, Tensor]:
    """The rows of a flat batch that stand behind some of the prompts."""
    rows = torch.isin(batch["prompt_index"], torch.tensor(list(kept)))
    if bool(rows.all()):
        return batch
    tokens = rows.repeat_interleave(batch["lengths"])
    of_tokens = {key: batch[key][tokens] for key in ("input_ids", "labels")}
    return of_tokens | {key: batch[key][rows] for key in ("lengths", "prompt_index")}
