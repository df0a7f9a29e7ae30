"""What every benchmark says of itself: the machine, the peak it is held against, the memory, and its result files.

Owns clocks, counts of arithmetic and the files. Knows nothing of what is compared.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from softprompt import __version__
from softprompt.prompts.json_text import with_short_lists

RESULTS = Path(__file__).parent / "results"


def describe(benchmark: str, arguments: Sequence[str], device: torch.device) -> dict[str, Any]:
    """The head of a result file: the command, the machine, the versions, and how busy the machine was."""
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
    }
    if hasattr(os, "sysconf"):
        machine["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *arguments]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "softprompt": __version__,
            **{package: version(package) for package in ("torch", "transformers", "peft")},
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time that `work` takes, to its end on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """The matrices that every token passes: all but the embeddings and the output head."""
    modules = [m for m in model.base_model.modules() if not isinstance(m, nn.Embedding)]
    weights = [getattr(module, "weight", None) for module in modules]
    return [w for w in weights if isinstance(w, torch.Tensor) and w.ndim == 2]


@torch.inference_mode()
def matmul_peak(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest linear layer of the model's shapes, over 512 to 1024 rows, in `dtype`.

    A GPU is not filled by the layers of a small model: there a product of 8192-square matrices is among the shapes.
    """
    device = model.device
    shapes, counts = {tuple(w.shape) for w in _weights(model)}, [512, 768, 1024]
    if device.type == "cuda":
        shapes, counts = shapes | {(8192, 8192)}, [1024, 8192]
    best = 0.0
    for width, depth in sorted(shapes):
        weight = torch.randn(width, depth, dtype=dtype, device=device)
        for count in counts:
            rows = torch.randn(count, depth, dtype=dtype, device=device)
            # The first call is the warm-up; the fastest of the others is what the machine can do.
            times = [seconds(partial(functional.linear, rows, weight), device) for _ in range(6)]
            best = max(best, 2 * count * width * depth / min(times[1:]))
    return best


def useful_flops(model: PreTrainedModel, num_virtual_tokens: int, lengths: Sequence[int], labels: int) -> float:
    """The arithmetic that a training step cannot do without, the prompt computed once.

    Per text or virtual token 2 operations for each weight forward, and as many for the activations' gradient (the
    weights have none); likewise the output head at each label; and the two attention products of every pair of
    tokens that see each other, with four products backward.

    Args:
        model: the base.
        num_virtual_tokens: P.
        lengths: tokens of each text, its target included.
        labels: label places in the batch.
    """
    config = model.config.get_text_config()
    linear = 4 * sum(w.numel() for w in _weights(model)) * (num_virtual_tokens + sum(lengths))
    head = 4 * model.get_output_embeddings().weight.numel() * labels
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = _pairs(num_virtual_tokens) + sum(num_virtual_tokens * n + _pairs(n) for n in lengths)
    return float(linear + head + 12 * config.num_hidden_layers * width * pairs)


def _pairs(length: int) -> int:
    return length * (length + 1) // 2


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ruler, *rows]) + "\n"


def write_results(folder: Path, name: str, document: dict[str, Any], markdown: str) -> None:
    """Write `name.json` and `name.md`, each at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", with_short_lists(json.dumps(document, indent=1)) + "\n"), (".md", markdown)):
        temporary = folder / f".{name}{suffix}"
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, folder / f"{name}{suffix}")


class Kept:
    """The rows of a benchmark that were measured so far, in its results' files: a run that was interrupted goes on.

    Args:
        folder: of the results.
        name: of the benchmark and its files.
        arguments: of the command.
        settings: with others the rows of before are not these, and go.
        table: the document as Markdown.
        plot: draws the document into a file.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: Sequence[str],
        settings: dict[str, Any],
        table: Callable[[dict[str, Any]], str],
        plot: Callable[[dict[str, Any], Path], None],
    ) -> None:
        self._folder, self._name, self._table, self._plot = folder, name, table, plot
        path = folder / f"{name}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        rows = before["rows"] if before.get("settings") == settings else []
        self.document = describe(name, arguments, default_device()) | {"settings": settings, "rows": rows}

    def add(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row that is not there yet, and keep it."""
        if not any(key.items() <= row.items() for row in self.document["rows"]):
            row = key | measure()
            print(json.dumps({name: value for name, value in row.items() if name != "history"}), file=sys.stderr)
            self.document["rows"].append(row)
            self.write()

    def write(self) -> str:
        """Write the files; the table."""
        text = self._table(self.document)
        write_results(self._folder, self._name, self.document, text)
        self._plot(self.document, self._folder / f"{self._name}.svg")
        return text


def footing(document: dict[str, Any]) -> str:
    """What stands under a table: how it was made, and on what."""
    machine, versions = document["machine"], document["versions"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"\n`{document['command']}` on {where}; {packages}; {document['time'][:10]}.\n"
