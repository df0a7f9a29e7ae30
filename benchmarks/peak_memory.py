"""The peak memory of a few training steps by one side, in a process of its own.

`measure` starts the process, `main` is what runs in it. Knows nothing of clocks or tables.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import softprompt as sp
from benchmarks.sides import SIDES, Batch, open_model
from softprompt.bases.base import dtype_name
from softprompt.comparison.measuring import peak_memory

LOADED_ONLY = "loaded_only"


class FailedError(RuntimeError):
    """The process ended without an answer."""


def measure(
    side: str,
    base: str,
    dtype: torch.dtype,
    device: torch.device,
    prompt: sp.SoftPrompt,
    batches: Sequence[Batch],
) -> int:
    """The peak in bytes of a new process that loads the base and takes a step on each batch.

    The side `LOADED_ONLY` reads the weights and takes no step.

    Raises:
        FailedError: the process failed, out of memory for one; with its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "steps.pt")
        torch.save({"prompt": prompt.embeddings, "batches": list(batches)}, file)
        root = str(Path(__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "benchmarks.peak_memory", side, base, str(file)]
        command += ["--dtype", dtype_name(dtype), "--device", str(device)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        words = run.stderr.strip().splitlines() or ["no message"]
        raise FailedError(f"peak memory of {side}: exit {run.returncode}, {words[-1]}")
    return int(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=[LOADED_ONLY, *SIDES])
    parser.add_argument("base")
    parser.add_argument("steps", type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    steps = torch.load(options.steps, weights_only=True)
    model = open_model(options.base, getattr(torch, options.dtype), device)
    for weight in model.parameters():  # a file's weights come into memory when they are first read
        weight.sum()
    if options.side != LOADED_ONLY:
        side = SIDES[options.side](model, sp.SoftPrompt(steps["prompt"]))
        for batch in steps["batches"]:
            side.step({name: value.to(device) for name, value in batch.items()})
    print(peak_memory(device))


if __name__ == "__main__":
    main()
