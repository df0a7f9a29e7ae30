from __future__ import annotations

import asyncio

import pytest

from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.prompts import SoftPrompt
from softprompt.serving.engine import Sampling
from tests.conftest import make_base
from tests.serving.plain import PlainEngine


@pytest.mark.parametrize("virtual", [0, 5])
def test_the_reference_generates_what_generate_does(virtual):
    base = make_base()
    prompts = [SoftPrompt.random(base, virtual)] if virtual else []
    texts = [[5, 6, 7], [8] * 20]
    expected = generate(PromptedModel(base, prompts), texts, max_new_tokens=9, ends=base.end_ids)

    async def answer(ids: list[int]) -> list[int]:
        engine = PlainEngine(base)
        await engine.start()
        tokens = [token async for token in engine.generate(prompts[0] if prompts else None, ids, Sampling(9))]
        return [token.id for token in tokens if token.finish != "stop"]

    assert [asyncio.run(answer(ids)) for ids in texts] == expected
