"""What the benchmarks learn: movie review snippets, positive or negative, rated by people.

Owns the task, its rows and the batches made of them. Knows nothing of models or timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import softprompt as sp
from softprompt import demo
from softprompt.bases.sources import read_snippets
from softprompt.comparison.methods.fine_tuning import pad_rows
from softprompt.tasks.encode import Encoder

TASK = sp.Task(template="Review: {text}\nSentiment:", target=" {label}", labels=["negative", "positive"])
INIT_TEXT = "Is this movie review negative or positive? Classify its sentiment."


def load_movies() -> list[sp.Row]:
    """The demonstration's rows about films without its test rows, its validation rows first, in its shuffled order."""
    splits = demo.split(read_snippets("movieReview"), [])
    return [
        sp.Row({"text": text}, int(rating > 0), " positive" if rating > 0 else " negative", "movie snippets", number)
        for number, (text, rating) in enumerate(splits["validation.csv"] + splits["train.csv"], 1)
    ]


def make_batches(
    base: sp.Base, rows: Sequence[sp.Row], batch_size: int, count: int, length: int | None = None
) -> list[dict[str, Tensor]]:
    """`input_ids`, `attention_mask` and `labels` `[B, T]` of consecutive rows, padded at the right.

    The label's tokens alone are learned. Rows stand together as they come, as they do in the Trainer's batches. With a
    length every text has T of that many tokens: a row's, the rows' before it where they are too few, the last of them.
    """
    needed = count * batch_size
    chosen = [rows[i % len(rows)] for i in range(needed)]
    encoded = Encoder(base, TASK).encode_rows(chosen)
    pairs = [encoded.example(row) for row in range(needed)]
    if length is not None:
        pairs = [_of_length(pairs, row, length) for row in range(needed)]
    return [pad_rows(pairs[start : start + batch_size]) for start in range(0, needed, batch_size)]


def _of_length(pairs: Sequence[dict[str, Any]], row: int, length: int) -> dict[str, Any]:
    ids, labels, before = list(pairs[row]["ids"]), list(pairs[row]["labels"]), row
    while len(ids) < length:
        before = (before - 1) % len(pairs)
        ids, labels = [*pairs[before]["ids"], *ids], [*([-100] * len(pairs[before]["ids"])), *labels]
    return {**pairs[row], "ids": ids[-length:], "labels": labels[-length:]}
