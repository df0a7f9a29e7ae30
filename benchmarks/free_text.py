"""What free text costs behind a long prompt: `predict`, against PEFT, which takes the prompt along in every row.

    python -m benchmarks.free_text [--rows 64] [--virtual-tokens 100] [--new-tokens 32] [--rounds 3]

The same rows, the same number of new tokens, greedy, in one process, the two taking turns; PEFT's `generate` in batches
of 16 padded at the left. `predict` computes the prompt once a batch and keeps its keys and values, as the server does.

Owns the rows and the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model

import softprompt as sp
from benchmarks.measure import RESULTS, describe, footing, markdown_table, write_results
from benchmarks.movies import load_movies
from softprompt.models.generation import generate

NAME = "free_text"
_BATCH = 16


def measure(dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both for all rows, and in how many rows they say the same."""
    base = sp.load_base("smollm2-135m", dtype=dtype, device="cpu")
    prompt = sp.SoftPrompt.random(base, options.virtual_tokens)
    texts = [base.tokenizer(row.columns["text"])["input_ids"] for row in load_movies()[: options.rows]]
    model = sp.PromptedModel(base, [prompt])
    other = sp.load_base("smollm2-135m", dtype=dtype, device="cpu").model
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=options.virtual_tokens)
    wrapped: Any = get_peft_model(other, config).eval()
    wrapped.prompt_encoder["default"].embedding.weight.data.copy_(prompt.embeddings)

    def ours() -> list[list[int]]:
        return generate(model, texts, max_new_tokens=options.new_tokens, ends=())

    @torch.no_grad()
    def theirs() -> list[list[int]]:
        found = []
        for start in range(0, len(texts), _BATCH):
            some = texts[start : start + _BATCH]
            width = max(map(len, some))
            ids = torch.tensor([[0] * (width - len(text)) + text for text in some])
            mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in some])
            given = wrapped.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=options.new_tokens,
                min_new_tokens=options.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            found += given[:, width:].tolist()
        return found

    times: dict[str, list[float]] = {"softprompt": [], "peft": []}
    same = 0
    for i in range(options.rounds + 1):  # the first is the warm-up
        answers: dict[str, list[list[int]]] = {}
        for side, work in (("softprompt", ours), ("peft", theirs)):
            start = time.perf_counter()
            answers[side] = work()
            times[side] += [time.perf_counter() - start] if i else []
        same = sum(one == another for one, another in zip(*answers.values(), strict=True))
    return {
        "dtype": dtype,
        "seconds": {side: median(every) for side, every in times.items()},
        "all": times,
        "ratio": median(b / a for a, b in zip(*times.values(), strict=True)),
        "same_answers": [same, len(texts)],
    }


def table(document: dict[str, Any]) -> str:
    rows = [
        [
            case["dtype"],
            f"{case['seconds']['softprompt']:.1f}",
            f"{case['seconds']['peft']:.1f}",
            f"{case['ratio']:.1f}",
            "{} of {}".format(*case["same_answers"]),
        ]
        for case in document["cases"]
    ]
    return markdown_table(["dtype", "softprompt, s", "PEFT, s", "times", "same answers"], rows) + footing(document)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.free_text", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--virtual-tokens", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    document = describe(NAME, arguments, torch.device("cpu")) | {"cases": []}
    for dtype in options.dtype:
        document["cases"].append(measure(dtype, options))
        print(document["cases"][-1], file=sys.stderr)
        write_results(options.out, NAME, document, table(document))
    print(table(document))


if __name__ == "__main__":
    main()
