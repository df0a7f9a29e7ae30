"""A start from worked examples: training rows as few-shot learning would show them.

The card keeps how many there were and not what they say: they may be nobody else's business.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import zip_longest

from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.starts.values import check_count, embed, encode, tile

_BETWEEN = "\n"
_TOKENS = 16  # about as many for each example
_MOST_ROWS = 2000  # that are looked at
_CHOICE = 20  # rows of a label that are drawn from: the longest ones that fit, or where none does the shortest ones

NOT_REMADE = "a start by the method 'examples' cannot be repeated from its card"


def make(base: Base, num_virtual_tokens: int, examples: Sequence[str]) -> Tensor:
    """The embeddings of worked examples, `[P, H]`: of all of them, one after the other, the last P tokens.

    So the last example stands right before a row's text, as in few-shot learning. Where they have fewer than P tokens
    they are repeated towards the front. Examples beside trained virtual tokens: Sun et al. 2023, "How Does In-Context
    Learning Help Prompt Tuning?" (https://arxiv.org/abs/2302.11521).

    Raises:
        SoftPromptError: P out of bounds, or examples that are empty.
    """
    check_count(base, num_virtual_tokens)
    ids = encode(base.tokenizer, "".join(examples), "the examples to initialise from")
    return embed(base, tile(ids.flip(0), num_virtual_tokens).flip(0))


def choose(base: Base, rows: Sequence[tuple[str, Hashable]], num_virtual_tokens: int, seed: int = 0) -> list[str]:
    """Rows, each with its target, that together have P tokens or, where there are few rows, less.

    The labels take turns, and each example has a share of about 16 tokens.

    Args:
        base: the base.
        rows: the training rows as they are written, with their targets, and each one's label.
        num_virtual_tokens: P.
        seed: of what is drawn.

    Returns:
        The examples, the one to stand last at the end.

    Raises:
        SoftPromptError: there are no rows.
    """
    if not rows:
        raise SoftPromptError("prompt.init: examples needs training rows to take them from")
    generator = random.Random(seed)
    drawn = generator.sample(list(rows), min(len(rows), _MOST_ROWS))
    texts = [text + _BETWEEN for text, _ in drawn]
    lengths = [len(ids) for ids in base.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    of_label: dict[Hashable, list[tuple[int, str]]] = defaultdict(list)
    for (_, label), text, length in zip(drawn, texts, lengths, strict=True):
        of_label[label].append((length, text))
    share = num_virtual_tokens // max(1, round(num_virtual_tokens / _TOKENS))
    pools = []
    for label in generator.sample(sorted(of_label, key=str), len(of_label)):
        ordered = sorted(of_label[label])
        fitting = [one for one in ordered if one[0] <= share][-_CHOICE:] or ordered[:_CHOICE]
        pools.append(generator.sample(fitting, len(fitting)))
    found: list[str] = []
    tokens = 0
    for length, text in (one for turn in zip_longest(*pools) for one in turn if one is not None):
        found.append(text)
        tokens += length
        if tokens >= num_virtual_tokens:
            break
    return found[::-1]
