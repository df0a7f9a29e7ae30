"""Who comes in and with how much, what is told of it, and what happens when a client goes."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from softprompt.serving import gate
from softprompt.serving.gate import RateLimit
from softprompt.serving.logs import LOGGER, JsonFormatter
from tests.serving.conftest import living
from tests.serving.plain import PlainEngine
from tests.serving.test_api import problem

KEYS = ("key-one", "ключ")
BODY = {"model": "mood", "input": "so so"}
ENDLESS = {"model": "mood", "prompt": "a", "max_tokens": 200, "ignore_eos": True}


def wait_until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_busy(live):
    figures = live.engine.figures()
    return figures["requests_running"] + figures["requests_waiting"] > 0


def ask_and_leave(live, path, body):
    """Send a request, and break off as soon as the engine has it."""
    content = json.dumps(body).encode()
    with connect(live) as raw:
        raw.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n".encode())
        raw.sendall(f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        wait_until(lambda: is_busy(live))


@pytest.fixture(scope="module")
def locked(base, library):
    with living(PlainEngine(base), library, api_keys=KEYS) as live:
        yield live


@pytest.fixture(scope="module")
def small(base, library):
    with living(PlainEngine(base), library, body_limit=1000) as live:
        yield live


class TestKeys:
    @pytest.mark.parametrize("path", ["/v1/models", "/v1/prompts", "/metrics", "/nowhere"])
    @pytest.mark.parametrize(
        "given",
        [None, "", "Bearer", "Bearer wrong", "Bearer key-on", "Bearer key-one2", "Basic key-one", "key-one"],
    )
    def test_without_the_right_one(self, locked, path, given):
        answer = locked.get(path, headers={} if given is None else {"Authorization": given})
        error = problem(answer, 401)
        assert error["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "key-one" not in answer.text

    def test_each_key_opens(self, locked):
        for key in KEYS:
            for scheme in ("Bearer", "bearer"):
                headers = {"Authorization": f"{scheme} {key}".encode()}
                assert locked.get("/v1/models", headers=headers).status_code == 200

    def test_by_the_official_client(self, locked):
        with locked.client("key-one") as client:
            assert client.models.retrieve("mood").id == "mood"
        with locked.client("wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()

    @pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
    def test_some_paths_need_none(self, locked, path):
        assert locked.get(path).status_code == 200

    def test_a_request_without_a_key_is_not_read(self, locked):
        problem(locked.post("/v1/classify", content=b"x" * 20_000_000), 401)


class TestBodies:
    def body(self, size):
        frame = len(json.dumps({**BODY, "user": ""}))
        return json.dumps({**BODY, "user": "x" * (size - frame)}).encode()

    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413), (3_000_000, 413)])
    def test_a_limit(self, small, chunked, size, status):
        body = self.body(size)
        content = (body[i : i + 100_000] for i in range(0, size, 100_000)) if chunked else body
        answer = small.post("/v1/classify", content=content, headers={"Content-Type": "application/json"})
        if status == 413:
            assert "1,000 bytes" in problem(answer, 413)["message"]
        assert answer.status_code == status

    @pytest.mark.parametrize("chunked", [False, True])
    def test_fifty_megabytes(self, server, chunked):
        piece = b"x" * 1_000_000
        content = (piece for _ in range(50)) if chunked else piece * 50
        problem(server.post("/v1/completions", content=content, headers={"Content-Type": "application/json"}), 413)
        assert server.get("/health").status_code == 200

    def test_one_that_never_ends(self, base, library, monkeypatch):
        monkeypatch.setattr(gate, "_BODY_SECONDS", 0.2)
        with living(PlainEngine(base), library) as live, connect(live) as raw:
            raw.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
            assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")

    def test_one_that_breaks_off(self, server):
        with connect(server) as raw:
            raw.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
        assert server.get("/health").status_code == 200

    def test_what_is_no_http(self, server):
        with connect(server) as raw:
            raw.sendall(b"\x00\xff nonsense\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")
        assert server.get("/health").status_code == 200


def connect(live):
    url = httpx.URL(live.url)
    return socket.create_connection((url.host, url.port), timeout=10)


class TestRates:
    def test_a_burst_and_then_one_at_a_time(self):
        limit = RateLimit(6)
        assert [limit.wait("a", 100.0) for _ in range(7)] == [0.0] * 6 + [10.0]
        assert limit.wait("b", 100.0) == 0
        assert limit.wait("a", 105.0) == 5
        assert limit.wait("a", 110.0) == 0
        assert limit.wait("a", 110.0) == 10
        assert [limit.wait("a", 1000.0) for _ in range(7)] == [0.0] * 6 + [10.0]

    def test_it_forgets(self, monkeypatch):
        monkeypatch.setattr(RateLimit, "_MOST_CLIENTS", 100)
        limit = RateLimit(60)
        for number in range(10_000):
            limit.wait(str(number), number)
        assert len(limit._free) <= 101

    def test_for_each_key(self, base, library):
        keys = [{"Authorization": f"Bearer {key}"} for key in ("one", "two")]
        with living(PlainEngine(base), library, api_keys=["one", "two"], requests_per_minute=3) as live:
            assert [live.get("/v1/models", headers=keys[0]).status_code for _ in range(3)] == [200] * 3
            answer = live.get("/v1/models", headers=keys[0])
            assert problem(answer, 429)["code"] == "rate_limit_exceeded"
            assert 1 <= int(answer.headers["retry-after"]) <= 20
            assert live.get("/v1/models", headers=keys[1]).status_code == 200
            guesses = [live.get("/v1/models", headers={"Authorization": f"Bearer {i}"}).status_code for i in range(4)]
            assert guesses == [401, 401, 401, 429]
            assert live.get("/health").status_code == 200


class TestBusy:
    def test_a_full_queue(self, base, library):
        with living(PlainEngine(base, pause=0.2, max_waiting=1), library) as live, ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: live.post("/v1/classify", json=BODY), range(6)))
            assert {answer.status_code for answer in answers} == {200, 429}
            for answer in answers:
                if answer.status_code == 429:
                    assert problem(answer, 429)["code"] == "queue_full"
                    assert answer.headers["retry-after"] == "2"
            assert live.post("/v1/classify", json=BODY).status_code == 200

    def test_a_full_queue_before_a_stream(self, base, library):
        body = {"model": "mood", "prompt": "a", "stream": True}
        with living(PlainEngine(base, max_waiting=0), library) as live:
            problem(live.post("/v1/completions", json=body), 429)

    def test_the_official_client_tries_again(self, base, library):
        with living(PlainEngine(base, pause=0.05, max_waiting=1), library) as live, live.client() as client:
            patient = client.with_options(max_retries=9)
            with ThreadPoolExecutor(3) as pool:
                ask = [
                    pool.submit(patient.completions.create, model="mood", prompt="a", max_tokens=2) for _ in range(3)
                ]
                assert all(one.result().choices for one in ask)

    def test_an_answer_that_takes_too_long(self, base, library):
        body = {"model": "mood", "prompt": "a", "max_tokens": 50, "ignore_eos": True}
        with living(PlainEngine(base, pause=0.05, time_limit=1.0), library) as live:
            assert problem(live.post("/v1/completions", json=body), 504)["type"] == "timeout_error"
            events = live.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
            assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "time_limit"
            assert "[DONE]" not in events[-1]
            assert live.post("/v1/classify", json=BODY).status_code == 200


class TestClientGone:
    @pytest.fixture
    def slow(self, base, library):
        with living(PlainEngine(base, pause=0.05), library) as live:
            yield live

    @pytest.mark.parametrize("n", [1, 3])
    def test_in_the_middle_of_a_stream(self, slow, n):
        body = {**ENDLESS, "stream": True, "n": n}
        with slow.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            assert next(answer.iter_lines())
        wait_until(lambda: slow.engine.cancelled >= 1)
        wait_until(lambda: not is_busy(slow))
        assert slow.engine.figures()["new_tokens_total"] < 100
        assert slow.post("/v1/classify", json=BODY).status_code == 200

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {**ENDLESS, "prompt": ["a", "b"]}),
            ("/v1/completions", {**ENDLESS, "stop": ["\x01"], "stream": True}),
            ("/v1/classify", {"model": "mood", "input": ["a"] * 50}),
        ],
    )
    def test_while_it_waits(self, slow, path, body):
        ask_and_leave(slow, path, body)
        wait_until(lambda: slow.engine.cancelled >= 1)
        wait_until(lambda: not is_busy(slow))

    def test_the_others_are_answered(self, slow):
        expected = slow.post("/v1/classify", json=BODY).json()["data"]
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(slow.post("/v1/classify", json=BODY)))
        ask_and_leave(slow, "/v1/classify", {**BODY, "input": ["a"] * 50})
        waiting.start()
        waiting.join()
        assert answers[0].json()["data"] == expected


class TestIds:
    @pytest.mark.parametrize("given", ["abc-1.2_3", "a" * 64])
    def test_a_clients_id_comes_back(self, server, given):
        for path in ("/health", "/nowhere"):
            assert server.get(path, headers={"X-Request-Id": given}).headers["x-request-id"] == given

    @pytest.mark.parametrize("given", [None, "", "a" * 65, "a b", "a\tb", '{"a"}', "é"])
    def test_another_is_replaced(self, server, given):
        headers = {} if given is None else {"X-Request-Id": given.encode()}
        found = server.get("/health", headers=headers).headers["x-request-id"]
        assert len(found) == 32
        assert found != given

    def test_the_official_client_shows_it(self, server):
        with pytest.raises(openai.NotFoundError) as caught, server.client() as client:
            client.models.retrieve("nobody")
        assert len(caught.value.request_id) == 32


class TestLog:
    @pytest.fixture
    def lines(self):
        found = []
        handler = logging.Handler()
        handler.emit = lambda record: found.append(json.loads(JsonFormatter().format(record)))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        yield found
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(logging.NOTSET)

    def test_a_line_for_each_request_without_its_text(self, server, lines):
        asked = [
            ("POST", "/v1/classify", {"model": ["mood"], "input": ["secret"] * 2}),
            ("POST", "/v1/completions", {"model": "colour", "prompt": "secret", "max_tokens": 2, "user": "secret"}),
            ("POST", "/v1/completions", {"model": "secret", "prompt": "secret"}),
            ("POST", "/v1/completions", {"model": "mood", "prompt": "secret", "secret": 1}),
            ("GET", "/secret?secret=secret", None),
            ("GET", "/v1/models/secret", None),
            ("SECRET", "/health", None),
        ]
        for i, (method, path, body) in enumerate(asked):
            server.request(method, path, json=body, headers={"X-Request-Id": f"me-{i}", "User-Agent": "secret"})
        # The line of a request before this test may still be on its way.
        wait_until(lambda: lines and lines[-1]["request_id"] == "me-6")
        lines = [line for line in lines if line["request_id"].startswith("me-")]
        assert len(lines) == 7
        assert "secret" not in json.dumps(lines).lower()
        assert [line["status"] for line in lines] == [200, 200, 404, 400, 404, 404, 405]
        assert [line["route"] for line in lines][3:6] == ["/v1/completions", "unknown", "/v1/models/{model:path}"]
        assert {"request_id": "me-0", "method": "POST", "model": ["mood@2"], "event": "request"}.items() <= lines[
            0
        ].items()
        assert lines[0]["text_tokens"] == 2 * len("Text: secret\nMood:")
        assert (lines[1]["model"], lines[1]["text_tokens"]) == ("colour@1", 6)
        assert lines[1]["new_tokens"] <= 2
        assert lines[0]["seconds"] > 0

    def test_a_client_that_has_gone(self, base, library, lines):
        with living(PlainEngine(base, pause=0.1), library) as live:
            ask_and_leave(live, "/v1/classify", {**BODY, "input": ["a"] * 9})
            wait_until(lambda: 499 in [line["status"] for line in lines])

    def test_an_exception_without_its_message(self):
        try:
            raise ValueError("secret")
        except ValueError:
            record = logging.LogRecord("a", logging.ERROR, "b", 1, "it failed", (), sys.exc_info())
        line = json.loads(JsonFormatter().format(record))
        assert line["error"] == "ValueError"
        assert line["event"] == "it failed"
        assert "test_gate.py" in line["places"][0]
        assert "secret" not in json.dumps(line)
