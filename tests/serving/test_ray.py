"""A library on a Ray cluster: two replicas behind one address, asked by OpenAI's client. `make test-ray` runs it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.local import LocalEngine
from softprompt.serving.ray import Settings, _prompt_of, app
from tests.conftest import as_at_a_terminal
from tests.serving.conftest import MOOD, fill_library, living, make_chat_base, make_prompt
from tests.test_cli import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster" / "softprompt-serve.yaml"
DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("mood", "topic", "colour", "bare", "mood@2")
PLAIN: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "extra_body": {"ignore_eos": True}}
TEXTS = ("a joy to watch", "never again", "so so", "the plot is thin", "and more")


class Cluster:
    """A cluster on this machine, on which a library is served."""

    def __init__(self, base: Base, folder: Path) -> None:
        self.base, self.library = base, fill_library(folder / "library", base)
        base.model.save_pretrained(folder / "base")
        base.tokenizer.save_pretrained(folder / "base")
        self.base_folder = folder / "base"
        self.url = "http://127.0.0.1:8000"

    def client(self, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=retries, timeout=120)

    def ids(self, model: str) -> set[str]:
        """Which versions of a prompt are loaded, over several answers, which come from all replicas."""
        found = defaultdict(set)
        for _ in range(12):
            answer = httpx.get(f"{self.url}/v1/prompts", timeout=60)
            found[answer.headers["x-served-by"]] |= {one["id"] for one in answer.json()["data"] if one["name"] == model}
        return {f"{len(found)}: {', '.join(sorted(ids)) or 'none'}" for ids in found.values()}

    def replicas(self) -> list[psutil.Process]:
        every = ((one, one.info["cmdline"] or [""]) for one in psutil.process_iter(["cmdline"]))
        return [one for one, words in every if words[0].startswith("ray::ServeReplica:default:Replica")]

    def log(self) -> str:
        """What the replicas have said."""
        files = Path("/tmp/ray/session_latest/logs").glob("worker-*.err")
        return "".join(file.read_text("utf-8", "replace") for file in files)


@pytest.fixture(scope="module")
def ray_there() -> None:
    pytest.importorskip("ray.serve", reason="`make test-ray` runs it")


@pytest.fixture(scope="module")
def cluster(ray_there: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`serve run`, as docs/cluster.md has it, on a cluster of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    found = Cluster(make_chat_base(), folder)
    ((program, *words),) = typed("serve run")
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",  # on a busy machine its five seconds are none
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }
    environment.pop("SOFTPROMPT_API_KEY", None)
    command = [str(Path(sys.executable).with_name(program)), *words]
    with (folder / "said").open("w") as said:
        for _ in range(3):  # on a busy machine Ray gives up its own start after half a minute
            with as_at_a_terminal():
                running = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
            until(lambda: running.poll() is not None or is_ready(found.url), 900)  # noqa: B023
            if running.poll() is None:
                break
        try:
            assert running.poll() is None, (folder / "said").read_text()
            until(lambda: found.ids("mood") == {"2: mood@2"}, 300)  # both replicas are there
            yield found
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(120)


def typed(start: str) -> list[list[str]]:
    """The commands on docs/cluster.md that begin so."""
    lines = (DOCS / "cluster.md").read_text("utf-8").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(start)]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def right(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What each prompt answers to each text, by a server in this process with a copy of the library."""
    folder = tmp_path_factory.mktemp("right") / "library"
    shutil.copytree(cluster.library.folder, folder)
    with living(LocalEngine(cluster.base), PromptLibrary(folder)) as server, server.client() as client:
        return {(name, text): ask(client, name, text)[0] for name in NAMES for text in TEXTS}


def ask(client: openai.OpenAI, name: str, text: str) -> tuple[str, str]:
    """The answer, and which replica it came from."""
    answer = client.completions.with_raw_response.create(model=name, prompt=text, **PLAIN)
    return answer.parse().choices[0].text, answer.headers.get("x-served-by", "")


def test_no_answer_is_crossed_and_a_prompt_keeps_its_replica(cluster: Cluster, right: dict) -> None:
    asked = [(NAMES[i % len(NAMES)], TEXTS[(i // len(NAMES)) % len(TEXTS)]) for i in range(2000)]
    with cluster.client() as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: ask(client, *one), asked))
    assert [text for text, _ in answers] == [right[one] for one in asked]
    by_name: dict[str, Counter[str]] = defaultdict(Counter)
    for (name, _), (_, replica) in zip(asked, answers, strict=True):
        by_name[name.partition("@")[0]][replica] += 1
    firsts = {name: replicas.most_common(1)[0] for name, replicas in by_name.items()}
    print({name: dict(replicas) for name, replicas in by_name.items()})
    # Nearly all: the router asks a replica whether it has room, and goes on where that is not answered in time.
    assert all(count > 0.9 * by_name[name].total() for name, (_, count) in firsts.items())


def test_the_api_is_that_of_one_server(cluster: Cluster, right: dict) -> None:
    with cluster.client() as client:
        assert {one.id for one in client.models.list()} == {"base", "mood", "topic", "colour", "bare"}
        for name, text in (("mood", TEXTS[0]), ("colour", TEXTS[3])):
            chunks = list(client.completions.create(model=name, prompt=text, stream=True, **PLAIN))
            assert len(chunks) > 1
            assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == right[name, text]
        chat = client.chat.completions.create(
            model="colour", messages=[{"role": "user", "content": "grass"}], max_tokens=3
        )
        assert chat.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'"):
            ask(client, "nobody", "text")
    body = {"model": ["mood", "mood@2"], "input": "good"}
    assert len(httpx.post(f"{cluster.url}/v1/classify", json=body, timeout=60).json()["data"]) == 2
    assert httpx.post(f"{cluster.url}/v1/completions", content=b"no json", timeout=60).status_code == 400
    assert httpx.post(f"{cluster.url}/v1/completions", content=b" " * 10_000_001, timeout=60).status_code == 413
    refused = httpx.get(f"{cluster.url}/v1/models", headers={"Host": "rebound.example"}, timeout=60)
    assert refused.status_code == 403
    assert "softprompt_http_requests" in httpx.get(f"{cluster.url}/metrics", timeout=60).text


def test_what_is_added_is_answered_by_both(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cluster.library.folder.parent)
    make_prompt(cluster.base, 3, MOOD, seed=21).save("mood")
    added, rolled_back, removed = typed("softprompt library")
    assert run(*added[1:]).exit_code == 0
    began = time.monotonic()
    until(lambda: cluster.ids("new") == {"2: new@1"}, 30)
    print(f"both replicas have it after {time.monotonic() - began:.1f} s")
    cluster.library.add("new", make_prompt(cluster.base, 4, MOOD, seed=22))
    versions = set()
    with cluster.client() as client:
        while cluster.ids("new") != {"2: new@2"}:  # while it changes, each answer is of the version that was named
            for name in ("new@1", "new@2"):
                try:
                    answer = httpx.post(f"{cluster.url}/v1/classify", json={"model": name, "input": "good"}, timeout=60)
                    if answer.status_code == 200:
                        versions.add((name, answer.json()["data"][0]["model"]))
                    else:
                        assert answer.status_code == 404
                except httpx.HTTPError as error:
                    raise AssertionError(name) from error
        assert {(name, model) for name, model in versions if name != model} == set()
        assert ask(client, "new@2", "good")
        with pytest.raises(openai.NotFoundError, match="'new@1' is not loaded: new@2 is"):
            ask(client, "new@1", "good")
    assert run(*rolled_back[1:]).exit_code == 0
    until(lambda: cluster.ids("mood") == {"2: mood@1"}, 30)
    cluster.library.rollback("mood", 2)
    assert run(*removed[1:]).exit_code == 0
    until(lambda: cluster.ids("new") == {"2: none"}, 30)
    until(lambda: cluster.ids("mood") == {"2: mood@2"}, 30)


def test_a_killed_replica_loses_nothing_that_is_asked_again(cluster: Cluster, right: dict) -> None:
    before = {process.pid for process in cluster.replicas()}
    assert len(before) == 2
    asked = [(NAMES[i % len(NAMES)], TEXTS[(i // len(NAMES)) % len(TEXTS)]) for i in range(600)]
    killed = threading.Event()

    def kill() -> None:
        time.sleep(1)
        os.kill(min(before), signal.SIGKILL)
        killed.set()

    with cluster.client(retries=8) as client, ThreadPoolExecutor(16) as pool:
        threading.Thread(target=kill).start()
        answers = list(pool.map(lambda one: ask(client, *one), asked))
        assert killed.is_set()
        assert [text for text, _ in answers] == [right[one] for one in asked]
    until(lambda: len({process.pid for process in cluster.replicas()} - {min(before)}) == 2, 120)


def test_a_library_that_vanishes_is_answered_on(cluster: Cluster, right: dict) -> None:
    until(lambda: cluster.ids("mood") == {"2: mood@2"}, 120)
    shutil.rmtree(cluster.library.folder)
    until(lambda: cluster.log().count("gone from the storage") >= 2, 30)
    time.sleep(6)
    with cluster.client() as client:
        for (name, text), answer in right.items():
            assert ask(client, name, text)[0] == answer
    assert cluster.log().count("gone from the storage") == 2  # one line for each replica


def test_a_library_on_s3(ray_there: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = pytest.importorskip("moto.server")
    import fsspec

    from softprompt.prompts.mirror import Mirror

    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for key, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            monkeypatch.setenv(key, value)
        base = make_chat_base()
        library = fill_library(tmp_path / "library", base)
        storage = fsspec.filesystem("s3", skip_instance_cache=True)
        storage.mkdir("shelf")
        storage.put(f"{library.folder}/", "shelf/library/", recursive=True)
        mirror, mirrored = Mirror("s3://shelf/library", tmp_path / "here"), PromptLibrary(tmp_path / "here")
        assert mirror.refresh() == {}
        assert mirrored.current() == library.current()
        assert mirrored.get("mood").sha256 == library.get("mood").sha256
        library.add("mood", make_prompt(base, 3, MOOD, seed=8))
        storage.put(f"{library.folder}/", "shelf/library/", recursive=True)
        assert mirror.refresh() == {}
        assert mirrored.get("mood").sha256 == library.get("mood@3").sha256
    finally:
        server.stop()


def test_the_manifest_names_what_is_there(ray_there: None, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    manifest = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    assert manifest["kind"] == "RayService"
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert getattr(__import__(module, fromlist=[name]), name) is app
    settings = Settings(**application.args)
    assert (settings.replicas, settings.gpus) == (2, 1)
    assert app({**application.args, "library": str(tmp_path)}) is not None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"library": "."}, "base: is missing"),
        ({"base": "x", "library": ".", "replica": 2}, "replica: unknown key: did you mean replicas?"),
        ({"base": "x", "library": ".", "replicas": "none"}, "replicas: Input should be a valid integer"),
        ({"base": "x", "library": ".", "vllm": {"a": 1}}, "vllm: is for engine: vllm"),
        ({"base": "x", "library": "nowhere"}, "there is no library at nowhere: make one with `softprompt library add"),
    ],
)
def test_bad_arguments_are_one_line(ray_there: None, args: dict[str, Any], said: str) -> None:
    with pytest.raises(SoftPromptError) as raised:
        app(args)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SoftPromptError, match=r'^Ray Serve is not installed: pip install "softprompt\[ray\]"$'):
        app({})


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model": "mood"}', "mood"),
        (b'{"model": "mood@3"}', "mood"),
        (b'{"model": ["topic", "mood"]}', "topic"),
        (b'{"model": []}', ""),
        (b"[1]", ""),
        (b"{}", ""),
        (b"", ""),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_the_prompt_that_a_body_asks(body: bytes, name: str) -> None:
    assert _prompt_of(body) == name
