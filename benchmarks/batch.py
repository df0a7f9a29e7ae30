"""Rows a second and memory of `softprompt predict` on a Parquet file, for a tenth of the rows and for all of them.

    python -m benchmarks.batch [--rows 20000] [--ray local] [--workers N] [--base FOLDER] [--dtype float32]

The base is the soak test's tiny GPT-2: what is measured is all that surrounds a base, reading, encoding, packing,
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

import softprompt as sp
from benchmarks.measure import default_device, describe
from benchmarks.soak import TASK, make_installation

_WORDS = ("a joy to watch", "never again", "so so", "the plot is thin, the players are not", "dull", "bright and funny")


def write_rows(path: Path, count: int) -> None:
    """A Parquet file of `count` texts, in one row group."""
    import pyarrow
    import pyarrow.parquet

    texts = [f"{i}: {_WORDS[i % len(_WORDS)]}, {_WORDS[i % 5]}" for i in range(count)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=count)


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
            make_installation(folder)
        else:
            base = sp.load_base(options.base)
            prompt = sp.SoftPrompt.random(base, 8, seed=0)
            card = prompt.card.replace(task=TASK.model_dump(), sha256="")
            sp.PromptLibrary(folder / "library").add("red", sp.SoftPrompt(prompt.embeddings, card))
        prompt_folder = sp.PromptLibrary(folder / "library").entry("red").path
        for count in (max(1, options.rows // 10), options.rows):
            write_rows(folder / "in.parquet", count)
            output = folder / f"out-{count}.parquet"
            words = ["predict", str(prompt_folder), "--input", str(folder / "in.parquet"), "--output", str(output)]
            base_words = ["--base", options.base or str(folder / "base"), "--dtype", options.dtype]
            print(json.dumps(measure([*words, *base_words, *more], output)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
