"""How far rounding takes a prompt's gradient: by the packed row, and by the plain concatenation, in each dtype.

    python -m benchmarks.gradients [--base smollm2-135m] [--dtype float32 bfloat16 float16] [--seeds 3]

Tiny random models of eight families and a real base. The reference has the same weights, rounded to the dtype, in
float64 (the real base's in float32, for which float32 itself is not measured). Owns the families, the batches and the
table. A distance is that of the gradients, relative to the reference's, the root of the mean square over the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

import softprompt as sp
from benchmarks.measure import RESULTS, default_device, describe, footing, markdown_table, write_results
from softprompt.bases.base import dtype_name

# By what more the packed row's distance may be than the concatenation's.
MOST = 1.5
VOCABULARY, WIDTH, PROMPT_LENGTH, LENGTHS = 512, 64, 20, (12, 37, 25, 1, 18, 30, 22, 16)

_size = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
_ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_usual = {**_size, **_ids, "intermediate_size": 128, "max_position_embeddings": 128}
_grouped = {**_usual, "num_key_value_heads": 2, "head_dim": 16}
_gpt2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 4, "n_head": 4, "n_positions": 128, **_ids}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**_grouped),
    "qwen2": lambda: tf.Qwen2Config(**_grouped),
    "qwen3": lambda: tf.Qwen3Config(**_grouped),
    "gemma": lambda: tf.GemmaConfig(**_grouped),
    "gemma3": lambda: tf.Gemma3TextConfig(**_grouped, query_pre_attn_scalar=16, sliding_window=16),
    "mistral": lambda: tf.MistralConfig(**_grouped, sliding_window=16),
    "gpt2": lambda: tf.GPT2Config(**_gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "phi": lambda: tf.PhiConfig(**_usual),
}


def make_model(family: str) -> PreTrainedModel:
    """A random model of the family, with weights wide enough that attention decides the answer."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family]())
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.2)
    return model.eval().requires_grad_(False)


def gradient(model: PreTrainedModel, seed: int, route: str) -> Tensor:
    """`[P, H]` in float64 on the CPU, of a batch that the seed draws."""
    generator = torch.Generator().manual_seed(seed)
    count = model.config.get_text_config().vocab_size
    ids = torch.randint(0, count, (sum(LENGTHS),), generator=generator)
    pairs = torch.randint(0, count, (2, PROMPT_LENGTH), generator=generator).to(model.device)
    vectors = model.get_input_embeddings()(pairs).detach().float().mean(0)  # no words, but as long as words
    tokenizer: Any = None  # nothing is encoded
    base = sp.Base(model, tokenizer, "gradients")
    prompted = sp.PromptedModel(base, [sp.SoftPrompt(vectors.cpu())], route=route)
    loss = prompted(ids, labels=ids, lengths=torch.tensor(LENGTHS)).loss
    (found,) = torch.autograd.grad(loss, prompted.prompts[0])
    return found.double().cpu()


def measure(model: PreTrainedModel, reference: PreTrainedModel, seeds: int) -> dict[str, Any]:
    """The distances of both routes over the seeds, and their ratio; or why the packed route is not taken."""
    found: dict[str, list[float]] = {"concatenated": [], "packed": []}
    for seed in range(seeds):
        right = gradient(reference, seed, "concatenated")
        for route, distances in found.items():
            try:
                ours = gradient(model, seed, route)
            except sp.SoftPromptError as error:
                return {"refused": str(error)}
            distances.append(float((ours - right).norm() / right.norm()))
    both = {route: float(torch.tensor(every).square().mean().sqrt()) for route, every in found.items()}
    return {"distances": found, **both, "ratio": both["packed"] / both["concatenated"]}


def table(document: dict[str, Any]) -> str:
    head = ["model", "dtype", "concatenated", "packed", "packed / concatenated"]
    rows, refused = [], []
    for case in document["cases"]:
        if "refused" in case:
            refused.append(f"\n{case['model']} in {case['dtype']}: {case['refused']}\n")
            continue
        numbers = f"{case['concatenated']:.1e}", f"{case['packed']:.1e}", f"{case['ratio']:.2f}"
        rows.append([case["model"], case["dtype"], *numbers])
    beyond = [f"{row[0]} in {row[1]}" for row in rows if float(row[4]) > MOST]
    verdict = f"More than {MOST} times the concatenation's: {', '.join(beyond) or 'none'}.\n"
    return markdown_table(head, rows) + "\n" + verdict + "".join(refused) + footing(document)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--base", nargs="*", default=["smollm2-135m"], help="real bases beside the tiny models; none without a name")
    add("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    add("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32", "bfloat16", "float16"])
    add("--seeds", type=int, default=3, help="batches and prompts for each model and dtype")
    add("--device", type=torch.device, default=default_device(), help="default: a GPU where there is one")
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    add("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    document = describe("gradients", arguments, options.device) | {"P": PROMPT_LENGTH, "T": LENGTHS, "cases": []}
    name = "gradients" + ("_cuda" if options.device.type == "cuda" else "")

    def keep(model: str, dtype: torch.dtype, found: dict[str, Any]) -> None:
        document["cases"].append({"model": model, "dtype": dtype_name(dtype), **found})
        write_results(options.out, name, document, table(document))

    for family in options.families:
        for dtype in (getattr(torch, one) for one in options.dtype):
            model = make_model(family).to(options.device, dtype)
            reference = make_model(family).to(options.device, dtype).double()
            keep(f"{family}, tiny", dtype, measure(model, reference, options.seeds))
    for base in options.base:
        for dtype in (getattr(torch, one) for one in options.dtype if one != "float32"):
            model = sp.load_base(base, dtype=dtype, device=options.device).model
            reference = sp.load_base(base, dtype=dtype, device=options.device).model.float()
            keep(base, dtype, measure(model, reference, options.seeds))
    print(json.dumps(document, indent=1) if options.json else table(document))


if __name__ == "__main__":
    main()
