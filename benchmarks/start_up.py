"""How long one waits: for the package, the command line's help, one answer, and a thousand prompts to be served.

    python -m benchmarks.start_up [--base smollm2-135m] [--prompts 1000] [--rounds 5]

All but the last are whole processes, from start to end, with what they need in the disk's cache; of that the loading
alone. Owns the commands; the median of the rounds is told, of the clock and of the processor.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import softprompt as sp
from benchmarks.measure import RESULTS, default_device, describe, footing, markdown_table, write_results
from benchmarks.movies import INIT_TEXT, TASK
from softprompt.serving.catalogue import Catalogue

NAME = "start_up"
GOALS = {"import": 0.3, "help": 0.3, "predict": 4.0, "load": 3.0}


# What any program that asks a Llama has to import.
_LIBRARIES = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM"


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    document = describe(NAME, arguments, default_device())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = sp.load_base(options.base)
        start = sp.SoftPrompt.from_text(base, INIT_TEXT, 16)
        prompt = replace(start, card=start.card.model_copy(update={"task": TASK.model_dump()}))
        prompt.save(folder / "prompt")
        library = sp.PromptLibrary(folder / "library")
        for number in range(options.prompts):
            library.add(f"task-{number}", prompt)

        def load() -> None:
            catalogue = Catalogue(base, library)
            for name in library.names():
                catalogue.add(catalogue.read(name))

        command = [sys.executable, "-m", "softprompt.cli"]
        parts: dict[str, Callable[[], Any]] = {
            "import": lambda: _run([sys.executable, "-c", "import softprompt"]),
            "help": lambda: _run([*command, "--help"]),
            "libraries": lambda: _run([sys.executable, "-c", _LIBRARIES]),
            "predict": lambda: _run([*command, "predict", str(folder / "prompt"), "a joy to watch"]),
            "load": load,
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
        for _ in range(options.rounds + 1):  # the first warms the disk's cache
            for name, part in parts.items():
                times[name].append(_time(part))
    document["prompts"] = options.prompts
    document["seconds"] = {name: _middle(some) for name, some in times.items()}
    write_results(options.results, NAME, document, table(document))
    print(table(document))


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _time(part: Callable[[], Any]) -> tuple[float, float]:
    before, start = _processor(), time.perf_counter()
    part()
    return time.perf_counter() - start, _processor() - before


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _middle(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    clock, processor = zip(*times[1:], strict=True)
    return {"clock": median(clock), "processor": median(processor)}


def table(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    titles = {
        "import": "import softprompt",
        "help": "softprompt --help",
        "libraries": "PyTorch's and Transformers' own imports, which the next line has in it",
        "predict": "softprompt predict, one text",
        "load": f"{document['prompts']:,} prompts loaded to be served",
    }
    rows = [
        [
            titles[name],
            f"{GOALS[name]:g}" if name in GOALS else "",
            f"{found['clock']:.2f}",
            f"{found['processor']:.2f}",
        ]
        for name, found in document["seconds"].items()
    ]
    return markdown_table(("", "goal, s", "s", "processor, s"), rows) + footing(document)


if __name__ == "__main__":
    main()
