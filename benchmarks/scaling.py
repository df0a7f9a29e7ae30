"""Several processes that train one prompt: bytes and seconds a step here, and a model of many machines held against it.

    python -m benchmarks.scaling [--processes 1 2 4] [--steps 6] [--rows 4] [--base smollm2-135m]

Each process has `--rows` rows a step, a thread of its own and, unless the base is spread, the whole base. Bytes are
what a process's TCP sockets have sent, as Linux counts them (TCP_INFO); seconds are medians; memory is the peak of a
process (VmHWM). The model: an all-reduce of S bytes over n machines takes the shorter of a ring's
2(n-1) * latency + 2(n-1)/n * S / bandwidth and a tree's 2 log2(n) * (latency + S / bandwidth); a step of n machines is
one machine's and that, nothing overlapping. A spread base's layers are gathered twice, forwards and backwards.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import softprompt as sp
from benchmarks.measure import RESULTS, describe, footing, markdown_table, seconds, write_results
from benchmarks.movies import INIT_TEXT, TASK, load_movies, make_batches
from softprompt.training import processes

_TOKENS, _WARM_UP = 20, 2
_SIZES = (4 << 10, 46_080, 1_843_200, 32 << 20)  # of all-reduces: the model is fitted to the first and the last
_MACHINES, _GBIT, _LATENCY, _FASTER = 1000, (1, 25), 50e-6, 100  # assumed
_STEPS_OF_A_PROMPT = 240  # the recipe's default
_BYTES_SENT = 200  # where `tcpi_bytes_sent` stands in Linux' struct tcp_info


def bytes_sent() -> int:
    """What this process's TCP connections have sent so far."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("<Q", info, _BYTES_SENT)[0]
        except OSError:  # closed since it was listed
            continue
    return total


class Steps(TrainerCallback):
    """Seconds and bytes of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.sent: list[int] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began, self._before = time.perf_counter(), bytes_sent()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self.sent.append(bytes_sent() - self._before)


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def all_reduce(size: int) -> float:
    """Median seconds of an all-reduce of so many bytes, all processes beginning together."""
    tensor, times = torch.zeros(size // 4), []
    for _ in range(7):
        dist.barrier()
        times.append(seconds(partial(dist.all_reduce, tensor), tensor.device))
    return median(times[_WARM_UP:])


def work(options: argparse.Namespace, rows: Sequence[sp.Row]) -> None:
    """One process's part: train, and leave what was measured in a file."""
    processes.start(torch.device("cpu"))
    imported = peak_memory()
    base = sp.load_base(options.base, dtype="float32", device="cpu", mesh=processes.mesh())
    loaded, clock = peak_memory(), Steps()
    count = processes.count()
    recipe = sp.Recipe(
        max_steps=options.steps + _WARM_UP, batch_size=options.rows * count, save_every=10**6, monitor=False
    )
    prompt = sp.SoftPrompt.from_text(base, INIT_TEXT, _TOKENS)
    sp.train(base, prompt, TASK, train=rows, recipe=recipe, callbacks=[clock])
    found = {
        "step_seconds": median(clock.seconds[_WARM_UP:]),
        "bytes_a_step": median(clock.sent[_WARM_UP:]),
        "bytes_before_the_first_step": bytes_sent() - sum(clock.sent),
        "peak_memory": {"imported": imported, "loaded": loaded, "trained": peak_memory()},
        "gathered": sum(4 * one.numel() for one in base.model.parameters() if isinstance(one, DTensor)),
        "all_reduce": {size: all_reduce(size) for size in _SIZES} if count > 1 and not base.sharded else {},
    }
    (options.worker / f"{processes.rank()}.json").write_text(json.dumps(found), encoding="utf-8")


def measure(count: int, spread: bool, options: argparse.Namespace) -> dict[str, Any]:
    """What so many processes have measured: the slowest's and the largest's figures."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"]
        command += ["-m", "benchmarks.scaling", "--worker", folder, "--base", options.base]
        command += ["--steps", str(options.steps), "--rows", str(options.rows)]
        asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if spread else {}
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | asked, check=True)
        every = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).iterdir())]
    memory = {key: max(one["peak_memory"][key] for one in every) for key in every[0]["peak_memory"]}
    slowest = {key: max(one[key] for one in every) for key in ("step_seconds", "bytes_a_step")}
    return {
        "processes": count,
        "spread": spread,
        **slowest,
        "peak_memory": memory,
        "all_reduce": every[0]["all_reduce"],
        "gathered": every[0]["gathered"],
    }


def fine_tuning(options: argparse.Namespace, rows: Sequence[sp.Row]) -> dict[str, dict[str, float]]:
    """Bytes of the gradients and seconds a step of LoRA (rank 8, queries and values) and of all weights, alone."""
    torch.set_num_threads(1)
    found = {}
    for name in ("lora", "full"):
        base = sp.load_base(options.base, dtype="float32", device="cpu")
        batches, model = make_batches(base, rows, options.rows, options.steps + _WARM_UP), base.model
        if name == "lora":
            model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        else:
            model.requires_grad_(True)
        trained = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5)

        def step(batch: Any, model: Any = model, optimizer: Any = optimizer) -> None:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        times = [seconds(partial(step, batch), base.device) for batch in batches]
        found[name] = {"bytes": 4 * sum(map(torch.numel, trained)), "step_seconds": median(times[_WARM_UP:])}
    return found


def predicted(n: int, size: float, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of `size` bytes over n machines; see the module."""
    ring = 2 * (n - 1) * latency + 2 * (n - 1) / n * size / bandwidth
    return min(ring, 2 * math.log2(n) * (latency + size / bandwidth))


def model(document: dict[str, Any]) -> None:
    """Add to what was measured what the model says of it, and of many machines."""
    for run in document["runs"]:
        n, share = run["processes"], 2 * (run["processes"] - 1) / run["processes"]
        run["model"] = {"bytes": share * (document["methods"]["prompt"]["bytes"] + run["gathered"])}
        times = {int(size): took for size, took in run["all_reduce"].items()}
        if times:
            small, *between, large = sorted(times)
            bandwidth = share * (large - small) / (times[large] - times[small])
            latency = (times[small] - share * small / bandwidth) / (2 * (n - 1))
            ring = {str(size): 2 * (n - 1) * latency + share * size / bandwidth for size in between}
            run["model"] |= {"bandwidth": bandwidth, "latency": latency, "all_reduce": ring}
    document["machines"] = []
    for name, method in document["methods"].items():
        for gbit in _GBIT:
            for faster in (1, _FASTER):
                step = method["step_seconds"] / faster
                network = predicted(_MACHINES, method["bytes"], gbit * 1e9 / 8, _LATENCY)
                one = {"method": name, "gbit": gbit, "faster": faster, "step_seconds": step, "network": network}
                document["machines"].append(one | {"efficiency": step / (step + network)})
    day = 86_400 / (_STEPS_OF_A_PROMPT * document["methods"]["prompt"]["step_seconds"])
    document["prompts_a_day"] = {"measured step": day, f"a device {_FASTER} times as fast (assumed)": _FASTER * day}


def table(document: dict[str, Any]) -> str:
    """All of it as Markdown."""
    alone, mib = document["runs"][0]["step_seconds"], 1 << 20
    here, memory, reduced = [], [], []
    for run in document["runs"]:
        n, name = run["processes"], f"{run['processes']}{', base spread' if run['spread'] else ''}"
        step = f"{1000 * run['step_seconds']:,.0f}"
        sent = [f"{run['bytes_a_step']:,.0f}", f"{run['model']['bytes']:,.0f}"]
        here.append([name, *sent, step, f"{alone / run['step_seconds']:.2f}"])
        memory.append([name, *(f"{run['peak_memory'][key] / mib:,.0f}" for key in ("imported", "loaded", "trained"))])
        for size, took in run["all_reduce"].items():
            ring = run["model"]["all_reduce"].get(size)
            told = "fitted" if ring is None else f"{1000 * ring:.2f}"
            reduced.append([str(n), f"{int(size):,}", f"{1000 * took:.2f}", told])
    many = [
        [
            f"{one['method']}, {one['gbit']} Gbit",
            f"{document['methods'][one['method']]['bytes']:,.0f}",
            f"{1000 * one['step_seconds']:,.1f}",
            f"{1000 * one['network']:,.1f}",
            f"{one['efficiency']:.1%}",
        ]
        for one in document["machines"]
    ]
    days = "; ".join(f"{name}: {count:,.1f}" for name, count in document["prompts_a_day"].items())
    cores, load = document["machine"]["cores"], document["load_average_at_start"][0]
    return "\n".join(
        [
            f"{document['rows']} rows a process and step, {_TOKENS} virtual tokens, a thread a process; {cores} cores, "
            f"load average {load} at the start: with more processes than free cores, efficiency is the cores' and not "
            "the network's.\n",
            markdown_table(["processes", "bytes sent a step", "model", "ms a step", "efficiency"], here),
            "Peak memory of a process in MiB (pages of the base's file that it has mapped are counted in):\n",
            markdown_table(["processes", "imported", "base loaded", "trained"], memory),
            "All-reduces over the loopback; latency and bandwidth are fitted to the smallest and the largest:\n",
            markdown_table(["processes", "bytes", "ms measured", "ms by the model"], reduced),
            f"{_MACHINES:,} machines by the model. Assumed: {1e6 * _LATENCY:.0f} microseconds a hop, float32 "
            f"gradients, nothing overlaps, and steps as measured here or {_FASTER} times as fast:\n",
            markdown_table(["method, link", "bytes", "ms a step", "ms network", "efficiency"], many),
            f"Prompts of {_STEPS_OF_A_PROMPT} steps a day, one process: {days}. No GPU was measured.",
            footing(document),
        ]
    )


def main(arguments: Sequence[str] | None = None, rows: Sequence[sp.Row] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=6, help=f"counted; {_WARM_UP} more before them")
    parser.add_argument("--rows", type=int, default=4, help="of a process in a step")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    rows = load_movies()[:400] if rows is None else rows
    if options.worker is not None:
        work(options, rows)
        return
    document = describe("scaling", given, torch.device("cpu")) | {"rows": options.rows}
    document["runs"] = [measure(count, False, options) for count in options.processes]
    document["runs"].append(measure(2, True, options))
    prompt = {"bytes": 4 * _TOKENS * sp.load_base(options.base, device="cpu").hidden_size}
    methods = {"prompt": prompt | {"step_seconds": document["runs"][0]["step_seconds"]}}
    document["methods"] = methods | fine_tuning(options, rows)
    model(document)
    write_results(options.out, "scaling", document, table(document))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
