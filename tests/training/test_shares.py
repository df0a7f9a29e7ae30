"""Rows that several processes share, here threads: each asks some, all have what one process would have."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.training import shares

ROWS = [sp.Row({"text": "x" * (7 * i % 11 + 1)}, label=i % 2, target="y") for i in range(7)]


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("kind", ["words", "head", "text"])
def test_the_shares_make_the_whole(tiny_base: sp.Base, monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    prompt = sp.SoftPrompt.random(tiny_base, 3, seed=1)
    if kind == "head":
        prompt = sp.SoftPrompt(prompt.embeddings, prompt.card, torch.randn(2, 32))
    labels = {"labels": ["a", "bc"], "answer": kind} if kind != "text" else {"target": "{y}", "max_new_tokens": 3}
    task = sp.Task(template="{text}", **labels)
    model = PromptedModel(tiny_base, [prompt])
    wanted = Evaluator(model, task, ROWS).answers()

    this, met = threading.local(), threading.Barrier(count)
    parts: list[Any] = [None] * count

    def gather(own: Any) -> list[Any]:
        parts[this.rank] = own
        met.wait(60)
        return parts

    monkeypatch.setattr(shares, "rank", lambda: this.rank)
    monkeypatch.setattr(shares, "count", lambda: count)
    monkeypatch.setattr(shares, "gather", gather)

    def answers(rank: int) -> tuple[Any, int]:
        this.rank, told = rank, []
        return Evaluator(model, task, ROWS, ask=shares.ask).answers(told.append), sum(told)

    with ThreadPoolExecutor(count) as threads:
        every = list(threads.map(answers, range(count)))
    sizes = [len(part) for part in parts]
    assert sum(sizes) == len(ROWS)
    assert max(sizes) - min(sizes) <= 1
    for found, told in every:
        assert told == len(ROWS)
        if kind == "text":
            assert found == wanted
        else:
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
