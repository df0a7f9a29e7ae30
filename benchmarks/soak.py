"""A server under everything at once: fifty clients, half of whom do something wrong, and every answer compared.

    python -m benchmarks.soak [--seconds 600] [--clients 50]

Streams that are read to their end and streams that are broken off, classifications, a prompt whose numbers are not
finite, bodies that are no request, prompts that are loaded and unloaded. The base is a tiny GPT-2, random but for its
tokenizer, which is SmolLM2-135M's: what is under test is the server. Every answer is that of a calm server before.

Owns the load and the comparison. The server is `softprompt serve` in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import softprompt as sp
from benchmarks.measure import RESULTS, describe, footing, write_results
from benchmarks.server import serving

NAME = "soak"
TASK = sp.Task(template="Text: {text}\nMood:", labels=["negative", "positive", "neither good nor bad"])
GOOD, BAD, COMING = ("red", "green", "blue"), "broken", "coming"
TEXTS = ("a joy to watch", "never again", "so so", "the plot is thin, the players are not")
TOKENS = 24
MALFORMED: list[dict[str, Any]] = [
    {"prompt": [1.5] * 5000},
    {"prompt": "a", "n": 0},
    {"prompt": ["a", 5]},
    {"prompt": "a", "nonsense": 1},
    {},
]


def make_installation(folder: Path) -> sp.Base:
    """A base and a library on disk."""
    tokenizer = sp.load_base("smollm2-135m", dtype="float32", device="cpu").tokenizer
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base = sp.load_base(folder / "base", dtype="float32", device="cpu")
    library = sp.PromptLibrary(folder / "library")
    for seed, name in enumerate((*GOOD, COMING, BAD)):
        prompt = sp.SoftPrompt.random(base, 8 + 4 * seed, seed=seed)
        rows = prompt.embeddings.sign() * 3.3e38 if name == BAD else prompt.embeddings
        library.add(name, sp.SoftPrompt(rows, prompt.card.replace(task=TASK.model_dump(), sha256="")))
    return base


@contextmanager
def server_over(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server's URL and its process. There is room for some of the prompts' states only."""
    words = ["--dtype", "float32", "--state-memory", 8, "--no-playground", "--no-log-probes"]
    with (
        (folder / "log.jsonl").open("w") as log,
        serving(folder / "base", folder / "library", *words, log=log) as (url, process),
    ):
        yield url, psutil.Process(process)


class Load:
    """The clients.

    Attributes:
        done: how often each thing was done.
        wrong: what was not as it should be, a line each.
    """

    def __init__(self, http: httpx.AsyncClient, seed: int) -> None:
        self._http, self._dice = http, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._expected: dict[tuple[str, str, str], Any] = {}

    async def learn(self) -> None:
        """Every good answer, one at a time, before the load."""
        for name in GOOD:
            for text in TEXTS:
                self._expected["text", name, text] = (await self._complete(name, text)).json()["choices"][0]["text"]
                self._expected["label", name, text] = (await self._classify(name, text)).json()["data"][0]

    async def work(self, until: float) -> None:
        """One client, who does something else every time."""
        things = (
            *(self.complete, self.stream, self.stream, self.classify, self.break_off, self.break_off),
            *(self.ask_broken, self.send_nonsense, self.load_and_unload, self.look),
        )
        while time.monotonic() < until:
            thing = self._dice.choice(things)
            try:
                await thing(self._dice.choice(GOOD), self._dice.choice(TEXTS))
            except Exception as error:
                self.wrong.append(f"{thing.__name__}: {type(error).__name__}: {error}")
            self.done[thing.__name__] += 1

    async def complete(self, name: str, text: str) -> None:
        answer = await self._complete(name, text)
        self._compare("text", name, text, answer.json()["choices"][0]["text"])

    async def stream(self, name: str, text: str) -> None:
        async with self._http.stream("POST", "/v1/completions", json=self._body(name, text, stream=True)) as answer:
            lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
        parts = [json.loads(line) for line in lines[:-1]]
        self._compare("text", name, text, "".join(part["choices"][0]["text"] for part in parts))

    async def break_off(self, name: str, text: str) -> None:
        async with self._http.stream("POST", "/v1/completions", json=self._body(name, text, stream=True)) as answer:
            async for _ in answer.aiter_lines():
                break

    async def classify(self, name: str, text: str) -> None:
        found = (await self._classify(name, text)).json()["data"][0]
        expected = self._expected["label", name, text]
        near = all(abs(found["probabilities"][label] - p) < 1e-4 for label, p in expected["probabilities"].items())
        if found["label"] != expected["label"] or not near:
            self.wrong.append(f"classify: {found}, not {expected}")

    async def ask_broken(self, name: str, text: str) -> None:
        ask = self._dice.choice((self._complete, self._classify))
        self._expect(await ask(BAD, text), 500)

    async def send_nonsense(self, name: str, text: str) -> None:
        body = {"model": name, **self._dice.choice(MALFORMED)}
        self._expect(await self._http.post("/v1/completions", json=body), 400)

    async def load_and_unload(self, name: str, text: str) -> None:
        what = self._dice.choice(("load", "unload"))
        self._expect(await self._http.post(f"/v1/prompts/{what}", json={"name": COMING}), 200, 404)
        self._expect(await self._http.post("/v1/prompts/load", json={"name": BAD}), 409)

    async def look(self, name: str, text: str) -> None:
        self._expect(await self._http.get("/ready"), 200)

    @staticmethod
    def _body(name: str, text: str, **more: Any) -> dict[str, Any]:
        return {"model": name, "prompt": text, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, **more}

    async def _complete(self, name: str, text: str) -> httpx.Response:
        return await self._http.post("/v1/completions", json=self._body(name, text))

    async def _classify(self, name: str, text: str) -> httpx.Response:
        return await self._http.post("/v1/classify", json={"model": name, "input": text})

    def _compare(self, kind: str, name: str, text: str, found: str) -> None:
        if found != self._expected[kind, name, text]:
            self.wrong.append(f"{name}, {text!r}: {found!r}, not {self._expected[kind, name, text]!r}")

    def _expect(self, answer: httpx.Response, *statuses: int) -> None:
        if answer.status_code not in statuses:
            self.wrong.append(f"{answer.request.url.path}: {answer.status_code}, not {statuses}: {answer.text[:200]}")


async def soak(seconds: float, clients: int) -> dict[str, Any]:
    """Figures of so many seconds of load.

    Returns:
        `done`, `wrong` and the resident memory in MB, a figure for each twentieth of the time.
    """
    with tempfile.TemporaryDirectory() as place:
        make_installation(Path(place))
        with server_over(Path(place)) as (url, process):
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
                load = Load(http, seed=0)
                await load.learn()
                until = time.monotonic() + seconds
                workers = [asyncio.create_task(load.work(until)) for _ in range(clients)]
                memory = []
                while time.monotonic() < until:
                    memory.append(process.memory_info().rss / 1e6)
                    await asyncio.sleep(seconds / 20)
                await asyncio.gather(*workers)
                running = (await http.get("/metrics")).text
                left = [line for line in running.splitlines() if line.startswith("softprompt_engine_requests_")]
    return {"seconds": seconds, "clients": clients, "done": dict(load.done), "wrong": load.wrong} | {
        "memory_mb": memory,
        "left": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    document = describe("soak", sys.argv[1:], torch.device("cpu"))
    found = asyncio.run(soak(options.seconds, options.clients))
    document["soak"] = found
    quarter = max(1, len(found["memory_mb"]) // 4)
    early, late = median(found["memory_mb"][quarter : 2 * quarter]), median(found["memory_mb"][-quarter:])
    done = ", ".join(f"{count} times {what.replace('_', ' ')}" for what, count in sorted(found["done"].items()))
    text = (
        f"# Soak\n\n{found['clients']} clients for {found['seconds']:.0f} s: {done}. Not as it should be: "
        f"{len(found['wrong'])}. Resident memory in the second quarter {early:.0f} MB, in the last {late:.0f} MB.\n"
    )
    print(text)
    for line in found["wrong"][:20]:
        print(line)
    write_results(options.output, NAME, document, text + "\n" + footing(document))


if __name__ == "__main__":
    main()
