"""Rows a second and memory of `softprompt predict` on a Parquet file, for a tenth of the rows and for all of them.

    python -m benchmarks.batch [--rows 20000] [--ray local] [--workers N] [--base FOLDER] [--dtype float32]

The base is a tiny GPT-2 with few tokens: what is measured is all that surrounds a base, reading, encoding, packing,
writing. Memory is the most that the command's process held; with `--ray` the workers' is not in it. That it is the
same for ten times the rows is the point. Each run is a process of its own; its time has the imports in it, which the
rate leaves out: rows are counted from the first answer on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import softprompt as sp
from benchmarks.measure import default_device, describe
from benchmarks.soak import TASK

_WORDS = ("a joy to watch", "never again", "so so", "the plot is thin, the players are not", "dull", "bright and funny")


def write_rows(path: Path, count: int) -> None:
    """A Parquet file of `count` texts, in one row group."""
    import pyarrow
    import pyarrow.parquet

    texts = [f"{i}: {_WORDS[i % len(_WORDS)]}, {_WORDS[i % 5]}" for i in range(count)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=count)


def make_base(folder: Path) -> None:
    """A random GPT-2 of two layers and 64 features, whose 512 tokens fit the rows."""
    splitter = ByteLevelBPETokenizer()
    splitter.train_from_iterator(_WORDS, vocab_size=512, min_frequency=1, special_tokens=["<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitter._tokenizer, eos_token="<eos>")
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    GPT2LMHeadModel(GPT2Config(vocab_size=512, bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(command: Sequence[str], output: Path) -> dict[str, Any]:
    """Run a command that writes `output`: its seconds, its peak memory in MiB and its rows a second.

    Raises:
        SystemExit: it fails.
    """
    begun_file = output.with_name(f".{output.name}.part")
    begun, first, peak = time.perf_counter(), 0.0, 0
    process = subprocess.Popen([sys.executable, "-m", "softprompt.cli", *command, "--json"], stdout=subprocess.PIPE)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.Error:
            break
        if not first and begun_file.exists() and begun_file.stat().st_size > 200:
            first = time.perf_counter()
        time.sleep(0.02)
    printed = process.communicate()[0]
    end = time.perf_counter()
    if process.returncode:
        raise SystemExit(process.returncode)
    rows = int(json.loads(printed)["rows"])
    return {
        "rows": rows,
        "seconds": round(end - begun, 1),
        "rows_per_second": round(rows / (end - (first or begun))),
        "peak_mib": round(peak / 2**20),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--base", help="a folder; default: the tiny one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ray", help="as `predict --ray`")
    parser.add_argument("--workers", help="as `predict --workers`")
    options = parser.parse_args(arguments)
    print(json.dumps(describe("batch", arguments, default_device())), flush=True)
    more = [word for name in ("ray", "workers") if (value := getattr(options, name)) for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.base is None:
            make_base(folder / "base")
        place = options.base or str(folder / "base")
        prompt = sp.SoftPrompt.random(sp.load_base(place, dtype=options.dtype), 8, seed=0)
        card = prompt.card.replace(task=TASK.model_dump(), sha256="")
        sp.SoftPrompt(prompt.embeddings, card).save(folder / "prompt")
        for count in (max(1, options.rows // 10), options.rows):
            write_rows(folder / "in.parquet", count)
            output = folder / f"out-{count}.parquet"
            words = ["predict", str(folder / "prompt"), "--input", str(folder / "in.parquet"), "--output", str(output)]
            base_words = ["--base", place, "--dtype", options.dtype]
            print(json.dumps(measure([*words, *base_words, *more], output)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
