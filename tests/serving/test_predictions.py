"""/v1/predict and /v1/library: a task's rows as `softprompt predict` answers them, and every version there is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
import torch

from softprompt import predict
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.local import LocalEngine
from tests.conftest import make_base
from tests.serving.conftest import COLOUR, MOOD, TOPIC, living, make_prompt
from tests.serving.plain import PlainEngine

TEXTS = ["a joy to watch", "never again", "x" * 600]


def data(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


class TestPredict:
    @pytest.mark.parametrize("name", ["mood", "mood@1", "mood@2", "colour"])
    @pytest.mark.parametrize("alone", [False, True])
    def test_it_answers_as_predict_does(self, live, base, library, name, alone):
        answer = live.post("/v1/predict", json={"model": name, "input": TEXTS, "without_prompt": alone})
        task = COLOUR if name == "colour" else MOOD
        expected = predict(base, None if alone else library.get(name), task, TEXTS)
        found = data(answer)
        assert [one["index"] for one in found] == [0, 1, 2]
        assert [one["truncated"] for one in found] == [False, False, True]
        assert [one.get("label") for one in found] == [one.label for one in expected]
        assert [one.get("output") for one in found] == [one.output for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.get("probabilities") == pytest.approx(other.probabilities, abs=1e-5)
        body = answer.json()
        version = {"mood": "mood@2", "colour": "colour@1"}.get(name, name)
        assert body["model"] == ("tiny-llama" if alone else version)
        assert body["usage"]["prompt_tokens"] > 0
        assert (body["usage"]["completion_tokens"] > 0) == (name == "colour")

    def test_a_version_that_is_not_loaded_stays_so(self, live):
        assert data(live.post("/v1/predict", json={"model": "mood@1", "input": "a"}))
        assert live.get("/v1/models/mood").json()["version"] == 2
        assert live.post("/v1/classify", json={"model": "mood@1", "input": "a"}).status_code == 404

    @pytest.mark.parametrize("model", ["bare", "tiny-llama"])
    def test_a_prompt_without_a_task_goes_on_with_the_text(self, live, model):
        (found,) = data(live.post("/v1/predict", json={"model": model, "input": "abc"}))
        body = {"model": model, "prompt": "abc", "temperature": 0, "max_tokens": 64}
        (choice,) = live.post("/v1/completions", json=body).json()["choices"]
        assert found["output"] == choice["text"].strip()

    def test_rows_of_several_columns(self, live, base, library):
        row = {"title": "news", "text": "abc"}
        (found,) = data(live.post("/v1/predict", json={"model": "topic", "input": [row]}))
        assert found["label"] == predict(base, library.get("topic"), TOPIC, [row])[0].label

    @pytest.mark.parametrize("name", ["mood", "bare"])
    def test_events_grow_into_the_whole_answer(self, live, name):
        body = {"model": name, "input": ["a joy", "abc"]}
        whole = data(live.post("/v1/predict", json=body))
        lines = live.post("/v1/predict", json={**body, "stream": True}).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert [[one for one in events if one["index"] == index][-1] for index in (0, 1)] == whole
        assert len(events) == 2 if name == "mood" else len(events) > 4

    @pytest.mark.parametrize(
        ("body", "status", "line"),
        [
            ({"model": "nonsense", "input": "a"}, 404, "there is no model 'nonsense'"),
            ({"model": "mood@9", "input": "a"}, 404, "the library has no prompt 'mood@9'"),
            ({"model": "../mood@1", "input": "a"}, 404, "name"),
            ({"model": "mood", "input": " "}, 400, "row 1: column 'text' is empty"),
            ({"model": "topic", "input": [{"text": "a"}]}, 400, "no column 'title'"),
            ({"model": "topic", "input": "a"}, 400, "the template needs the columns"),
            ({"model": "mood", "input": ["a"] * 2049}, 400, "2048"),
            ({"model": "mood"}, 400, "input: is missing"),
        ],
    )
    def test_what_cannot_be_asked(self, live, body, status, line):
        answer = live.post("/v1/predict", json=body)
        assert answer.status_code == status
        assert line in answer.json()["error"]["message"]
        assert live.post("/v1/predict", json={**body, "stream": True}).json() == answer.json()

    def test_a_damaged_version_is_named(self, base, own_library):
        with living(PlainEngine(base), own_library) as live:
            (own_library.entry("mood@1").path / "card.json").write_text("{}")
            answer = live.post("/v1/predict", json={"model": "mood@1", "input": "a"})
            assert answer.status_code == 409
            assert str(own_library.folder) not in answer.text

    def test_an_engine_that_fails_within_a_stream(self, base, library):
        class Broken(PlainEngine):
            asked = 0

            async def classify(self, prompt, ids, continuations):
                self.asked += 1
                if self.asked > 1:
                    await asyncio.sleep(0.5)
                    raise RuntimeError("secret")
                return await super().classify(prompt, ids, continuations)

        with living(Broken(base), library) as live:
            body = {"model": "mood", "input": ["a", "b"], "stream": True}
            *_, last, _ = live.post("/v1/predict", json=body).text.split("\n\n")
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"

    def test_its_answers_are_counted(self, base, library):
        with living(LocalEngine(base), library) as live:
            live.post("/v1/predict", json={"model": "mood", "input": "a", "without_prompt": True})
            live.post("/v1/predict", json={"model": "mood", "input": "a"})
            page = live.get("/metrics").text
        for name in ("mood", "tiny-llama"):
            assert f'softprompt_answer_seconds_count{{model="{name}",route="/v1/predict"}} 1.0' in page


class TestLibrary:
    def test_every_version(self, live):
        body = live.get("/v1/library").json()
        found = [(one["id"], one["current"], one["loaded"]) for one in body["data"]]
        assert found == [
            ("bare@1", True, True),
            ("colour@1", True, True),
            ("mood@1", False, False),
            ("mood@2", True, True),
            ("topic@1", True, True),
        ]
        assert body["refused"] == []
        (mood,) = (one for one in body["data"] if one["id"] == "mood@1")
        assert (mood["name"], mood["version"], mood["num_virtual_tokens"]) == ("mood", 1, 4)
        assert mood["card"]["task"]["template"] == MOOD.template
        assert mood["bytes"] > 500

    def test_what_is_damaged_or_refused(self, base, own_library):
        own_library.add("foreign", make_prompt(make_base(seed=9), 3, MOOD))
        with living(PlainEngine(base), own_library) as live:
            (own_library.entry("topic").path / "card.json").write_text("{}")
            live.post("/v1/prompts/load", json={"name": "mood@1"})
            answer = live.get("/v1/library")
            body = answer.json()
        assert {one["name"]: one["reason"][:40] for one in body["refused"]}.keys() == {"foreign", "topic"}
        assert str(own_library.folder) not in answer.text
        loaded = [one["id"] for one in body["data"] if one["loaded"]]
        assert loaded == ["bare@1", "colour@1", "mood@1"]
        assert "foreign@1" in [one["id"] for one in body["data"]]

    def test_a_folder_that_is_no_library(self, base, tmp_path, library):
        with living(PlainEngine(base), library) as live:
            (tmp_path / "file").write_text("")
            live.service.library = PromptLibrary(tmp_path / "file")
            answer = live.get("/v1/library")
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


class TestHeads:
    """A prompt that answers by a head, beside those that answer in words."""

    HEAD = TOPIC.answered_by("head")

    @pytest.fixture
    def with_head(self, base, library):
        start = make_prompt(base, 5, self.HEAD, seed=6)
        generator = torch.Generator().manual_seed(0)
        library.add("head", replace(start, head=torch.randn(3, base.hidden_size, generator=generator)))
        library.add("probe", replace(start, embeddings=start.embeddings[:0], head=torch.randn(3, base.hidden_size)))
        return library

    def test_they_are_classified_with_the_others(self, base, with_head):
        row = {"title": "news", "text": "abc"}
        with living(LocalEngine(base), with_head) as live:
            asked = {"model": ["head", "topic", "probe"], "input": [row]}
            answer = live.post("/v1/classify", json=asked)
            assert answer.status_code == 200, answer.text
            for one, (name, task) in zip(
                answer.json()["data"], [("head", self.HEAD), ("topic", TOPIC), ("probe", self.HEAD)], strict=True
            ):
                expected = predict(base, with_head.get(name), task, [row])[0]
                assert one["label"] == expected.label
                assert one["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
            (found,) = data(live.post("/v1/predict", json={"model": "head", "input": [row]}))
            assert found["label"] == predict(base, with_head.get("head"), self.HEAD, [row])[0].label
            (bare,) = data(live.post("/v1/predict", json={"model": "head", "input": [row], "without_prompt": True}))
            assert bare["label"] == predict(base, None, TOPIC, [row])[0].label

    @pytest.mark.parametrize("path", ["completions", "chat/completions"])
    def test_they_answer_no_text(self, base, with_head, path):
        asked = {"prompt": "abc"} if path == "completions" else {"messages": [{"role": "user", "content": "abc"}]}
        with living(LocalEngine(base), with_head) as live:
            answer = live.post(f"/v1/{path}", json={"model": "head", **asked})
        assert answer.status_code == 400
        assert "use /v1/classify" in answer.json()["error"]["message"]
