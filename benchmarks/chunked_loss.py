"""Peak memory of a training step's loss over a large vocabulary, taken in chunks and in one piece.

    python -m benchmarks.chunked_loss [--vocabulary 131072 262144] [--labels 1024]

A tiny Llama, so that the logits are nearly all there is. The chunks are `PromptedModel`'s own; for one piece their size
is set to any number. Each peak is a process's of its own, beside that of one which makes the model and takes no step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import softprompt as sp
from benchmarks.measure import RESULTS, default_device, describe, footing, markdown_table, write_results
from softprompt.comparison.measuring import peak_memory
from softprompt.models import prompted

WAYS = ("no step", "chunks", "one piece")
ROWS = 8


def step(way: str, vocabulary: int, labels: int, device: torch.device) -> dict[str, Any]:
    """Peak bytes of this process after a step, its loss and the prompt's gradient."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    tokenizer: Any = None  # nothing is encoded
    base = sp.Base(LlamaForCausalLM(config).to(device), tokenizer, "tiny")
    model = sp.PromptedModel(base, [sp.SoftPrompt(torch.randn(20, 64))])
    found: dict[str, Any] = {}
    if way != "no step":
        if way == "one piece":
            prompted._MOST_LOGITS = vocabulary * labels
        ids = torch.randint(0, vocabulary, (labels,))
        lengths = torch.full((ROWS,), labels // ROWS)
        loss = model(ids, labels=ids, lengths=lengths).loss
        loss.backward()
        found = {"loss": loss.item(), "gradient": model.prompts[0].grad.flatten()[:8].tolist()}
    return {"peak_bytes": peak_memory(device), **found}


def table(document: dict[str, Any]) -> str:
    head = ["vocabulary, labels", *(f"{way}, MB" for way in WAYS), "of one piece's"]
    rows = []
    for case in document["cases"]:
        peaks = [case[way]["peak_bytes"] for way in WAYS]
        share = (peaks[1] - peaks[0]) / (peaks[2] - peaks[0])
        numbers = [f"{peak / 1e6:.0f}" for peak in peaks]
        rows.append([f"{case['vocabulary']:,}, {case['labels']:,}", *numbers, f"{share:.2f}"])
    return markdown_table(head, rows) + footing(document)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunked_loss", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--vocabulary", nargs="+", type=int, default=[131072, 262144])
    add("--labels", type=int, default=1024, help=f"label tokens of a step, a multiple of {ROWS}")
    add("--device", type=torch.device, default=default_device(), help="default: a GPU where there is one")
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    add("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(step(options.way, options.vocabulary[0], options.labels, options.device)))
        return
    document = describe("chunked_loss", arguments, options.device) | {"cases": []}
    for vocabulary in options.vocabulary:
        case: dict[str, Any] = {"vocabulary": vocabulary, "labels": options.labels}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.chunked_loss", "--way", way, "--vocabulary", str(vocabulary)]
            command += ["--labels", str(options.labels), "--device", str(options.device)]
            case[way] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        document["cases"].append(case)
    name = "chunked_loss" + ("_cuda" if options.device.type == "cuda" else "")
    write_results(options.out, name, document, table(document))
    print(table(document))


if __name__ == "__main__":
    main()
