"""Tokens that reach clients while ever more clients ask: a server that is asked too much must not do less.

    python -m benchmarks.goodput [--seconds 30] [--clients 2 4 8 16 32 64] [--time-limit 15]

For each number of clients a closed loop of chats behind one soft prompt: a client asks anew when it has its answer,
for so many seconds. The goodput is the new tokens of all answers with status 200, a second until the last answer; what
was computed for an answer that nobody got counts as nothing.

Owns the load and its clocks. The server is `softprompt serve` in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import softprompt as sp
from benchmarks.measure import RESULTS, describe, footing, markdown_table, write_results
from benchmarks.serving import Server, make_prompts, percentile, plain_texts, running
from softprompt.bases.base import dtype_name

NAME = "goodput"


async def measure(server: Server, texts: Sequence[str], clients: int, seconds: float, tokens: int) -> dict[str, Any]:
    """Goodput and latency of so many clients."""
    ended: Counter[str] = Counter()
    latencies: list[float] = []
    new = 0
    start = time.perf_counter()

    async def client(number: int) -> None:
        nonlocal new
        while (asked := time.perf_counter()) - start < seconds:
            question = texts[(number + sum(ended.values())) % len(texts)]
            messages = [{"role": "user", "content": question}]
            body = {"model": "task-0", "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
            answer = await server.client.post("/v1/chat/completions", json=body)
            if answer.status_code != 200:
                ended[str(answer.status_code)] += 1
                await asyncio.sleep(1.0)
                continue
            latencies.append(time.perf_counter() - asked)
            count = answer.json()["usage"]["completion_tokens"]
            ended["whole" if count == tokens else "cut"] += 1
            new += count

    await asyncio.gather(*map(client, range(clients)))
    lasted = time.perf_counter() - start
    return {
        "clients": clients,
        "seconds": lasted,
        "goodput": new / lasted,
        "ended": dict(ended),
        "latency_s": {p: percentile(latencies, p / 100) for p in (50, 99)} if latencies else {},
    }


async def run(base: sp.Base, options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        sp.PromptLibrary(folder).add("task-0", make_prompts(base, 1)[0])
        async with running(base, Path(folder), 1 << 30, options.time_limit) as server:
            texts = plain_texts(base)
            await measure(server, texts, 1, 1.0, 8)  # warm
            rows = []
            for clients in options.clients:
                rows.append(await measure(server, texts, clients, options.seconds, options.tokens))
                print(rows[-1], file=sys.stderr)
            return rows


def table(document: dict[str, Any]) -> str:
    peak = max(row["goodput"] for row in document["rows"])
    rows = [
        [
            str(row["clients"]),
            f"{row['goodput']:.1f}",
            f"{row['goodput'] / peak:.2f}",
            *(str(row["ended"].get(how, 0)) for how in ("whole", "cut")),
            str(sum(count for how, count in row["ended"].items() if how not in ("whole", "cut"))),
            *(f"{row['latency_s'].get(p, float('nan')):.1f}" for p in (50, 99)),
        ]
        for row in document["rows"]
    ]
    head = ["clients", "goodput, tokens/s", "of the peak", "whole answers", "cut by time", "errors", "p50 s", "p99 s"]
    return markdown_table(head, rows) + footing(document)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goodput", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=30.0, help="for each number of clients")
    parser.add_argument("--clients", nargs="+", type=int, default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of a whole answer")
    parser.add_argument("--time-limit", type=float, default=15.0, help="the server's, for an answer")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    base = sp.load_base("smollm2-135m", dtype=options.dtype, device="cpu")
    document = describe(NAME, arguments, base.device) | {"dtype": dtype_name(base.dtype)}
    document["rows"] = asyncio.run(run(base, options))
    write_results(options.out, NAME, document, table(document))
    print(table(document))


if __name__ == "__main__":
    main()
