"""No request ever gets another prompt's answer, whatever is loaded, replaced and unloaded meanwhile."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest

from softprompt.bases.base import Base
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import score
from softprompt.prompts import SoftPrompt
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.local import LocalEngine
from softprompt.tasks import Encoder
from tests.conftest import make_base
from tests.models.families import make_model
from tests.serving.conftest import MOOD, living, make_prompt

PROMPTS, TEXTS = 200, ["so so", "never again, I say", "joy"]
LABELS = MOOD.labels


@pytest.mark.long
def test_two_hundred_prompts_under_load(base, tmp_path):
    library = PromptLibrary(tmp_path / "library")
    expected = {}
    encoder = Encoder(base, MOOD)
    ids = [encoder.encode_text({"text": text}) for text in TEXTS]
    for number in range(PROMPTS):
        for version in (1, 2):
            prompt = make_prompt(base, 1 + (number * 7 + version) % 11, MOOD, seed=2 * number + version)
            entry = library.add(f"p{number}", prompt)
            likelihoods = score(PromptedModel(base, [prompt]), ids, encoder.answer.label_ids).double().softmax(-1)
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


def test_a_prompt_without_finite_numbers_is_an_error_of_its_own(tmp_path):
    """500 that names it, 409 where it is loaded; the others are answered as before."""
    model = make_model("gpt2", vocab_size=258, n_positions=200)
    base = Base(model, make_base().tokenizer, "tiny-gpt2")
    library = PromptLibrary(tmp_path / "library")
    library.add("good", make_prompt(base, 5, MOOD))
    bad = make_prompt(base, 7, MOOD)
    library.add("bad", SoftPrompt(bad.embeddings.sign() * 3.3e38, bad.card.replace(sha256="")))
    with living(LocalEngine(base, state_bytes=200_000, max_waiting=4), library) as live:
        before = live.post("/v1/classify", json={"model": "good", "input": TEXTS}).json()["data"]
        for path, body in (("completions", {"prompt": "a"}), ("classify", {"input": "a"})):
            answer = live.post(f"/v1/{path}", json={"model": "bad", **body})
            assert answer.status_code == 500
            assert answer.json()["error"]["message"].startswith("bad@1: the prompt gives numbers that are not finite")
        assert live.post("/v1/prompts/load", json={"name": "bad"}).status_code == 409
        assert live.engine.figures()["states_resident"] == 1
        assert live.post("/v1/classify", json={"model": "good", "input": TEXTS}).json()["data"] == before
        # More at once than ever may wait is no matter of trying again.
        for path, body in (("completions", {"prompt": ["a"] * 5}), ("classify", {"input": ["a"] * 5})):
            answer = live.post(f"/v1/{path}", json={"model": "good", **body})
            assert answer.status_code == 400
            assert "at most 4 wait on this server (--max-waiting)" in answer.json()["error"]["message"]


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
