"""Tags, spans and embeddings over HTTP are those of `predict`, on a base whose states are kept and on encoders."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import softprompt as sp
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.local import LocalEngine
from softprompt.serving.playground.files import Answered
from softprompt.serving.playground.looks import said
from tests.conftest import make_base
from tests.models.encoders import base_of, whole
from tests.serving.conftest import Live, living
from tests.serving.test_local import running

TASKS = {
    "tags": sp.Task(template="{words}", labels=["O", "B-PER", "I-PER"], answer="tags"),
    "span": sp.Task(template="{question} {context}", target="{answer}", answer="span"),
    "search": sp.Task(template="{question}", target="{context}", answer="embedding"),
}
INPUTS: dict[str, list[Any]] = {
    "tags": ["ann is here", "so", "b " * 80],
    "span": [
        {"question": "who?", "context": "it was ann b"},
        {"question": "when?", "context": "it was in May " * 14},  # read in windows
    ],
    "search": ["who?", "when was that?"],
}
HEADS = {"tags": ("TOKEN_CLS", 3), "span": ("QUESTION_ANS", 2)}


def fill(folder: Path, base: sp.Base) -> PromptLibrary:
    library = PromptLibrary(folder)
    for seed, (name, task) in enumerate(TASKS.items(), 1):
        prompt = sp.SoftPrompt.random(base, 3 + seed, seed=seed)
        if name in HEADS:
            prompt = prompt.with_head(base, HEADS[name][1], HEADS[name][0])
            assert prompt.head is not None
            prompt = replace(prompt, head=torch.randn(prompt.head.shape, generator=torch.Generator().manual_seed(seed)))
        more = {} if name in HEADS else {"task_type": "FEATURE_EXTRACTION"}
        library.add(name, replace(prompt, card=prompt.card.replace(task=task.model_dump(), **more)))
    return library


@pytest.fixture(scope="module", params=["llama", "bert", "modernbert"])
def base(request: pytest.FixtureRequest) -> sp.Base:
    if request.param == "llama":
        return make_base()
    return base_of(whole(request.param, AutoModelForSequenceClassification), request.param)


@pytest.fixture(scope="module")
def live(base: sp.Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    # Steps of few tokens, so that where states are kept a text takes several.
    with living(LocalEngine(base, max_batch_tokens=16), fill(tmp_path_factory.mktemp("read") / "library", base)) as one:
        yield one


def expected(live: Live, name: str) -> list[Any]:
    return list(sp.predict(live.engine.base, live.service.library.load(name)[1], TASKS[name], INPUTS[name]))


def asked(live: Live, name: str, **more: Any) -> list[dict[str, Any]]:
    found = live.post("/v1/predict", json={"model": name, "input": INPUTS[name], **more})
    assert found.status_code == 200, found.text
    return found.json()["data"]


@pytest.mark.parametrize("name", ["tags", "span"])
def test_what_a_head_reads(live: Live, name: str) -> None:
    for row, right in zip(asked(live, name), expected(live, name), strict=True):
        assert (row["output"], row["truncated"]) == (right.output, right.truncated)
    alone = live.post("/v1/predict", json={"model": name, "input": INPUTS[name], "without_prompt": True})
    assert (alone.status_code, "the base alone has no answer" in alone.text) == (400, True)


def test_embeddings_of_rows(live: Live) -> None:
    for row, right in zip(asked(live, "search"), expected(live, "search"), strict=True):
        assert row["embedding"] == pytest.approx(right.embedding, abs=1e-5)
    bare = sp.predict(live.engine.base, None, TASKS["search"], INPUTS["search"])
    for row, right in zip(asked(live, "search", without_prompt=True), bare, strict=True):
        assert row["embedding"] == pytest.approx(right.embedding, abs=1e-5)


def test_openai_s_embeddings(live: Live) -> None:
    """Its client asks in base64, and makes numbers of that."""
    with live.client() as client:
        found = client.embeddings.create(model="search", input=INPUTS["search"])
        ids = live.engine.base.tokenizer(INPUTS["search"][0])["input_ids"]
        by_ids = client.embeddings.create(model="search", input=ids, encoding_format="float")
        bare = client.embeddings.create(model=live.service.catalogue.base_name, input="who?")
    for row, right in zip(found.data, expected(live, "search"), strict=True):
        assert row.embedding == pytest.approx(right.embedding, abs=1e-5)
    assert by_ids.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-5)
    assert (found.model, found.usage.prompt_tokens) == ("search@1", found.usage.total_tokens)
    assert bare.data[0].embedding != pytest.approx(found.data[0].embedding, abs=1e-2)
    raw = live.post("/v1/embeddings", json={"model": "search", "input": "who?", "encoding_format": "base64"}).json()
    numbers = torch.frombuffer(bytearray(base64.b64decode(raw["data"][0]["embedding"])), dtype=torch.float32)
    assert numbers.tolist() == pytest.approx(found.data[0].embedding, abs=1e-5)
    assert live.get("/metrics").text.count('route="/v1/embeddings"')


def test_what_is_refused(live: Live) -> None:
    def refused(path: str, **body: Any) -> str:
        found = live.post(path, json=body)
        assert found.status_code == 400, found.text
        message: str = found.json()["error"]["message"]
        return message

    for name in TASKS:
        assert f"{name}@1 writes no text: use /v1/predict" in refused("/v1/completions", model=name, prompt="a")
        assert "does not choose a label for a text: use /v1/predict" in refused("/v1/classify", model=name, input="a")
    assert "trained for other answers than embeddings" in refused("/v1/embeddings", model="tags", input="a")
    width = live.engine.base.hidden_size
    assert f"embeddings here have {width}" in refused("/v1/embeddings", model="search", input="a", dimensions=3)
    assert "context" in refused("/v1/embeddings", model="search", input="a" * 500)
    assert "input" in refused("/v1/embeddings", model="search", input=[])
    if live.engine.base.family.words:  # an encoder's tokenizer puts special tokens around it
        assert "the text is empty: it has no states" in refused("/v1/embeddings", model="search", input="")
    assert "999999" in refused("/v1/embeddings", model="search", input=[999999])
    assert "context" in refused("/v1/predict", model="span", input=["a"])


def test_the_playground_shows_them() -> None:
    """Without figures, which are those of labels and free text."""
    for name, task in TASKS.items():
        answer = sp.Prediction(embedding=[0.5] * 12) if name == "search" else sp.Prediction(output="O O")
        row = sp.Row(dict.fromkeys(task.columns, "a"), target="O O")
        assert Answered(name, name, False, task, [row], [answer]).figures == {}
        assert said(answer) == ("0.500, " * 7 + "0.500 … (12)" if name == "search" else "O O")


def test_states_beside_other_answers() -> None:
    """One step computes texts to be read, texts to go on with and labels alike."""
    base = make_base()
    prompt = sp.SoftPrompt.random(base, 5)

    async def ask() -> list[Any]:
        async with running(base) as engine:
            texts = [[5, 6, 7], [8], [9, 10, 11, 12]]
            return await asyncio.gather(
                *(engine.states(prompt, ids) for ids in texts), engine.classify(prompt, texts[0], [[5], [6, 7]])
            )

    *states, likelihoods = asyncio.run(ask())
    assert [len(one) for one in states] == [3, 1, 4]
    assert len(likelihoods) == 2
