"""Bases of which no states are kept are served with the very answers that `predict` gives, prompts mixed in a batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import softprompt as sp
from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import score
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.local import LocalEngine
from tests.conftest import make_base
from tests.models.encoders import ENCODERS, base_of, whole
from tests.models.families import make_model
from tests.models.test_seq2seq import make as make_seq2seq
from tests.serving.conftest import living
from tests.serving.test_local import LABELS, answer, ids_of, make_prompt, running

MOOD = sp.Task(template="{text}:", labels=["no", "yes", "maybe"])
COLOUR = sp.Task(template="{text} is", target=" {colour}", max_new_tokens=4)


def causal(family: str) -> sp.Base:
    return sp.Base(make_model(family, vocab_size=258), make_base().tokenizer, family)


BASES: dict[str, Callable[[], sp.Base]] = {
    "t5": lambda: make_seq2seq("t5"),
    "bart": lambda: make_seq2seq("bart"),
    "rwkv": lambda: causal("rwkv"),
    "mamba": lambda: causal("mamba"),
}


def encoder(family: str) -> sp.Base:
    return base_of(whole(family, AutoModelForSequenceClassification), family)


def with_head(base: sp.Base, length: int, seed: int) -> sp.SoftPrompt:
    prompt = make_prompt(base, length, seed).with_head(base, 3, "SEQ_CLS") if length else sp.SoftPrompt.none(base, 3)
    random = torch.Generator().manual_seed(seed)
    assert prompt.head is not None
    prompt = replace(prompt, head=torch.randn(prompt.head.shape, generator=random))
    if prompt.pooling is not None:
        prompt = replace(prompt, pooling=torch.randn(prompt.pooling.shape, generator=random))
    return prompt


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("step", [8, 512])
def test_a_mixed_batch_equals_one_by_one(name: str, step: int) -> None:
    """Texts and labels behind prompts of several lengths and none; in steps that hold one text, or all."""
    base = BASES[name]()
    prompts = [None, make_prompt(base, 5, 1), make_prompt(base, 9, 2)]
    requests = [(prompts[i % 3], ids_of(1 + i % 4 * 2, i)) for i in range(7)]

    async def ask() -> list[list[int] | list[float]]:
        async with running(base, max_batch_tokens=step) as engine:
            texts = [answer(engine, prompt, ids, max_tokens=3 + i % 3) for i, (prompt, ids) in enumerate(requests)]
            return await asyncio.gather(*texts, *(engine.classify(prompt, ids, LABELS) for prompt, ids in requests))

    found = asyncio.run(ask())
    for i, (prompt, ids) in enumerate(requests):
        model = PromptedModel(base, [] if prompt is None else [prompt])
        (expected,) = generate(model, [ids], max_new_tokens=3 + i % 3, ends=base.end_ids)
        assert [token for token in found[i] if token not in base.end_ids] == expected
        likely = score(model, [ids], LABELS)[0]
        torch.testing.assert_close(torch.tensor(found[len(requests) + i]), likely, rtol=1e-4, atol=1e-4)


def test_a_text_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its answer; and nothing of it stays."""
    base = make_seq2seq("t5")
    encoder = base.model.get_encoder()
    texts, forward = [], encoder.forward
    prompts = [make_prompt(base, 5, 1), make_prompt(base, 9, 2)]

    async def ask() -> LocalEngine:
        async with running(base) as engine:
            counted = lambda **given: texts.append(len(given["inputs_embeds"])) or forward(**given)  # noqa: E731
            monkeypatch.setattr(encoder, "forward", counted)
            ids = [ids_of(4, i) for i in range(4)]
            await asyncio.gather(
                *(answer(engine, prompts[i % 2], ids[i], max_tokens=6, ignore_eos=True) for i in range(4))
            )
            return engine

    engine = asyncio.run(ask())
    assert sum(texts) == 4
    assert not any(engine._scheduler._encoded.values())


@pytest.mark.parametrize("family", ENCODERS)
def test_heads_on_an_encoder(family: str) -> None:
    base = encoder(family)
    prompts = [with_head(base, 0, 1), with_head(base, 4, 2), with_head(base, 7, 3)]
    prompts.append(replace(prompts[2], pooling=None))
    texts = ["good", "a longer text", "b"]

    async def ask() -> list[list[float]]:
        async with running(base) as engine:
            ids = [base.tokenizer(text)["input_ids"] for text in texts]
            return await asyncio.gather(*(engine.classify(one, row, None) for one in prompts for row in ids))

    found = iter(asyncio.run(ask()))
    task = MOOD.model_copy(update={"template": "{text}", "answer": "head"})
    for prompt in prompts:
        for expected in sp.predict(base, prompt, task, texts):
            assert expected.probabilities is not None
            likely = torch.tensor([*expected.probabilities.values()])
            torch.testing.assert_close(torch.tensor(next(found)).exp(), likely, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_asked(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(base: sp.Base) -> None:
        prompt = make_prompt(base, 3)
        async with running(base) as engine:
            await engine.warm(prompt)  # there is nothing to warm
            with pytest.raises(sp.SoftPromptError, match="echo with logprobs is not supported on"):
                await engine.weigh(prompt, [5, 6], 0)
            if not base.family.words:
                with pytest.raises(sp.SoftPromptError, match="is an encoder: it neither scores words nor generates"):
                    await answer(engine, prompt, [5, 6])
                with pytest.raises(sp.SoftPromptError, match="is an encoder: it neither scores words nor generates"):
                    await engine.classify(prompt, [5, 6], LABELS)
            assert engine.figures()["states_resident"] == 0

    with caplog.at_level(logging.WARNING):
        asyncio.run(ask(make_seq2seq("t5")))
        asyncio.run(ask(encoder("bert")))
    assert caplog.text.count("keeps no states, so every step computes its texts whole") == 2


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_library_is_served(kind: str, tmp_path: Path) -> None:
    """OpenAI's completions and the classification, beside a prompt that no engine serves."""
    base = make_seq2seq("t5") if kind == "t5" else encoder("bert")
    library = PromptLibrary(tmp_path / "library")
    start = make_prompt(base, 4, 1) if kind == "t5" else with_head(base, 4, 1)
    library.add("mood", replace(start, card=start.card.replace(task=MOOD.model_dump())))
    if kind == "t5":
        colour = make_prompt(base, 6, 2)
        library.add("colour", replace(colour, card=colour.card.replace(task=COLOUR.model_dump())))
    else:
        library.add("tags", start.with_head(base, 3, "TOKEN_CLS"))
    texts = ["good", "a longer text"]
    with living(LocalEngine(base), library) as live:
        found = live.post("/v1/classify", json={"model": "mood", "input": texts}).json()
        for one, expected in zip(found["data"], sp.predict(base, library.load("mood")[1], MOOD, texts), strict=True):
            assert one["label"] == expected.label
            assert one["probabilities"] == pytest.approx(expected.probabilities, rel=1e-4)
        asked = live.post("/v1/completions", json={"model": "mood", "prompt": "so", "max_tokens": 3})
        if kind == "t5":
            assert asked.json()["usage"]["completion_tokens"] <= 3
            rows = live.post("/v1/predict", json={"model": "colour", "input": texts}).json()
            expected = sp.predict(base, library.load("colour")[1], COLOUR, texts)
            assert [row["output"] for row in rows["data"]] == [one.output for one in expected]
        else:
            assert (asked.status_code, asked.json()["error"]["code"]) == (400, "head")
            asked = live.post("/v1/completions", json={"model": base.name, "prompt": "so", "max_tokens": 3})
            assert "is an encoder: it neither scores words nor generates" in asked.json()["error"]["message"]
            assert "TOKEN_CLS, and no task says how: add it again" in live.service.catalogue.refused["tags"]
