"""An ensemble over HTTP: its members are prompts of the library, and vote under the ensemble's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from softprompt import Ensemble, PromptLibrary, SoftPrompt, predict
from softprompt.bases.base import Base
from tests.serving.conftest import ENGINES, MOOD, Live, living, make_prompt

TEXTS = ["a joy", "too long by half", "so so", "never again"]


def members(base: Base) -> Ensemble:
    return Ensemble([make_prompt(base, 3 + k, MOOD, seed=20 + k) for k in range(3)])


@pytest.fixture(scope="module", params=ENGINES)
def live(base: Base, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    library = PromptLibrary(tmp_path_factory.mktemp("library"))
    for k, prompt in enumerate(members(base).marked()):
        library.add(f"mood.{k}", prompt)
    library.add("single", make_prompt(base, 4, MOOD, seed=1))
    with living(ENGINES[request.param](base), library) as live:
        yield live


def test_classify_and_predict_give_the_vote(live: Live, base: Base) -> None:
    expected = predict(base, members(base), MOOD, TEXTS)
    for path in ("/v1/classify", "/v1/predict"):
        answer = live.post(path, json={"model": "mood", "input": TEXTS}).json()
        assert [one["label"] for one in answer["data"]] == [one.label for one in expected]
        for given, one in zip(answer["data"], expected, strict=True):
            assert given["probabilities"] == pytest.approx(one.probabilities, rel=1e-4)
    both = live.post("/v1/classify", json={"model": ["mood", "mood.1", "single"], "input": TEXTS[0]}).json()["data"]
    assert [one["model"] for one in both] == ["mood", "mood.1@1", "single@1"]
    alone = live.post("/v1/predict", json={"model": "mood", "input": TEXTS, "without_prompt": True}).json()
    assert [one["label"] for one in alone["data"]] == [one.label for one in predict(base, None, MOOD, TEXTS)]


def test_it_is_listed_and_writes_no_text(live: Live) -> None:
    listed = {model["id"]: model for model in live.get("/v1/models").json()["data"]}
    assert {"mood", "mood.0", "mood.1", "mood.2", "single"} < set(listed)
    assert listed["mood"]["num_virtual_tokens"] == 5
    answer = live.post("/v1/completions", json={"model": "mood", "prompt": "a"})
    assert answer.status_code == 400
    assert "/v1/classify" in answer.json()["error"]["message"]
    assert live.post("/v1/prompts/unload", json={"name": "mood"}).status_code == 404


def test_without_one_of_its_members_there_is_no_ensemble(live: Live) -> None:
    asked = {"model": "mood", "input": "a"}
    live.post("/v1/prompts/unload", json={"name": "mood.2"})
    assert live.post("/v1/classify", json=asked).status_code == 404
    live.post("/v1/prompts/load", json={"name": "mood.2"})
    assert live.post("/v1/classify", json=asked).status_code == 200


def told(base: Base, folder: Path, prompts: dict[str, SoftPrompt]) -> list[str]:
    """The names that a server with these prompts answers to, beside the base's."""
    library = PromptLibrary(folder / "library")
    for name, prompt in prompts.items():
        library.add(name, prompt)
    with living(ENGINES["local"](base), library) as live:
        return [model["id"] for model in live.get("/v1/models").json()["data"]][1:]


def test_what_is_no_ensemble(base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = (Ensemble([make_prompt(base, 3, MOOD, seed=seed + k) for k in range(2)]).marked() for seed in (20, 30))
    mixed = {"mood.0": one[0], "mood.1": other[1]}
    assert told(base, tmp_path / "mixed", mixed) == ["mood.0", "mood.1"]
    assert "mood.0 and so on are not the members of one ensemble: none answers as mood" in caplog.messages
    named = {"mood.0": one[0], "mood.1": one[1], "mood": make_prompt(base, 4, MOOD)}
    assert told(base, tmp_path / "named", named) == ["mood", "mood.0", "mood.1"]
    assert "no ensemble answers as mood, which is another model's name" in caplog.messages
    for number, of in enumerate((10**12, "2", -1, 0, None)):
        mark = {"id": "x", "member": 0, "of": of}
        prompt = SoftPrompt(one[0].embeddings, one[0].card.replace(metrics={"ensemble": mark}))
        assert told(base, tmp_path / str(number), {"mood.0": prompt}) == ["mood.0"]
