"""The port, the start and the end; the command `softprompt serve` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from typer.testing import CliRunner

from softprompt.cli import app
from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.gate import Access
from softprompt.serving.server import Server, Site, bind, run, serve
from softprompt.serving.service import Service
from tests.conftest import make_base
from tests.serving.conftest import MOOD, fill_library, living, make_app, make_chat_base, make_prompt
from tests.serving.plain import PlainEngine
from tests.serving.test_api import problem


def refuse(make_engine=None, library=None, **settings):
    """The error of a server that does not come up."""
    access = settings.pop("access", Access())
    site = Site(**{"host": "127.0.0.1", "port": 0, "patience": 1, **settings})
    with pytest.raises(SoftPromptError) as caught:
        serve(make_engine or pytest.fail, library, site, ready=pytest.fail, access=access)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestAddress:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "example.invalid", "10.0.0.1"])
    def test_other_machines_need_a_key(self, host):
        assert "--api-key" in refuse(host=host)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
    def test_this_machine_needs_none(self, host):
        def make_engine():
            raise SoftPromptError("so far, so good")

        assert refuse(make_engine, host=host) == "so far, so good"
        for more in ({"access": Access(api_keys=["a"])}, {"allow_no_key": True}):
            assert refuse(make_engine, host="0.0.0.0", **more) == "so far, so good"

    @pytest.mark.parametrize("keys", [[""], ["a", " "]])
    def test_an_empty_key(self, keys):
        assert "empty" in refuse(access=Access(api_keys=keys))

    def test_a_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert f"port {port}: " in refuse(port=port)

    def test_a_host_that_is_none(self):
        assert "no.such.host.invalid" in refuse(host="no.such.host.invalid", allow_no_key=True)
        assert "192.0.2.1" in refuse(host="192.0.2.1", allow_no_key=True)


class TestStart:
    def test_ready_only_once_the_engine_runs(self, base, library):
        go = threading.Event()

        class Slow(PlainEngine):
            async def start(self):
                await asyncio.to_thread(go.wait, 10)
                await super().start()

        engine, seen = Slow(base), []

        def look():
            while not seen or seen[-1][0] != 200:
                if found:
                    answers = [httpx.get(f"{found[0]}{path}") for path in ("/ready", "/health", "/v1/models")]
                    asked = httpx.post(f"{found[0]}/v1/classify", json={"model": "mood", "input": "a"})
                    seen.append([answer.status_code for answer in (*answers, asked)])
                    last.append(answers[0])
                    go.set()
                time.sleep(0.02)

        found, last = [], []
        watcher = threading.Thread(target=look)
        watcher.start()
        with living(engine, library, told=found.append):
            watcher.join(10)
        assert seen[0] == [503, 200, 200, 503]
        assert seen[-1][0] == 200
        assert problem(last[0], 503)["code"] == "not_ready"
        assert last[0].headers["retry-after"]

    def test_an_engine_that_cannot_start(self, base, library):
        class Broken(PlainEngine):
            async def start(self):
                raise SoftPromptError("no memory")

        assert refuse(lambda: Broken(base), library) == "no memory"

    def test_a_folder_that_is_no_library(self, base, tmp_path):
        (tmp_path / "library").write_text("")
        assert str(tmp_path) in refuse(lambda: PlainEngine(base), PromptLibrary(tmp_path / "library"))

    def test_a_signal_while_it_starts(self, base, library):
        class Never(PlainEngine):
            async def start(self):
                server.append(True)
                await asyncio.sleep(60)

        server, stopped = [], []

        def stop():
            while not server:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            stopped.append(True)

        thread = threading.Thread(target=stop)
        thread.start()
        before = signal.getsignal(signal.SIGTERM)
        serve(lambda: Never(base), library, Site("127.0.0.1", 0, 1), ready=pytest.fail, access=Access())
        thread.join()
        assert stopped
        assert signal.getsignal(signal.SIGTERM) == before

    def test_it_is_not_told_ready_once_a_signal_has_closed_the_socket(self, base, library):
        class Ending(Server):
            async def serve(self, sockets=None):
                self.should_exit = True
                await asyncio.sleep(0.2)

        async def main():
            service = Service(PlainEngine(base), library)
            await service.start()
            with bind("127.0.0.1", 0) as bound:
                await run(Ending(make_app(service), service, patience=1), bound, pytest.fail)
            await service.stop()

        asyncio.run(main())


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """A base and a library on disk."""
    folder, base = tmp_path_factory.mktemp("installation"), make_chat_base()
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    fill_library(folder / "library", base).add("foreign", make_prompt(make_base(seed=9), 3, MOOD))
    return folder


@contextmanager
def process(folder, port):
    """`softprompt serve` and what it says once it is ready."""
    words = ["--base", "base", "--port", str(port), "--json", "--dtype", "float32"]
    with subprocess.Popen(
        [sys.executable, "-m", "softprompt.cli", "serve", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "2", "SOFTPROMPT_API_KEY": "one, two"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running, json.loads(running.stdout.readline() or "null")
        finally:
            running.kill()


class TestCommand:
    @staticmethod
    def run(*words):
        return CliRunner().invoke(app, ["serve", *map(str, words)])

    def refused(self, *words):
        result = self.run(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        return line.removeprefix("error: ")

    def test_no_library(self, tmp_path):
        assert "softprompt library add" in self.refused("--base", "base", "--library", tmp_path / "none")

    def test_no_such_base(self, installation):
        library = installation / "library"
        assert "no-such.gguf" in self.refused("--base", "no-such.gguf", "--library", library, "--port", 0)

    def test_open_to_all(self, installation, monkeypatch):
        words = ("--base", "no-such.gguf", "--library", installation / "library", "--host", "0.0.0.0", "--port", 0)
        assert "--allow-no-key" in self.refused(*words)
        for more in (["--api-key", "a"], ["--allow-no-key"]):
            assert "no-such.gguf" in self.refused(*words, *more)
        monkeypatch.setenv("SOFTPROMPT_API_KEY", "a, b")
        assert "no-such.gguf" in self.refused(*words)

    @pytest.mark.parametrize(
        "words",
        [
            ["--engine", "other"],
            ["--port", "65536"],
            ["--port", "-1"],
            ["--rate-limit", "0"],
            ["--vllm", "seed=1"],
            ["--nonsense"],
        ],
    )
    def test_wrong_usage(self, words):
        assert self.run("--base", "base", *words).exit_code == 2

    @pytest.fixture
    def called(self, base, library, monkeypatch):
        """What the command hands to `serve` and to the engine."""
        found = {}

        def fake_serve(make_engine, library, site, *, ready, **settings):
            found.update(settings, **vars(site), library=library, engine=make_engine())
            service = Service(PlainEngine(base), library)
            service.catalogue.add(service.catalogue.read("mood"))
            service.catalogue.refused["topic"] = "it is damaged"
            ready("http://127.0.0.1:1", service)

        def fake_engine(name):
            return lambda *words, **settings: (name, words, settings)

        monkeypatch.setattr("softprompt.serving.server.serve", fake_serve)
        monkeypatch.setattr("softprompt.bases.load.load_base", lambda name, **how: (name, how))
        monkeypatch.setattr("softprompt.serving.local.LocalEngine", fake_engine("local"))
        monkeypatch.setattr("softprompt.serving.vllm.VllmEngine", fake_engine("vllm"))
        return found

    def test_what_it_says(self, library, called):
        words = ("--base", "base", "--library", library.folder)
        assert self.run(*words).stdout == (
            "Serving tiny-llama and 1 prompt at http://127.0.0.1:1 (Ctrl-C stops)\nRefused: topic: it is damaged\n"
        )
        document = json.loads(self.run(*words, "--json").stdout)
        assert document == {
            "url": "http://127.0.0.1:1",
            "base": "tiny-llama",
            "engine": "plain",
            "prompts": ["mood@2"],
            "refused": {"topic": "it is damaged"},
        }

    def test_what_it_hands_on(self, library, called, monkeypatch):
        words = ("--base", "b", "--library", library.folder)
        monkeypatch.setenv("SOFTPROMPT_API_KEY", "one, two,")
        assert self.run(*words).exit_code == 0
        settings = {"max_waiting": 1024, "time_limit": 60.0}
        loaded = {"dtype": "auto", "quantization": None, "device_map": None}
        assert called["engine"] == ("local", (("b", loaded),), {"state_bytes": 1 << 30, **settings})
        assert called["access"] == Access(api_keys=["one", "two"], hosts=["127.0.0.1"], origins=[])
        assert (called["host"], called["port"], called["base_name"]) == ("127.0.0.1", 8000, None)
        more = ["--host", "::1", "--port", 9, "--api-key", "a", "--api-key", "b", "--allow-no-key", "--body-limit", 7]
        more += ["--allowed-host", "box", "--cors-origin", "https://a.example", "--served-model-name", "m"]
        more += ["--no-log-probes"]
        limits = ["--rate-limit", 5, "--time-limit", 3, "--max-waiting", 4, "--state-memory", 2, "--dtype", "float32"]
        limits += ["--quantization", "bnb-4bit", "--device-map", "auto"]
        assert self.run(*words, *more, *limits).exit_code == 0
        settings = {"max_waiting": 4, "time_limit": 3.0}
        loaded = {"dtype": "float32", "quantization": "bnb-4bit", "device_map": "auto"}
        assert called["engine"] == ("local", (("b", loaded),), {"state_bytes": 2 << 20, **settings})
        expected = {"host": "::1", "port": 9, "allow_no_key": True, "patience": 3.0, "base_name": "m"}
        assert expected.items() <= called.items()
        assert called["access"] == Access(
            api_keys=["a", "b"],
            requests_per_minute=5,
            body_limit=7,
            hosts=["::1", "box"],
            origins=["https://a.example"],
            log_probes=False,
        )

    def test_vllms_flags(self, library, called):
        words = ("--base", "b", "--library", library.folder, "--engine", "vllm")
        flags = (
            "--vllm",
            "tensor_parallel_size=2",
            "--vllm",
            "enforce_eager=true",
            "--vllm",
            "gpu_memory_utilization=0.5",
        )
        assert self.run(*words, *flags).exit_code == 0
        settings = {"tensor_parallel_size": 2, "enforce_eager": True, "gpu_memory_utilization": 0.5, "dtype": "auto"}
        assert called["engine"] == ("vllm", ("b",), {"max_waiting": 1024, "time_limit": 60.0, **settings})
        for flag in ("seed", "=1", "a b=1", "seed=[1"):
            assert f"--vllm {flag}" in self.refused(*words, "--vllm", flag)

    @pytest.mark.slow
    def test_killed_it_starts_again_and_sigterm_loses_nothing(self, installation):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        text = {"model": "mood", "prompt": "so so", "max_tokens": 30, "ignore_eos": True, "temperature": 0}
        asked = [
            ("/v1/completions", text),
            ("/v1/classify", {"model": ["mood"], "input": ["so so"] * 20}),
            ("/v1/completions", {**text, "stream": True}),
        ]
        answers, refused = [], []

        def load():
            with httpx.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer two"}) as http:
                while True:
                    for path, body in asked:
                        try:
                            answers.append(http.post(path, json=body))
                        except httpx.ConnectError:
                            refused.append(path)
                            return
                        except httpx.TransportError:  # the server was killed, or closed a connection that was idle
                            continue

        def under_load(end):
            answers.clear()
            refused.clear()
            with process(installation, port) as (running, said), ThreadPoolExecutor(4) as pool:
                loads = [pool.submit(load) for _ in range(4)]
                time.sleep(1.5)
                assert httpx.get(f"{url}/v1/models").status_code == 401
                running.send_signal(end)
                status = running.wait(30)
                for one in loads:
                    one.result(30)
                return said, status, [json.loads(line) for line in running.stderr.read().splitlines()]

        _, status, _ = under_load(signal.SIGKILL)
        assert status == -signal.SIGKILL
        said, status, log = under_load(signal.SIGTERM)
        assert status == 0
        assert said["url"] == url
        assert said["prompts"] == ["bare@1", "colour@1", "mood@2", "topic@1"]
        assert list(said["refused"]) == ["foreign"]
        assert log[0]["event"] == "prompt refused"
        assert "so so" not in json.dumps(log)
        assert len(refused) == 4
        assert {answer.status_code for answer in answers} == {200}
        # Whatever was taken was answered, to its end.
        assert [line["status"] for line in log[1:] if line["route"] != "unknown"] == [200] * len(answers)
        streams = [answer.text for answer in answers if answer.headers["content-type"].startswith("text/event")]
        assert len(streams) > 3
        assert all(stream.endswith("data: [DONE]\n\n") for stream in streams)


def test_a_bound_port_is_not_open_yet():
    with bind("127.0.0.1", 0) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=1)


def test_the_app_serves_in_any_server(base, library):
    """Its lifespan starts and stops the service, as other ASGI servers ask for it."""

    async def main():
        service = Service(PlainEngine(base), library)
        app = make_app(service)
        async with app.router.lifespan_context(app):
            await service.started()
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                answer = await http.post("/v1/classify", json={"model": "mood", "input": "a"})
        assert answer.status_code == 200
        assert service.status == "stopped"

    asyncio.run(main())
