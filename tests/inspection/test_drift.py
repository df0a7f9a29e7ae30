from __future__ import annotations

from typing import Any

import pytest
import torch

from softprompt import Base, Card, SoftPrompt, SoftPromptError
from softprompt.inspection.drift import rebuild_start


def starts(base: Base) -> list[SoftPrompt]:
    return [
        SoftPrompt.from_text(base, "which mood is it?", 5),
        SoftPrompt.from_text(base, "which mood is it?", 5, spread=True),
        SoftPrompt.from_labels(base, [" yes", " no"], 5, seed=3),
        SoftPrompt.from_labels(base, [" yes", " no"], 5, fill_text="mood"),
        SoftPrompt.from_vocabulary(base, 5, seed=2, most_common=90),
        SoftPrompt.random(base, 5, seed=4),
        SoftPrompt.random(base, 5, seed=4, distribution="normal"),
    ]


def with_start(prompt: SoftPrompt, **initialisation: Any) -> SoftPrompt:
    return SoftPrompt(prompt.embeddings, prompt.card.replace(initialisation=initialisation))


def test_a_start_is_rebuilt_to_the_bit(tiny_base: Base) -> None:
    for prompt in starts(tiny_base):
        moved = SoftPrompt(prompt.embeddings + 1, prompt.card)
        assert torch.equal(rebuild_start(tiny_base, moved), prompt.embeddings)
        kept = with_start(
            SoftPrompt(prompt.embeddings[[1, 4]] * 2, prompt.card),
            method="prune",
            num_virtual_tokens=5,
            kept=[1, 4],
            initialisation=prompt.card.initialisation,
        )
        assert torch.equal(rebuild_start(tiny_base, kept), prompt.embeddings[[1, 4]])


@pytest.mark.parametrize(
    ("initialisation", "reason"),
    [
        ({}, "does not say how it started"),
        ({"method": "prompt", "sha256": "0"}, "from another prompt"),
        ({"method": "<script>"}, "'<script>' cannot be repeated"),
        ({"method": "text"}, "cannot be followed .*KeyError"),
        ({"method": "text", "text": 3}, "cannot be followed .*not a text"),
        ({"method": "vocabulary", "most_common": "many"}, "cannot be followed"),
        ({"method": "random", "seed": -1}, "cannot be followed .*seed"),
        ({"method": "labels", "labels": "yes"}, "cannot be followed"),
        ({"method": "prune", "initialisation": "text", "num_virtual_tokens": 5, "kept": [0]}, "cannot be followed"),
        ({"method": "prune", "initialisation": {"method": "random"}, "num_virtual_tokens": 5, "kept": [9]}, "followed"),
        ({"method": "prune", "initialisation": {"method": "random"}, "num_virtual_tokens": 5, "kept": [0]}, "shape"),
    ],
)
def test_a_start_that_cannot_be_rebuilt_says_why(tiny_base: Base, initialisation: dict[str, Any], reason: str) -> None:
    prompt = with_start(SoftPrompt.from_vocabulary(tiny_base, 5), **initialisation)
    with pytest.raises(SoftPromptError, match=reason):
        rebuild_start(tiny_base, prompt)


def test_a_prompt_of_pefts_does_not_tell(tiny_base: Base) -> None:
    prompt = SoftPrompt(torch.ones(2, 32), Card(initialisation={"method": "peft", "prompt_tuning_init": "RANDOM"}))
    with pytest.raises(SoftPromptError, match="'peft' cannot be repeated"):
        rebuild_start(tiny_base, prompt)
