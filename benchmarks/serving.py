"""What serving many tasks costs: one server on one base, against PEFT's one task at a time.

    python -m benchmarks.serving [--quick] [--tasks 1 10 100 1000]

- *engine*: requests of several tasks mixed, in this process, against PEFT's `set_adapter` and `generate` (or `forward`)
  one by one, alternating.
- *state*: time to the first token with the prompt's state kept, and without.
- *server*: a real server and a real HTTP client. Tasks mixed at random against the same load on one task, closed loop
  (so many clients at once) and open loop (requests come when they come); loading a prompt until its first answer;
  switching; memory.

Owns the load and its clocks. The server is `softprompt serve` in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import torch
from peft import PromptTuningConfig, get_peft_model

import softprompt as sp
from benchmarks.measure import RESULTS, describe, footing, markdown_table, write_results
from benchmarks.movies import TASK, load_movies
from benchmarks.server import serving
from softprompt.bases.base import dtype_name
from softprompt.serving.engine import Sampling
from softprompt.serving.local import LocalEngine
from softprompt.tasks.encode import Encoder

NAME = "serving"
P = 100
NEW_TOKENS = 4
MIXED_TASKS = 5
# What keeps the states of 1000 prompts of P virtual tokens resident, in float32 too.
ROOM = 6 << 30


def texts_of(base: sp.Base, count: int) -> list[list[int]]:
    """Film snippets in the task's template, as ids; those of about 25 tokens."""
    encoder = Encoder(base, TASK)
    encoded = (encoder.encode_text(row.columns) for row in load_movies())
    return [ids for ids in encoded if 20 <= len(ids) <= 30][:count]


def plain_texts(base: sp.Base) -> list[str]:
    """The same without the template."""
    decoded = (base.tokenizer.decode(ids) for ids in texts_of(base, 96))
    return [text.removeprefix("Review: ").removesuffix("\nSentiment:") for text in decoded]


def make_prompts(base: sp.Base, count: int) -> list[sp.SoftPrompt]:
    """Prompts of P virtual tokens, each of its own, with the film task on their cards."""
    prompts = (sp.SoftPrompt.random(base, P, seed=seed) for seed in range(count))
    task = TASK.model_dump()
    return [sp.SoftPrompt(prompt.embeddings, prompt.card.replace(task=task)) for prompt in prompts]


class PeftLoop:
    """PEFT's way: all prompts as adapters of one model, set before each request, one request at a time."""

    def __init__(self, base: sp.Base, prompts: Sequence[sp.SoftPrompt]) -> None:
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
        self.model: Any = get_peft_model(base.model, config, adapter_name="0")
        for i in range(1, len(prompts)):
            self.model.add_adapter(str(i), config)
        for i, prompt in enumerate(prompts):
            self.model.prompt_encoder[str(i)].embedding.weight.data.copy_(prompt.embeddings)
        self.model.eval()

    @torch.no_grad()
    def generate(self, task: int, ids: Sequence[int]) -> list[int]:
        self.model.set_adapter(str(task))
        text = torch.tensor([ids], device=self.model.device)
        found = self.model.generate(
            input_ids=text,
            attention_mask=torch.ones_like(text),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        return found[0, len(ids) :].tolist()

    @torch.no_grad()
    def classify(self, task: int, ids: Sequence[int], labels: Sequence[Sequence[int]]) -> list[float]:
        """Log-likelihood of labels of one token each."""
        self.model.set_adapter(str(task))
        scores = (
            self.model(input_ids=torch.tensor([ids], device=self.model.device)).logits[0, -1].float().log_softmax(-1)
        )
        return [float(scores[label[0]]) for label in labels]


async def measure_engine(base: sp.Base, requests: int, peft_requests: int, rounds: int) -> list[dict[str, Any]]:
    """Requests a second of the local engine and of PEFT's loop, taking turns."""
    prompts = make_prompts(base, MIXED_TASKS)
    texts = texts_of(base, requests)
    labels = Encoder(base, TASK).answer.label_ids or []
    loop = PeftLoop(sp.load_base(base.name, dtype=base.dtype, device=base.device), prompts)
    engine = LocalEngine(base)
    await engine.start()
    for prompt in prompts:
        await engine.warm(prompt)
    sampling = Sampling(max_tokens=NEW_TOKENS, ignore_eos=True)

    async def generate(i: int) -> list[int]:
        return [token.id async for token in engine.generate(prompts[i % MIXED_TASKS], texts[i], sampling)]

    async def classify(i: int) -> list[float]:
        return await engine.classify(prompts[i % MIXED_TASKS], texts[i], labels)

    kinds: dict[str, tuple[Callable[[int], Awaitable[list[Any]]], Callable[[int], list[Any]]]] = {
        f"generation of {NEW_TOKENS} tokens": (generate, lambda i: loop.generate(i % MIXED_TASKS, texts[i])),
        f"classification into {len(labels)} labels": (
            classify,
            lambda i: loop.classify(i % MIXED_TASKS, texts[i], labels),
        ),
    }
    results = []
    for kind, (ours, theirs) in kinds.items():
        rates: dict[str, list[float]] = {"softprompt": [], "peft": []}
        same = 0
        for _ in range(rounds):
            start = time.perf_counter()
            answers = await asyncio.gather(*map(ours, range(requests)))
            rates["softprompt"].append(requests / (time.perf_counter() - start))
            start = time.perf_counter()
            expected = [theirs(i) for i in range(peft_requests)]
            rates["peft"].append(peft_requests / (time.perf_counter() - start))
            same = sum(_alike(a, b) for a, b in zip(answers, expected, strict=False))
        results.append(
            {
                "work": f"{kind}, {MIXED_TASKS} tasks mixed, P={P}",
                "requests_per_second": {side: median(found) for side, found in rates.items()},
                "all": rates,
                "ratio": median(a / b for a, b in zip(*rates.values(), strict=True)),
                "same_answers": [same, peft_requests],
            }
        )
    await engine.stop()
    return results


def _alike(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """The same tokens, or the same label."""
    if all(isinstance(value, int) for value in theirs):
        return list(ours) == list(theirs)
    return ours.index(max(ours)) == theirs.index(max(theirs))


async def measure_state(base: sp.Base, rounds: int) -> dict[str, Any]:
    """Seconds to the first token with a state that is kept, and with prompts that the engine has never seen."""
    engine = LocalEngine(base)
    await engine.start()
    prompts, texts = make_prompts(base, rounds + 1), texts_of(base, rounds)
    await engine.warm(prompts[0])
    times: dict[str, list[float]] = {"kept": [], "not kept": []}
    for i, ids in enumerate(texts):
        for name, prompt in (("kept", prompts[0]), ("not kept", prompts[i + 1])):
            start = time.perf_counter()
            stream = engine.generate(prompt, ids, Sampling(max_tokens=1))
            await anext(stream)
            times[name].append(time.perf_counter() - start)
            await stream.aclose()
    await engine.stop()
    found = {name: 1000 * median(every) for name, every in times.items()}
    return {"milliseconds_to_first_token": found, "ratio": found["not kept"] / found["kept"], "P": P}


class Server:
    """A running `softprompt serve`.

    Attributes:
        client: speaks to it.
        process: itself, for its memory.
        ready_seconds: from its start until it was ready.
    """

    def __init__(self, client: httpx.AsyncClient, process: psutil.Process, ready_seconds: float) -> None:
        self.client, self.process, self.ready_seconds = client, process, ready_seconds

    async def classify(self, model: str, text: str) -> float:
        """Seconds until the answer."""
        start = time.perf_counter()
        answer = await self.client.post("/v1/classify", json={"model": model, "input": text})
        answer.raise_for_status()
        return time.perf_counter() - start

    async def complete(self, model: str, text: str) -> tuple[float, float]:
        """Seconds to the first token and to the last of a streamed completion."""
        body = {"model": model, "prompt": text, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
        start, first = time.perf_counter(), 0.0
        async with self.client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and not first:
                    first = time.perf_counter() - start
        return first, time.perf_counter() - start

    async def metric(self, name: str) -> float:
        lines = (await self.client.get("/metrics")).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@asynccontextmanager
async def running(base: sp.Base, library: Path, state_bytes: int, time_limit: float = 600) -> AsyncIterator[Server]:
    words = ["--dtype", dtype_name(base.dtype), "--state-memory", state_bytes >> 20]
    words += ["--time-limit", f"{time_limit:g}", "--max-waiting", 4096]
    start = time.perf_counter()
    with serving(base.name, library, *words) as (url, process):
        seconds = time.perf_counter() - start
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
            yield Server(client, psutil.Process(process), seconds)


async def closed_loop(work: Callable[[], Awaitable[float]], requests: int, clients: int) -> float:
    """Requests a second of so many clients, each asking anew when it has its answer."""
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            await work()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return requests / (time.perf_counter() - start)


async def open_loop(work: Callable[[], Awaitable[Any]], rate: float, seconds: float, seed: int) -> list[Any]:
    """What `work` gave for requests that come at random, `rate` a second, whether or not others have been answered."""
    draw = random.Random(seed)
    tasks: list[asyncio.Task[Any]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        tasks.append(asyncio.ensure_future(work()))
        await asyncio.sleep(draw.expovariate(rate))
    return list(await asyncio.gather(*tasks))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure_server(
    base: sp.Base, counts: Sequence[int], requests: int, seconds: float, state_bytes: int, new: int
) -> dict[str, Any]:
    """The server's figures with all states resident, as far as `state_bytes` holds them."""
    texts = [
        base.tokenizer.decode(ids).removeprefix("Review: ").removesuffix("\nSentiment:") for ids in texts_of(base, 96)
    ]
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        library = sp.PromptLibrary(folder)
        prompts = make_prompts(base, max(counts) + new)
        for i, prompt in enumerate(prompts[: max(counts)]):
            library.add(f"task-{i}", prompt)
        async with running(base, Path(folder), state_bytes) as server:
            memory = server.process.memory_info().rss
            document: dict[str, Any] = {"state_bytes": state_bytes, "ready_seconds": server.ready_seconds, "mixed": []}
            for count in counts:

                def model(count: int = count) -> str:
                    return f"task-{draw.randrange(count)}"

                async def classify() -> float:
                    return await server.classify(model(), draw.choice(texts))

                async def one_task() -> float:
                    return await server.classify("task-0", draw.choice(texts))

                await asyncio.gather(*(server.classify(f"task-{i}", texts[0]) for i in range(count)))
                rates = {"mixed": [], "one": []}
                for _ in range(3):
                    rates["mixed"].append(await closed_loop(classify, requests, 32))
                    rates["one"].append(await closed_loop(one_task, requests, 32))
                rate = 0.6 * median(rates["one"])
                latencies = await open_loop(classify, rate, seconds, seed=count)
                streams = await open_loop(
                    lambda: server.complete(model(), draw.choice(texts)), 0.6 * rate, seconds, seed=count
                )
                document["mixed"].append(
                    {
                        "tasks": count,
                        "requests_per_second": median(rates["mixed"]),
                        "one_task_requests_per_second": median(rates["one"]),
                        "share_of_one_task": median(a / b for a, b in zip(rates["mixed"], rates["one"], strict=True)),
                        "open_loop_rate": rate,
                        "latency_ms": {p: 1000 * percentile(latencies, p / 100) for p in (50, 99)},
                        "first_token_ms": {p: 1000 * percentile([s[0] for s in streams], p / 100) for p in (50, 99)},
                        "states_resident": await server.metric("softprompt_engine_states_resident"),
                    }
                )
                print(json.dumps(document["mixed"][-1]), file=sys.stderr)
            document["bytes_per_1000_prompts"] = (server.process.memory_info().rss - memory) * 1000 // max(counts)
            document["switch_ms"] = await _switch(server, texts)
            document["load_to_first_answer_ms"] = await _load(server, library, prompts[max(counts) :], texts)
    return document


async def _switch(server: Server, texts: Sequence[str]) -> float:
    """How much longer an answer takes where every request names another resident task, in milliseconds."""
    times: dict[str, list[float]] = {"same": [], "other": []}
    for i in range(40):
        text = texts[i % len(texts)]
        times["same"].append(await server.classify("task-0", text))
        await server.classify(f"task-{i % 2}", text)
        times["other"].append(await server.classify(f"task-{(i + 1) % 2}", text))
        await server.classify("task-0", text)
    return 1000 * (median(times["other"]) - median(times["same"]))


async def _load(
    server: Server, library: sp.PromptLibrary, prompts: Sequence[sp.SoftPrompt], texts: Sequence[str]
) -> float:
    """From the request to load a prompt that is in the library until its first answer, in milliseconds."""
    times = []
    for i, prompt in enumerate(prompts):
        library.add(f"new-{i}", prompt)
        start = time.perf_counter()
        (await server.client.post("/v1/prompts/load", json={"name": f"new-{i}"})).raise_for_status()
        await server.classify(f"new-{i}", texts[i % len(texts)])
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


def table(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    parts = []
    engine = [
        [
            row["work"],
            *(f"{row['requests_per_second'][side]:.1f}" for side in ("softprompt", "peft")),
            f"{row['ratio']:.1f}",
            "{} of {}".format(*row["same_answers"]),
        ]
        for row in document.get("engine", [])
    ]
    if engine:
        head = ["in one process", "requests/s", "PEFT, one by one", "times", "same answers"]
        parts.append(markdown_table(head, engine))
    if state := document.get("state"):
        kept, new = state["milliseconds_to_first_token"].values()
        parts.append(
            f"- Time to first token at P={state['P']}: {kept:.0f} ms with the state kept, {new:.0f} ms without "
            f"({state['ratio']:.1f} times).\n"
        )
    for server in document.get("servers", []):
        rows = [
            [
                str(row["tasks"]),
                f"{row['requests_per_second']:.1f}",
                f"{100 * row['share_of_one_task']:.0f}%",
                f"{row['open_loop_rate']:.1f}",
                *(f"{row['latency_ms'][p]:.0f}" for p in (50, 99)),
                *(f"{row['first_token_ms'][p]:.0f}" for p in (50, 99)),
                f"{row['states_resident']:.0f}",
            ]
            for row in server["mixed"]
        ]
        head = [
            f"server, tasks mixed, {server['state_bytes'] / 2**30:.0f} GiB for states",
            *("requests/s", "of one task's", "open loop, requests/s", "p50 ms", "p99 ms"),
            *("first token p50 ms", "p99 ms", "states resident"),
        ]
        parts.append(markdown_table(head, rows))
        parts.append(
            f"- Ready after {server['ready_seconds']:.1f} s; switch {server['switch_ms']:.1f} ms; from loading a "
            f"prompt to its first answer {server['load_to_first_answer_ms']:.0f} ms; "
            f"{server['bytes_per_1000_prompts'] / 2**20:.0f} MB for 1000 prompts with their states.\n"
        )
    return "\n".join(parts) + footing(document)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="few requests and at most 10 tasks; results are written as *_quick")
    add("--only", choices=["engine", "state", "server"], help="this part alone; results are written as *_PART")
    add("--tasks", nargs="+", type=int, help="default 1 10 100 1000, with --quick 1 10")
    add("--base", default="smollm2-135m", help="what load_base takes")
    add(
        "--device",
        default="cpu",
        help="of what runs in this process, such as cuda: up to 10000 tasks; a server takes a GPU if any",
    )
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    add(
        "--state-bytes",
        nargs="+",
        type=int,
        default=[ROOM],
        help="memory for states, a server for each (default 6 GiB)",
    )
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    add("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    most = [10000] if options.device.startswith("cuda") else []
    options.tasks = options.tasks or ([1, 10] if options.quick else [1, 10, 100, 1000, *most])
    return options


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    options = parse(arguments)
    quick = options.quick
    base = sp.load_base(options.base, dtype=options.dtype, device=options.device)
    document = describe(NAME, arguments, base.device) | {"dtype": dtype_name(base.dtype)}

    def keep() -> None:
        name = "_".join(
            [
                NAME,
                *(["cuda"] if base.device.type == "cuda" else []),
                *([options.only] if options.only else []),
                *(["quick"] if quick else []),
            ]
        )
        write_results(options.out, name, document, table(document))

    if options.only in (None, "engine"):
        document["engine"] = asyncio.run(
            measure_engine(base, 32 if quick else 96, 4 if quick else 24, 1 if quick else 3)
        )
        keep()
    if options.only in (None, "state"):
        document["state"] = asyncio.run(measure_state(base, 3 if quick else 15))
        keep()
    if options.only in (None, "server"):
        document["servers"] = []
        for state_bytes in options.state_bytes:
            found = measure_server(
                base, options.tasks, 16 if quick else 64, 3 if quick else 10, state_bytes, new=3 if quick else 10
            )
            document["servers"].append(asyncio.run(found))
            keep()
    print(json.dumps(document, indent=1) if options.json else table(document))


if __name__ == "__main__":
    main()
