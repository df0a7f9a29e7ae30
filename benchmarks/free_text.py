"""What free text costs behind a long prompt: `predict`, against the concatenation, which has the prompt in every row.

    python -m benchmarks.free_text [--dtype float32] [--sides softprompt concatenation peft] [--rows 64]
                                   [--virtual-tokens 100] [--new-tokens 32] [--rounds 1]

The same rows, the same number of new tokens, greedy, in one process, the sides taking turns after a short warm-up. The
concatenation is Transformers' `generate` of `[prompt | text]` as embeddings, in batches of 16 padded at the left, and
PEFT its own `generate` on the same batches. With Transformers 5 PEFT 0.21 puts the prompt before every new token too,
which takes minutes and gives other answers: it is left out unless it is named.

Owns the rows and the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
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
    """Seconds of each side for all rows, and in how many rows it says what the first one says."""
    base = sp.load_base("smollm2-135m", dtype=dtype, device="cpu")
    prompt = sp.SoftPrompt.random(base, options.virtual_tokens)
    texts = [base.tokenizer(row.columns["text"])["input_ids"] for row in load_movies()[: options.rows]]
    model = sp.PromptedModel(base, [prompt])

    def ours(texts: list[list[int]], new_tokens: int) -> list[list[int]]:
        return generate(model, texts, max_new_tokens=new_tokens, ends=())

    def concatenation(texts: list[list[int]], new_tokens: int) -> list[list[int]]:
        def generate(ids: torch.Tensor, mask: torch.Tensor, **settings: Any) -> torch.Tensor:
            words = base.embed(ids).to(base.dtype)
            rows = torch.cat([prompt.embeddings.to(base.dtype).expand(len(ids), -1, -1), words], 1)
            mask = torch.cat([mask.new_ones(len(ids), prompt.num_virtual_tokens), mask], 1)
            model: Any = base.model
            found: torch.Tensor = model.generate(inputs_embeds=rows, attention_mask=mask, **settings)
            return found

        return _in_batches(texts, new_tokens, generate)

    def peft(texts: list[list[int]], new_tokens: int) -> list[list[int]]:
        def generate(ids: torch.Tensor, mask: torch.Tensor, **settings: Any) -> torch.Tensor:
            found: torch.Tensor = wrapped.generate(input_ids=ids, attention_mask=mask, **settings)
            return found[:, ids.shape[1] :]

        return _in_batches(texts, new_tokens, generate)

    if "peft" in options.sides:
        other = sp.load_base("smollm2-135m", dtype=dtype, device="cpu").model
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=options.virtual_tokens)
        wrapped: Any = get_peft_model(other, config).eval()
        wrapped.prompt_encoder["default"].embedding.weight.data.copy_(prompt.embeddings)
    works = {"softprompt": ours, "concatenation": concatenation, "peft": peft}
    times: dict[str, list[float]] = {side: [] for side in options.sides}
    answers: dict[str, list[list[int]]] = {}
    for i in range(options.rounds + 1):  # the first is the warm-up
        for side in options.sides:
            start = time.perf_counter()
            answers[side] = works[side](texts, options.new_tokens) if i else works[side](texts[:4], 2)
            times[side] += [time.perf_counter() - start] if i else []
    first = next(iter(answers.values()))
    return {
        "dtype": dtype,
        "rows": len(texts),
        "virtual_tokens": options.virtual_tokens,
        "new_tokens": options.new_tokens,
        "seconds": {side: median(every) for side, every in times.items()},
        "all": times,
        "as_the_first": {
            side: sum(a == b for a, b in zip(first, every, strict=True)) for side, every in answers.items()
        },
    }


@torch.no_grad()
def _in_batches(texts: list[list[int]], new_tokens: int, generate: Callable[..., torch.Tensor]) -> list[list[int]]:
    """The new tokens of each text, the texts padded at the left."""
    found = []
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    for start in range(0, len(texts), _BATCH):
        some = texts[start : start + _BATCH]
        width = max(map(len, some))
        ids = torch.tensor([[0] * (width - len(text)) + text for text in some])
        mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in some])
        found += generate(ids, mask, **settings).tolist()
    return found


def table(document: dict[str, Any]) -> str:
    rows = [
        [
            case["dtype"],
            f"{case['rows']} x {case['new_tokens']}",
            side,
            f"{seconds:.1f}",
            f"{seconds / next(iter(case['seconds'].values())):.1f}",
            f"{case['as_the_first'][side]} of {case['rows']}",
        ]
        for case in document["cases"]
        for side, seconds in case["seconds"].items()
    ]
    return markdown_table(["dtype", "rows x new tokens", "", "s", "times", "same answers"], rows) + footing(document)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.free_text", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    sides = ["softprompt", "concatenation", "peft"]
    parser.add_argument("--sides", nargs="+", choices=sides, default=sides[:2], help="default: the first two")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--virtual-tokens", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="default: float32")
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
