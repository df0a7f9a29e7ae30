"""What clients send beside the plain request: nulls, harmless fields, whole answers sent back, floods of mistakes."""

from __future__ import annotations

import asyncio
import json
import re
import socket

import httpx
import pytest
import torch
from fastapi.testclient import TestClient

from softprompt.errors import SoftPromptError
from softprompt.serving import server as serving_server
from softprompt.serving.api import make_app
from softprompt.serving.engine import TimeLimitError
from softprompt.serving.local import LocalEngine
from softprompt.serving.logs import JsonFormatter
from softprompt.serving.server import Server, bind, run
from softprompt.serving.service import Service
from tests.serving.conftest import living, make_chat_base
from tests.serving.plain import PlainEngine
from tests.serving.test_api import problem

CHAT = {"model": "mood", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "temperature": 0}
TEXT = {"model": "mood", "prompt": "a", "max_tokens": 3, "temperature": 0}


def stopping(client, **more):
    """A chat that stops within its answer: the helper takes one that ends in "length" for an error."""
    plain = client.chat.completions.create(**CHAT, **more, extra_body={"ignore_eos": True}).choices[0].message.content
    return {**CHAT, **more, "stop": plain[-1], "extra_body": {"ignore_eos": True}}


@pytest.mark.parametrize("n", [1, 2])
def test_the_official_stream_helper_names_the_role_once(client, n):
    body = stopping(client, n=n)
    with client.chat.completions.stream(**body) as stream:
        whole = stream.get_final_completion()
    assert [choice.message.role for choice in whole.choices] == ["assistant"] * n
    plain = client.chat.completions.create(**body)
    assert [c.message.content for c in whole.choices] == [c.message.content for c in plain.choices]


def test_choices_begin_in_their_order(base, library):
    """Whichever the engine answers first."""

    class Late(PlainEngine):
        asked = 0

        async def generate(self, prompt, ids, sampling):
            self.asked += 1
            await asyncio.sleep(0.2 if self.asked == 1 else 0)
            async for token in super().generate(prompt, ids, sampling):
                yield token

    with living(Late(base), library) as live, live.client() as client:
        parts = list(client.chat.completions.create(**CHAT, n=3, stream=True, extra_body={"ignore_eos": True}))
    indices = [part.choices[0].index for part in parts]
    assert list(dict.fromkeys(indices)) == [0, 1, 2]
    assert len({indices.count(choice) for choice in range(3)}) == 1


def test_what_the_server_sends_it_takes_back(client):
    body = stopping(client)
    first = client.chat.completions.create(**body).choices[0].message
    with client.chat.completions.stream(**body) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (first, streamed, first.model_dump(), streamed.to_dict()):
        more = [*CHAT["messages"], message, {"role": "user", "content": "b"}]
        assert client.chat.completions.create(**{**CHAT, "messages": more}).choices


HARMLESS = {
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "metadata": {"a": "b"},
    "store": False,
    "top_k": -1,
    "min_p": 0,
    "min_tokens": 0,
    "best_of": 1,
    "functions": [],
    "function_call": "none",
    "modalities": ["text"],
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "stream_options": {"include_usage": False, "include_obfuscation": True},
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "seed": None,
    "nobody_knows_it": None,
}
OF_CHATS = {"parallel_tool_calls", "functions", "function_call", "modalities", "response_format", "tools"}


@pytest.mark.parametrize("field", HARMLESS)
def test_what_means_nothing_is_taken(server, field):
    body = {**CHAT, field: HARMLESS[field]}
    assert server.post("/v1/chat/completions", json=body).status_code == 200
    if field not in OF_CHATS:
        assert server.post("/v1/completions", json={**TEXT, field: HARMLESS[field]}).status_code == 200


def test_names_in_messages_are_taken(server):
    messages = [{"role": "user", "content": "a", "name": "me", "tool_calls": None, "refusal": None}]
    assert server.post("/v1/chat/completions", json={**CHAT, "messages": messages}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("frequency_penalty", 0.5, "frequency_penalty: is not supported: leave it out, or send 0"),
        ("tools", [{"type": "function"}], "tools: is not supported: leave it out, or send []"),
        ("min_p", 0.1, "min_p: is not supported: leave it out, or send 0"),
        ("modalities", ["audio"], 'modalities: is not supported: leave it out, or send ["text"]'),
        ("function_call", "f", 'function_call: is not supported: leave it out, or send "none" or "auto"'),
        ("nonsense", 5, "nonsense: is not supported"),
    ],
)
def test_what_would_change_the_answer_is_refused_in_words(server, field, value, says):
    error = problem(server.post("/v1/chat/completions", json={**CHAT, field: value}), 400)
    assert (error["message"], error["param"]) == (says, field)


def test_a_body_that_is_no_json_has_no_field_at_fault(server):
    body, kind = b'{"model": "mood", "prompt": ', {"Content-Type": "application/json"}
    answer = server.post("/v1/completions", content=body, headers=kind)
    error = problem(answer, 400)
    assert error["param"] is None
    assert "not JSON" in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": [1.5] * 200_000}),
        ("completions", {"prompt": [[1, "a"]] * 2000}),
        ("completions", {"prompt": ["a", 5] * 1000}),
        ("completions", {"prompt": "a", "stop": [5] * 100_000}),
        ("completions", {"prompt": "a", "bad_words": [5] * 100_000}),
        ("completions", {"prompt": "a", **{f"field{i}": i for i in range(50_000)}}),
        ("completions", {"prompt": "a", **{f"field{i}" + "x" * 500: i for i in range(60)}}),
        ("chat/completions", {"messages": [5] * 100_000}),
        ("chat/completions", {"messages": [{"role": "user", "content": [5] * 100_000}]}),
        ("chat/completions", {"messages": [{"role": "nobody"}] * 4000}),
        ("classify", {"input": [5] * 100_000}),
        ("classify", {"input": [{"text": 5}] * 2000}),
        ("classify", {"input": "a", "model": [5] * 100_000}),
    ],
)
def test_a_flood_of_mistakes_is_answered_by_a_few(server, path, body):
    error = problem(server.post(f"/v1/{path}", json={"model": "mood", **body}), 400)
    assert len(error["message"]) < 3000
    assert error["message"].count(";") <= 10


@pytest.mark.parametrize("step", [3, 512])
@pytest.mark.parametrize("model", ["mood", "tiny-llama"])
def test_echo_with_logprobs(base, library, model, step):
    """As lm-evaluation-harness asks for the likelihood of a continuation."""
    text = "so so, never again"
    ids = base.tokenizer(text)["input_ids"]
    prompts = [] if model == "tiny-llama" else [library.get("mood").embeddings]
    with torch.no_grad():
        row = torch.cat([*prompts, base.embed(torch.tensor(ids))])
        logprobs = base.model(inputs_embeds=row[None]).logits[0].log_softmax(-1)
    virtual = len(row) - len(ids)
    places = range(virtual - 1, len(row) - 1)
    expected = [float(logprobs[place, token]) if place >= 0 else None for place, token in zip(places, ids, strict=True)]
    with living(LocalEngine(base, max_batch_tokens=step), library) as live, live.client() as client:
        given = [text, ids]
        for prompt in given:
            asked = {"model": model, "prompt": prompt, "echo": True, "logprobs": 1, "temperature": 0}
            whole = client.completions.create(**asked, max_tokens=1)
            alone = client.completions.create(**asked, max_tokens=0)
            for answer, new in ((whole, 1), (alone, 0)):
                (choice,) = answer.choices
                found = choice.logprobs.token_logprobs
                assert found[: len(ids)] == [None if e is None else pytest.approx(e, abs=1e-3) for e in expected]
                assert len(found) == len(ids) + new
                assert choice.text.startswith(text)
                assert choice.logprobs.text_offset[0] == 0
                assert answer.usage.completion_tokens == new
                best = [None if p < 0 else base.tokenizer.decode([int(logprobs[p].argmax())]) for p in places]
                tops = choice.logprobs.top_logprobs[: len(ids)]
                assert [None if top is None else best[i] in top for i, top in enumerate(tops)] == [
                    None if p < 0 else True for p in places
                ]
            assert alone.choices[0].text == text


def test_only_names_of_this_server_are_answered_without_a_key(base, library):
    def status(live, host, path="/v1/models"):
        return live.get(path, headers={"Host": host}).status_code

    with living(PlainEngine(base), library, hosts=["box", "127.0.0.1"]) as live:
        for host in ("box", "BOX:80", "localhost", "localhost:8000", "127.0.0.1:9", "192.0.2.7", "[::1]:8000"):
            assert status(live, host) == 200, host
        for host in ("evil.example", "box.evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "[::1"):
            assert status(live, host) == 403, host
        for path in ("/health", "/docs", "/v1/prompts/unload"):
            assert status(live, "evil.example", path) == 403
    with living(PlainEngine(base), library, hosts=["box"], api_keys=["k"]) as live:
        assert live.get("/v1/models", headers={"Host": "any.example", "Authorization": "Bearer k"}).status_code == 200


def test_web_pages_of_a_named_origin_may_read_answers(base, library):
    page = {"Origin": "https://a.example"}
    with living(PlainEngine(base), library, origins=["https://a.example"], api_keys=["k"]) as live:
        asked = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = live.request("OPTIONS", "/v1/completions", headers=asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://a.example"
        answer = live.get("/v1/models", headers={**page, "Authorization": "Bearer k"})
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        other = live.get("/health", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
    with living(PlainEngine(base), library) as live:
        assert "access-control-allow-origin" not in live.get("/health", headers=page).headers


@pytest.mark.parametrize("prefix", ["", "/llm"], ids=["the proxy takes the prefix off", "the proxy leaves it"])
def test_behind_a_proxy_that_puts_a_prefix_before_every_path(base, library, prefix):
    with living(PlainEngine(base), library, root_path="/llm", api_keys=["k"]) as live:
        key = {"Authorization": "Bearer k"}
        assert live.get(f"{prefix}/health").status_code == 200
        assert live.get(f"{prefix}/v1/models").status_code == 401
        assert live.get(f"{prefix}/v1/models", headers=key).status_code == 200
        assert live.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/llm"}]
        page = live.get(f"{prefix}/docs").text
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert links
        for link in [*links, "/llm/openapi.json"]:
            assert link.startswith("/llm/")
            assert live.get(prefix + link.removeprefix("/llm")).status_code == 200
        assert live.get("/llmm/v1/models", headers=key).status_code == 404


def test_the_page_of_the_api_needs_no_network(server):
    page = server.get("/docs").text
    assert "http" not in re.sub(r"<!--.*?-->", "", page).replace("http-equiv", "")
    for link in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert server.get(link).status_code == 200


def test_head_of_the_probes(server):
    for path in ("/health", "/ready"):
        answer = server.request("HEAD", path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_the_log_can_be_without_probes(base, library, caplog):
    caplog.set_level("INFO", "softprompt.serving")
    with living(PlainEngine(base), library, log_probes=False) as live:
        for path in ("/health", "/ready", "/v1/models"):
            live.get(path, headers={"X-Request-Id": "mine"})
    own = [record.fields for record in caplog.records if record.fields.get("request_id") == "mine"]
    assert [line["route"] for line in own] == ["/v1/models"]


def test_a_base_from_a_folder_shows_no_path(base, library, tmp_path):
    folder = tmp_path / "my-base"
    folder.mkdir()
    own = make_chat_base()
    object.__setattr__(own, "name", str(folder))
    with living(PlainEngine(own), library) as live:
        page = live.get("/v1/models")
        assert page.json()["data"][0]["id"] == "my-base"
        assert str(tmp_path) not in page.text
        assert live.post("/v1/completions", json={**TEXT, "model": "my-base"}).status_code == 200


def test_a_stream_that_fails_counts_as_failed(base, library, caplog):
    caplog.set_level("INFO", "softprompt.serving")

    class Failing(PlainEngine):
        async def generate(self, prompt, ids, sampling):
            yield await anext(super().generate(prompt, ids, sampling))
            raise TimeLimitError("too long")

    with living(Failing(base), library) as live:
        answer = live.post("/v1/completions", json={**TEXT, "stream": True, "ignore_eos": True})
        assert answer.status_code == 200
        assert json.loads(answer.text.split("data: ")[-1])["error"]["code"] == "time_limit"
        figures = live.get("/metrics").text
    (line,) = [record.fields for record in caplog.records if record.fields.get("route") == "/v1/completions"]
    assert (line["status"], line["error"], line["new_tokens"]) == (504, "time_limit", 1)
    assert 'softprompt_http_requests_total{route="/v1/completions",status="504"} 1.0' in figures
    assert 'softprompt_new_tokens_total{model="mood"} 1.0' in figures


def test_an_engine_that_fails_ends_the_server(base, library, caplog):
    """Health and readiness say so while there still is a server; the log has the error as a line of its own."""
    engine, answers, tasks = LocalEngine(base), [], []

    def fail(may_start):
        raise ValueError("a defect")

    engine._scheduler.plan = fail

    async def main() -> None:
        service = Service(engine, library)
        server = Server(make_app(service), service, patience=1)
        with bind("127.0.0.1", 0) as bound:
            url = f"http://127.0.0.1:{bound.getsockname()[1]}"

            async def ask() -> None:
                async with httpx.AsyncClient(base_url=url, verify=False) as http:
                    answers.append((await http.post("/v1/completions", json=TEXT)).status_code)

            await run(server, bound, lambda: tasks.append(asyncio.create_task(ask())))

    with pytest.raises(SoftPromptError, match="the engine has failed, and its log says why"):
        asyncio.run(main())
    assert answers == [503]
    (record,) = [record for record in caplog.records if record.message == "engine failed"]
    assert json.loads(JsonFormatter().format(record))["error"] == "ValueError"


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local"])
@pytest.mark.parametrize("before", [False, True])
def test_headers_that_never_end_are_not_waited_for(base, library, monkeypatch, sent, before):
    monkeypatch.setattr(serving_server, "_HEADER_SECONDS", 0.3)
    with living(PlainEngine(base), library) as live:
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            if before and sent:  # a whole request on the same connection
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200" in connection.recv(4096)
            connection.sendall(sent)
            while connection.recv(4096):  # the rest of the answer, then the end
                pass
        assert live.get("/health").status_code == 200


def test_a_slow_answer_is_no_slow_request(base, library, monkeypatch):
    monkeypatch.setattr(serving_server, "_HEADER_SECONDS", 0.2)
    with living(PlainEngine(base, pause=0.1), library) as live:
        answer = live.post("/v1/completions", json={**TEXT, "max_tokens": 6, "ignore_eos": True})
        assert answer.json()["usage"]["completion_tokens"] == 6


def test_a_failed_engine_is_neither_alive_nor_ready(base, library):
    engine = PlainEngine(base)
    client = TestClient(make_app(Service(engine, library)))
    with client:
        while client.get("/ready").status_code != 200:
            pass
        engine.failed.set()
        for path in ("/health", "/ready", "/v1/completions"):
            answer = client.post(path, json=TEXT) if "v1" in path else client.get(path)
            assert "the engine has failed" in problem(answer, 503)["message"]
