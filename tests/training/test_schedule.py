from __future__ import annotations

import torch

from softprompt.tasks import Encoded
from softprompt.training.schedule import Lanes, Schedule, flatten


def encoded(lengths: list[int]) -> Encoded:
    ids, targets = [[row] * n for row, n in enumerate(lengths)], [[7]] * len(lengths)
    return Encoded(ids, targets, [0] * len(lengths), [], learned=lambda text, target, *_: [-100] * len(text) + target)


def test_every_row_is_seen_once_before_any_is_seen_again() -> None:
    schedule = Schedule(encoded([3] * 10), batch_size=4, batches=5, seed=0)
    seen = [schedule[i]["ids"][0] for i in range(len(schedule))]
    assert len(seen) == 20
    assert sorted(seen) == sorted([*range(10), *range(10)])


def test_a_batch_holds_rows_of_like_length() -> None:
    lengths = torch.randint(1, 100, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    schedule = Schedule(encoded(lengths), batch_size=16, batches=25, seed=1)
    spreads = []
    for batch in range(25):
        inside = [len(schedule[16 * batch + i]["ids"]) for i in range(16)]
        spreads.append(max(inside) - min(inside))
    assert sum(spreads) / 25 < 10  # of 99 in a random batch


def test_the_order_is_the_seeds() -> None:
    def order(seed: int) -> list[int]:
        schedule = Schedule(encoded([1 + i % 7 for i in range(50)]), 8, 20, seed)
        return [schedule[i]["ids"][0] for i in range(len(schedule))]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_a_batch_is_flat() -> None:
    batch = flatten(
        [
            {"ids": [5, 6, 7], "labels": [-100, -100, 7], "prompt": 0},
            {"ids": [8, 9, 4, 3], "labels": [-100, 9, 4, 3], "prompt": 1},
        ]
    )
    assert batch["input_ids"].tolist() == [5, 6, 7, 8, 9, 4, 3]
    assert batch["labels"].tolist() == [-100, -100, 7, -100, 9, 4, 3]
    assert batch["lengths"].tolist() == [3, 4]
    assert batch["prompt_index"].tolist() == [0, 1]


def test_the_rows_of_several_prompts_stand_together_part_by_part() -> None:
    schedules = [Schedule(encoded([1 + i % 7 for i in range(50)]), 4, 3, seed) for seed in (0, 1)]
    lanes = Lanes(schedules, 2)
    assert len(lanes) == 24
    for k, schedule in enumerate(schedules):
        own = [row for row in map(lanes.__getitem__, range(24)) if row["prompt"] == k]
        assert [row["ids"] for row in own] == [schedule[i]["ids"] for i in range(12)]
    assert [lanes[i]["prompt"] for i in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
