"""Models, classification, prompts, errors: the endpoints beside those that generate text."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from softprompt.evaluation import predict
from softprompt.prompts import Card, SoftPrompt
from softprompt.prompts.library import PromptLibrary
from tests.conftest import make_base
from tests.serving.conftest import MOOD, TOPIC, living, make_prompt
from tests.serving.plain import PlainEngine

TEXTS = ["so so", "never again", "what a joy"]


def classify(live, model, given, **more):
    return live.post("/v1/classify", json={"model": model, "input": given, **more})


def problem(answer, status):
    """The error of an answer that must be one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error


class TestModels:
    def test_the_base_and_every_prompt_with_its_card(self, client, library):
        models = {model.id: model for model in client.models.list()}
        assert list(models) == ["tiny-llama", "bare", "colour", "mood", "topic"]
        for name in ("bare", "mood"):
            assert models[name].card == json.loads(library.entry(name).card.model_dump_json())
            assert models[name].parent == "tiny-llama"
        assert (models["mood"].version, models["mood"].num_virtual_tokens) == (2, 6)
        assert models["mood"].max_model_len == 250
        assert models["tiny-llama"].card is None
        assert models["tiny-llama"].max_model_len == 256

    @pytest.mark.parametrize(("name", "found"), [("mood", "mood"), ("mood@2", "mood"), ("tiny-llama", "tiny-llama")])
    def test_one(self, client, name, found):
        assert client.models.retrieve(name).id == found

    def test_a_base_with_a_slash_in_its_name(self, library):
        base = make_base()
        object.__setattr__(base, "name", "/models/tiny llama")
        with living(PlainEngine(base), library) as live, live.client() as client:
            assert client.models.retrieve(base.name).id == base.name
            assert client.completions.create(model=base.name, prompt="a", max_tokens=1).model == base.name

    @pytest.mark.parametrize("name", ["nobody", "mood@1", "..%2F..%2Fetc%2Fpasswd", "a/b", "%ed%a0%80", ""])
    def test_an_unknown_one(self, server, name):
        assert problem(server.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"


class TestClassify:
    def test_probabilities_are_those_of_predict(self, live, base, library):
        answer = classify(live, "mood", TEXTS).json()
        assert [one["index"] for one in answer["data"]] == [0, 1, 2]
        for found, expected in zip(answer["data"], predict(base, library.get("mood"), MOOD, TEXTS), strict=True):
            assert found["model"] == "mood@2"
            assert found["label"] == expected.label
            assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
            assert list(found["probabilities"]) == MOOD.labels
            assert found["truncated"] is False

    def test_the_reference_gives_them_to_the_last_bit(self, base, library):
        with living(PlainEngine(base), library) as live:
            found = classify(live, "mood", TEXTS[:1]).json()["data"][0]["probabilities"]
        assert found == predict(base, library.get("mood"), MOOD, TEXTS[:1])[0].probabilities

    def test_one_text(self, live):
        assert classify(live, "mood", TEXTS[0]).json()["data"] == classify(live, "mood", TEXTS).json()["data"][:1]

    def test_many_tasks_for_the_same_rows(self, live, base, library):
        rows = [{"title": "News", "text": text} for text in TEXTS]
        answers = classify(live, ["mood", "topic@1"], rows).json()
        assert [(one["index"], one["model"]) for one in answers["data"]] == [
            (index, model) for index in range(3) for model in ("mood@2", "topic@1")
        ]
        for name, task, some in (("mood", MOOD, answers["data"][::2]), ("topic", TOPIC, answers["data"][1::2])):
            for found, expected in zip(some, predict(base, library.get(name), task, rows), strict=True):
                assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        tokens = [len(base.tokenizer(task.render(row))["input_ids"]) for task in (MOOD, TOPIC) for row in rows]
        assert answers["usage"]["prompt_tokens"] == sum(tokens)

    def test_a_text_that_is_too_long(self, live, base, library):
        error = problem(classify(live, "mood", [TEXTS[0], "x" * 300]), 400)
        assert "input: row 2" in error["message"]
        assert "312 tokens" in error["message"]
        assert "256 fit" in error["message"]
        found = classify(live, "mood", ["x" * 300], truncate=True).json()["data"][0]
        expected = predict(base, library.get("mood"), MOOD, ["x" * 300])[0]
        assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert found["truncated"] is True

    @pytest.mark.parametrize("model", ["colour", "bare", "tiny-llama", ["mood", "bare"]])
    def test_a_prompt_without_a_classification_task(self, server, model):
        assert "no classification task" in problem(classify(server, model, "a"), 400)["message"]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ("", "is empty"),
            (["a", " \n"], "row 2"),
            ([{"title": "a"}], "no column 'text'"),
            ([], "at least 1"),
            ([5], "input"),
            ([{"text": 5}], "input.0.text"),
            (None, "input"),
            ({"text": "a"}, "input"),
            ("a\ud800", "surrogate"),
        ],
    )
    def test_input_that_is_none(self, server, given, words):
        body = json.dumps({"model": "mood", "input": given})
        answer = server.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
        assert words in problem(answer, 400)["message"]

    def test_too_many(self, server):
        assert "2048" in problem(classify(server, "mood", ["a"] * 10_000), 400)["message"]
        assert "2048" in problem(classify(server, ["mood"] * 2049, "a"), 400)["message"]

    def test_an_unknown_task_among_others(self, server):
        assert "'spam@2'" in problem(classify(server, ["mood", "spam@2"], "a"), 404)["message"]

    def test_a_bad_request_harms_no_other(self, live):
        expected = classify(live, "mood", TEXTS).json()["data"]
        jobs = [TEXTS, ["x" * 300], TEXTS, "", TEXTS, [5], TEXTS] * 3
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda given: classify(live, "mood", given), jobs))
        for given, answer in zip(jobs, answers, strict=True):
            if given is not TEXTS:
                problem(answer, 400)
                continue
            for one, other in zip(answer.json()["data"], expected, strict=True):
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


class TestPrompts:
    def load(self, live, name):
        return live.post("/v1/prompts/load", json={"name": name})

    def unload(self, live, name):
        return live.post("/v1/prompts/unload", json={"name": name})

    def loaded(self, live):
        return [prompt["id"] for prompt in live.get("/v1/prompts").json()["data"]]

    def test_load_replace_unload(self, base, own_library):
        with living(PlainEngine(base), own_library) as live:
            assert self.loaded(live) == ["bare@1", "colour@1", "mood@2", "topic@1"]
            first = self.load(live, "mood@1").json()
            assert (first["id"], first["labels"], first["num_virtual_tokens"]) == ("mood@1", MOOD.labels, 4)
            assert self.loaded(live) == ["bare@1", "colour@1", "mood@1", "topic@1"]
            assert classify(live, "mood", "a").json()["data"][0]["model"] == "mood@1"
            assert "mood@1 is" in problem(classify(live, "mood@2", "a"), 404)["message"]
            assert self.load(live, "mood").json()["id"] == "mood@2"  # the library's current one
            assert live.engine.warmed == [own_library.get(name).sha256 for name in ("mood@1", "mood@2")]
            problem(self.unload(live, "mood@1"), 404)
            assert self.unload(live, "mood").json()["id"] == "mood@2"
            problem(self.unload(live, "mood"), 404)
            problem(classify(live, "mood", "a"), 404)
            assert classify(live, "topic", [{"title": "a", "text": "b"}]).status_code == 200

    def test_a_new_prompt_is_served_without_a_restart(self, base, own_library):
        with living(PlainEngine(base), own_library) as live:
            problem(self.load(live, "late"), 404)
            own_library.add("late", make_prompt(base, 7, MOOD, seed=9))
            assert self.load(live, "late").json()["id"] == "late@1"
            found = classify(live, "late", "a").json()["data"][0]["probabilities"]
            assert found == predict(base, own_library.get("late"), MOOD, ["a"])[0].probabilities

    @pytest.mark.parametrize(
        "name",
        [
            *("nobody", "mood@9", "tiny-llama", "../../etc/passwd", "/etc/passwd", "mood/1", "mood@0", "mood@x", ".."),
            *("", "a" * 100_000, "mo\x00od", "mood@1@1", "MOOD"),
        ],
    )
    def test_names_that_are_none(self, server, name):
        error = problem(self.load(server, name), 404)
        assert len(error["message"]) < 300
        assert str(server.service.catalogue._library.folder) not in error["message"]
        problem(self.unload(server, name), 404)

    def test_damaged_ones_are_refused_and_the_others_go_on(self, base, own_library):
        weights = own_library.entry("mood@2").path / "adapter_model.safetensors"
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
        (own_library.folder / "topic" / "versions.json").write_text("{}")
        other = make_base(seed=5)
        own_library.add("foreign", make_prompt(other, 3, MOOD))
        own_library.add("tiny-llama", make_prompt(base, 3, MOOD))
        rows = make_prompt(base, 100).embeddings
        own_library.add("long", SoftPrompt(rows.repeat(3, 1), Card(base=base.identity)))
        bad_task = make_prompt(base, 3)
        bad_task.card.__dict__["task"] = {"template": "no column"}
        own_library.add("bad-task", bad_task)
        with living(PlainEngine(base), own_library) as live:
            page = live.get("/v1/prompts").json()
            assert [prompt["id"] for prompt in page["data"]] == ["bare@1", "colour@1"]
            reasons = {prompt["name"]: prompt["reason"] for prompt in page["refused"]}
            assert list(reasons) == ["bad-task", "foreign", "long", "mood", "tiny-llama", "topic"]
            assert "adapter_model.safetensors" in reasons["mood"]
            assert "was made for base" in reasons["foreign"]
            assert "no room" in reasons["long"]
            assert "template" in reasons["bad-task"]
            assert not [reason for reason in reasons.values() if str(own_library.folder) in reason]
            assert problem(self.load(live, "mood@2"), 409)["code"] == "prompt_refused"
            assert problem(self.load(live, "foreign"), 409)["param"] == "name"
            assert self.load(live, "mood@1").json()["id"] == "mood@1"
            assert classify(live, "mood", "a").status_code == 200
            # The version that is loaded stays where another one is damaged.
            problem(self.load(live, "mood@2"), 409)
            assert classify(live, "mood@1", "a").status_code == 200
            refused = live.get("/v1/prompts").json()["refused"]
            assert "mood" not in [prompt["name"] for prompt in refused]

    def test_two_loads_of_one_name_at_once(self, base, own_library):
        with living(PlainEngine(base), own_library) as live, ThreadPoolExecutor(8) as pool:
            names = ["mood@1", "mood@2"] * 8
            answers = list(pool.map(lambda name: self.load(live, name), names))
            assert [answer.json()["id"] for answer in answers] == names
            assert self.loaded(live)[2] in ("mood@1", "mood@2")
            assert classify(live, "mood", "a").status_code == 200

    def test_a_prompt_that_is_unloaded_while_a_request_uses_it(self, base, own_library):
        asked = {
            "model": "colour",
            "prompt": "a",
            "max_tokens": 20,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        with living(PlainEngine(base, pause=0.02), own_library) as live, live.client() as client:
            expected = client.completions.create(**asked).choices[0].text
            events = client.completions.create(**asked, stream=True)
            first = next(events)
            assert self.unload(live, "colour").status_code == 200
            shutil.rmtree(own_library.folder / "colour")
            rest = [event.choices[0].text for event in events]
            assert first.choices[0].text + "".join(rest) == expected
            with pytest.raises(openai.NotFoundError):
                client.completions.create(**asked)

    def test_an_empty_library_serves_the_base(self, base, tmp_path):
        (tmp_path / "library").mkdir()
        with living(PlainEngine(base), PromptLibrary(tmp_path / "library")) as live:
            assert [model["id"] for model in live.get("/v1/models").json()["data"]] == ["tiny-llama"]


class TestErrors:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"5",
            b'"mood"',
            b"null",
            b'{"model": "mood", "input": "\xff"}',
            b'{"model": "mood", "input": "a"',
            b"[" * 100_000,
            b'{"model": "mood", "input": ' + b"9" * 5000 + b"}",
            b'{"model": "mood", "input": "a", "\\ud800": 1}',
            b"\xff\xfe\x00",
        ],
    )
    def test_a_body_that_is_none(self, server, body):
        headers = {"Content-Type": "application/json"}
        problem(server.post("/v1/classify", content=body, headers=headers), 400)

    def test_a_body_that_is_not_marked_as_json(self, server):
        for headers in ({}, {"Content-Type": "text/plain"}):
            answer = server.post("/v1/classify", content=b'{"model": "mood", "input": "a"}', headers=headers)
            assert "Content-Type: application/json" in problem(answer, 400)["message"]

    def test_numbers_that_are_none(self, server):
        for number in ("NaN", "Infinity", "1e999"):
            body = f'{{"model": "mood", "prompt": "a", "temperature": {number}}}'
            answer = server.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
            assert problem(answer, 400)["param"] == "temperature"

    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/completion", "/v1/classify/", "/../etc/passwd", "/%00"])
    def test_no_such_endpoint(self, server, path):
        problem(server.get(path), 404)

    def test_no_such_method(self, server):
        answer = server.get("/v1/classify")
        problem(answer, 405)
        assert answer.headers["allow"] == "POST"

    def test_what_nobody_expected_tells_nothing(self, base, library, caplog):
        class Broken(PlainEngine):
            async def classify(self, *_):
                raise RuntimeError("secret text")

            async def generate(self, *_):
                async for token in super().generate(*_):
                    yield token
                    raise RuntimeError("secret text")

        with living(Broken(base), library) as live:
            error = problem(classify(live, "mood", "a"), 500)
            assert error["type"] == "server_error"
            assert "secret" not in error["message"]
            asked = {"model": "mood", "prompt": "a", "max_tokens": 3, "extra_body": {"ignore_eos": True}}
            with live.client() as client:
                with pytest.raises(openai.InternalServerError):
                    client.completions.create(**asked)
                with pytest.raises(openai.APIError, match="failed at this request"):
                    list(client.completions.create(**asked, stream=True))
            assert live.get("/health").status_code == 200
        assert "secret" not in " ".join(record.getMessage() for record in caplog.records)


class TestServer:
    def test_health_and_ready(self, server):
        assert server.get("/health").json() == {"status": "ok"}
        assert server.get("/ready").json() == {"status": "ready"}

    def test_metrics(self, base, own_library):
        with living(PlainEngine(base), own_library) as live, live.client() as client:
            classify(live, ["mood", "mood@2"], TEXTS)
            client.completions.create(model="colour", prompt="abc", max_tokens=2, extra_body={"ignore_eos": True})
            for name in ("nobody", "mood@1", "x" * 50):
                classify(live, name, "a")
            live.get("/secret/path")
            page = live.get("/metrics")
            assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert set(re.findall(r'model="([^"]*)"', page.text)) == {"mood", "colour"}
            assert "secret" not in page.text
            figures = dict(re.findall(r"^(\w[^ ]*) ([0-9.e+-]+)$", page.text, re.MULTILINE))
            assert figures["softprompt_prompts_loaded"] == "4.0"
            assert figures["softprompt_http_requests_running"] == "1.0"
            assert figures['softprompt_http_requests_total{route="/v1/classify",status="200"}'] == "1.0"
            assert figures['softprompt_http_requests_total{route="/v1/classify",status="404"}'] == "3.0"
            assert figures['softprompt_http_requests_total{route="unknown",status="404"}'] == "1.0"
            assert figures['softprompt_answer_seconds_count{model="mood",route="/v1/classify"}'] == "2.0"
            assert figures['softprompt_text_tokens_total{model="colour"}'] == "3.0"
            assert figures['softprompt_new_tokens_total{model="colour"}'] == "2.0"
            assert figures['softprompt_first_token_seconds_count{model="colour"}'] == "1.0"
            for name, value in live.engine.figures().items():
                assert float(figures[f"softprompt_engine_{name}"]) == value
            live.post("/v1/prompts/unload", json={"name": "mood"})
            assert 'model="mood"' not in live.get("/metrics").text

    def test_a_request_that_ends_after_its_prompt_is_unloaded_brings_no_series_back(self, base, own_library):
        with living(PlainEngine(base, pause=0.05), own_library) as live, live.client() as client:
            events = client.completions.create(model="colour", prompt="a", max_tokens=5, stream=True)
            next(events)
            live.post("/v1/prompts/unload", json={"name": "colour"})
            list(events)
            assert 'model="colour"' not in live.get("/metrics").text
