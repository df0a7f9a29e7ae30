"""No request ever gets another prompt's answer, whatever is loaded, replaced and unloaded meanwhile."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest

from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import score
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.local import LocalEngine
from softprompt.tasks import Encoder
from tests.serving.conftest import MOOD, living, make_prompt

PROMPTS, TEXTS = 200, ["so so", "never again, I say", "joy"]
LABELS = MOOD.labels


@pytest.mark.slow
def test_two_hundred_prompts_under_load(base, tmp_path):
    library = PromptLibrary(tmp_path / "library")
    expected = {}
    encoder = Encoder(base.tokenizer, MOOD)
    ids = [encoder.encode_text({"text": text}) for text in TEXTS]
    for number in range(PROMPTS):
        for version in (1, 2):
            prompt = make_prompt(base, 1 + (number * 7 + version) % 11, MOOD, seed=2 * number + version)
            entry = library.add(f"p{number}", prompt)
            likelihoods = score(PromptedModel(base, [prompt]), ids, encoder.label_ids).double().softmax(-1)
            expected[f"p{number}@{entry.version}"] = likelihoods.tolist()
    # Room for some states only, so that they come and go, too.
    engine = LocalEngine(base, state_bytes=200_000)
    with living(engine, library) as live:
        statuses = asyncio.run(storm(live.url, expected))
        page = live.get("/v1/prompts").json()
        assert live.engine.figures()["states_resident"] < PROMPTS
    assert statuses[200] > 400
    assert set(statuses) == {200, 404}  # a 404 names a version that is not loaded at this moment
    assert statuses[404] < statuses[200]
    assert page["refused"] == []


async def storm(url: str, expected: dict[str, list[list[float]]], requests: int = 800) -> dict[int, int]:
    """Requests and changes, all at random and at once; each answer is compared with that of the version it names."""
    dice, statuses = random.Random(0), {}
    limits = httpx.Limits(max_connections=24)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, verify=False) as http:

        async def ask() -> None:
            name, index = f"p{dice.randrange(PROMPTS)}", dice.randrange(len(TEXTS))
            name += dice.choice(["", "", "@1", "@2"])
            answer = await http.post("/v1/classify", json={"model": name, "input": TEXTS[index]})
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if answer.status_code == 200:
                (found,) = answer.json()["data"]
                assert found["model"].startswith(f"{name}@") or found["model"] == name
                rows = zip(LABELS, expected[found["model"]][index], strict=True)
                assert found["probabilities"] == pytest.approx(dict(rows), abs=1e-4)

        async def change() -> None:
            name = f"p{dice.randrange(PROMPTS)}"
            if dice.random() < 0.75:
                answer = await http.post("/v1/prompts/load", json={"name": f"{name}@{dice.choice([1, 2])}"})
                assert answer.status_code == 200
            else:
                answer = await http.post("/v1/prompts/unload", json={"name": name})
                assert answer.status_code in (200, 404)

        async def work(count: int) -> None:
            for _ in range(count):
                await (change() if dice.random() < 0.2 else ask())

        workers = 20
        await asyncio.gather(*(work(requests * 5 // 4 // workers) for _ in range(workers)))
    return statuses
