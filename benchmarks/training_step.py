"""What a training step costs: softprompt against PEFT and against the plain concatenation, alternating in one process.

    python -m benchmarks.training_step [--quick]

On a CPU: SmolLM2-135M, in float32, and in bfloat16 where the machine multiplies it faster. On a GPU: SmolLM2-135M and
Llama shapes of 1B and 8B with random weights, in bfloat16, and PEFT by FlashAttention 2 too where it is installed; not
measured on a GPU yet. Owns the cases and the turns that the sides take. The steps are in `sides.py`, the memory in
`peak_memory.py`, the table and the plot in `step_report.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import softprompt as sp
from benchmarks import peak_memory
from benchmarks.measure import (
    RESULTS,
    default_device,
    describe,
    matmul_peak,
    seconds,
    useful_flops,
    write_results,
)
from benchmarks.movies import INIT_TEXT, load_movies, make_batches
from benchmarks.sides import FLASH, OURS, SHAPES, SIDES, Batch, Side, open_model
from benchmarks.step_report import plot, table
from softprompt.bases.base import dtype_name

# The widest batches decide the peak; after the second step the optimiser has its state, too.
_MEMORY_STEPS = 2
_NO_ROOM = "the device's memory does not hold it"


def distance(value: Tensor, expected: Tensor) -> float:
    """Relative distance."""
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def compare_gradients(sides: Mapping[str, Side], batch: Batch) -> dict[str, Any]:
    """Loss of each side and the relative distances between their gradients, before any step.

    PEFT's distance from the concatenation, which computes the same, shows what rounding alone makes of it.
    """
    found = {name: side.gradient(batch) for name, side in sides.items()}
    pairs = [(OURS, "peft"), (OURS, "concatenation"), ("peft", "concatenation")]
    return {
        "loss": {name: float(loss) for name, (loss, _) in found.items()},
        "gradient_difference": {f"{a}/{b}": distance(found[a][1], found[b][1]) for a, b in pairs},
    }


def compare_to_float32(model: PreTrainedModel, sides: Mapping[str, Side], batch: Batch) -> dict[str, float]:
    """The relative distance of each side's gradient to the concatenation's with the same weights in float32.

    Raises:
        OutOfMemoryError: the device does not hold these beside the rest.
    """
    prompt = sp.SoftPrompt(sides[OURS].prompt.detach().cpu())
    _, right = SIDES["concatenation"](copy.deepcopy(model).float(), prompt).gradient(batch)
    return {name: distance(side.gradient(batch)[1], right) for name, side in sides.items()}


def time_steps(sides: Mapping[str, Side], batches: Sequence[Batch]) -> dict[str, list[float]]:
    """Seconds of each side's step on each batch, the sides taking turns; the first batch is the warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for batch in batches:
        for name, side in sides.items():
            times[name].append(seconds(partial(side.step, batch), side.prompt.device))
    return {name: every[1:] for name, every in times.items()}


def measure_case(
    models: Mapping[str, PreTrainedModel], prompt: sp.SoftPrompt, batches: Sequence[Batch], peak: float
) -> dict[str, Any]:
    """Gradients, times and arithmetic of all sides with one prompt length and batch size.

    Args:
        models: each side's model.
        prompt: where every side starts from.
        batches: the warm-up's, then one for each round.
        peak: the machine's FLOP/s in matrix products.
    """
    device = models[OURS].device
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    sides = {name: SIDES[name.partition(",")[0]](model, prompt) for name, model in models.items()}
    case = compare_gradients(sides, batches[0])
    if device.type == "cuda":
        with suppress(torch.OutOfMemoryError):  # the weights in float32 are twice as large
            case["gradient_to_float32"] = compare_to_float32(models["concatenation"], sides, batches[0])
    times = time_steps(sides, batches)
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in batches[1:]]
    labels = [int((batch["labels"] != -100).sum()) for batch in batches[1:]]
    flops = [
        useful_flops(models[OURS], prompt.num_virtual_tokens, n, count)
        for n, count in zip(lengths, labels, strict=True)
    ]
    places = sum(batch["input_ids"].numel() for batch in batches[1:])
    case["tokens"] = median(map(sum, lengths))
    case["padding"] = 1 - sum(map(sum, lengths)) / places
    case["sides"] = {
        name: {
            "kernel": sides[name].kernel,
            "milliseconds": 1000 * median(every),
            "all_milliseconds": [1000 * t for t in every],
            "tokens_per_second": median(sum(n) / t for n, t in zip(lengths, every, strict=True)),
            "useful_gflops": (rate := median(f / t for f, t in zip(flops, every, strict=True))) / 1e9,
            "share_of_peak": rate / peak,
        }
        for name, every in times.items()
    }
    case["speed_ratio"] = {
        name: median(theirs / ours for theirs, ours in zip(every, times[OURS], strict=True))
        for name, every in times.items()
        if name != OURS
    }
    return case


def measure_memory(
    base: str, dtype: torch.dtype, device: torch.device, prompt: sp.SoftPrompt, batches: Sequence[Batch]
) -> dict[str, int]:
    """Peak bytes of each side in its own process, and of one that only loads the base."""
    widest = sorted(batches, key=lambda batch: batch["input_ids"].numel())[-_MEMORY_STEPS:]
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what this process keeps for later, the others could not have
    return {
        side: peak_memory.measure(side, base, dtype, device, prompt, widest)
        for side in (peak_memory.LOADED_ONLY, *SIDES)
    }


def measure_base(
    name: str,
    dtype: torch.dtype,
    tokenizer: Any,
    rows: Sequence[sp.Row],
    options: argparse.Namespace,
    document: dict[str, Any],
    keep: Callable[[], None],
) -> None:
    """Add one base's cases in one dtype to the document, calling `keep` after each."""
    label = f"{name} in {str(dtype).removeprefix('torch.')}"
    model = open_model(name, dtype, options.device)
    peak = matmul_peak(model, dtype)
    if dtype == torch.bfloat16 and options.dtype is None and options.device.type == "cpu":
        ratio = peak / matmul_peak(model, torch.float32)
        if ratio < 1:
            reason = f"this machine multiplies bfloat16 at {ratio:.2f} times its speed in float32"
            document["skipped"].append(f"{label}: {reason}; --dtype bfloat16 measures it all the same")
            return
    document["matmul_peak_gflops"][label] = peak / 1e9
    untouched = copy.deepcopy(model)  # PEFT and the concatenation run on a model that softprompt has not prepared
    models = {OURS: model} | dict.fromkeys([side for side in SIDES if side != OURS], untouched)
    if options.device.type == "cuda" and dtype != torch.float32 and find_spec("flash_attn") is not None:
        models[FLASH] = copy.deepcopy(untouched)
        models[FLASH].set_attn_implementation("flash_attention_2")
    base = sp.Base(model, tokenizer, name)
    for length in options.prompt_lengths:
        prompt = sp.SoftPrompt.from_text(base, INIT_TEXT, length)
        for size, tokens in product(options.batch_sizes, options.text_lengths or [None]):
            where = f"{label}, P={length}, B={size}" + ("" if tokens is None else f", T={tokens}")
            print(f"{where} ...", file=sys.stderr)
            batches = make_batches(base, rows, size, options.rounds + 1, tokens)
            case = {"base": name, "dtype": dtype_name(dtype), "P": length, "B": size, "T": tokens}
            try:
                case |= measure_case(models, prompt, batches, peak)
            except torch.OutOfMemoryError:
                document["skipped"].append(f"{where}: {_NO_ROOM}")
                continue
            if size == min(options.batch_sizes) and options.memory:
                try:
                    case["peak_memory_bytes"] = measure_memory(name, dtype, options.device, prompt, batches)
                except peak_memory.FailedError as error:
                    document["skipped"].append(f"{where}: {error}")
            times = ", ".join(f"{side} {took['milliseconds']:.0f} ms" for side, took in case["sides"].items())
            print(f"  {times}", file=sys.stderr)
            document["cases"].append(case)
            keep()


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="P=20, B=16 and 5 rounds only; results are written as *_quick")
    add("--rounds", type=_count, help="steps of each side in each case (default 7, with --quick 5)")
    add("--base", nargs="+", help=f"what load_base takes, or a shape: {', '.join(SHAPES)}")
    add("--dtype", nargs="+", choices=["float32", "bfloat16"], help="even where the machine is slow in it")
    add("--prompt-lengths", nargs="+", type=_count, metavar="P", help="default 8 20 100")
    add(
        "--batch-sizes",
        nargs="+",
        type=_count,
        metavar="B",
        help="default 16 32, on a GPU 16 64; memory is measured at the smallest",
    )
    add(
        "--text-lengths",
        nargs="+",
        type=_count,
        metavar="T",
        help="tokens of a text; default: the films' own, on a GPU 32 256 1024",
    )
    add("--no-memory", dest="memory", action="store_false", help="leave out the processes that measure memory")
    add("--device", type=torch.device, default=default_device(), help="default: a GPU where there is one")
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    add("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    on_gpu = options.device.type == "cuda"
    options.rounds = options.rounds or (5 if options.quick else 7)
    options.base = options.base or ["smollm2-135m", *(["llama-1b", "llama-8b"] if on_gpu else [])]
    options.prompt_lengths = options.prompt_lengths or ([20] if options.quick else [8, 20, 100])
    options.batch_sizes = options.batch_sizes or ([16] if options.quick else [16, 64] if on_gpu else [16, 32])
    if on_gpu and not options.quick:
        options.text_lengths = options.text_lengths or [32, 256, 1024]
    options.name = "training_step" + ("_cuda" if on_gpu else "") + ("_quick" if options.quick else "")
    return options


def main(arguments: Sequence[str] = tuple(sys.argv[1:]), rows: Sequence[sp.Row] | None = None) -> None:
    options = parse(arguments)
    rows = load_movies() if rows is None else rows
    document: dict[str, Any] = describe("training_step", arguments, options.device)
    document |= {"rounds": options.rounds, "matmul_peak_gflops": {}, "skipped": [], "cases": []}

    def keep() -> None:
        write_results(options.out, options.name, document, table(document))

    dtypes = options.dtype or (["bfloat16"] if options.device.type == "cuda" else ["float32", "bfloat16"])
    for name in options.base:
        # Random weights have no tokenizer; any real one gives texts of real lengths.
        tokenizer = sp.load_base("smollm2-135m" if name in SHAPES else name, device="cpu").tokenizer
        for dtype in dtypes:
            try:
                measure_base(name, getattr(torch, dtype), tokenizer, rows, options, document, keep)
            except torch.OutOfMemoryError:
                document["skipped"].append(f"{name} in {dtype}: {_NO_ROOM}")
    keep()
    if document["cases"]:
        plot(document, options.out / f"{options.name}.svg")
    print(json.dumps(document, indent=1) if options.json else table(document))


if __name__ == "__main__":
    main()
