"""The table and the plot of `training_step`.

Owns how its document is shown; reads nothing but the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import footing, markdown_table
from benchmarks.peak_memory import LOADED_ONLY
from benchmarks.sides import FLASH, OURS


def table(document: Mapping[str, Any]) -> str:
    """The document as Markdown."""
    head = ["base, dtype, P, B, T", "ms", "PEFT ms", "concat. ms", "x PEFT", "x concat.", "useful tokens/s"]
    head += ["useful GFLOP/s", "of peak", "memory, MB", "PEFT MB", "of PEFT's", "gradient off"]
    rows = []
    for case in document["cases"]:
        ours, ratio = case["sides"][OURS], case["speed_ratio"]
        row = [f"{case['base']}, {case['dtype']}, {case['P']}, {case['B']}, {case.get('T') or 'films'}"]
        row += [f"{case['sides'][side]['milliseconds']:.0f}" for side in (OURS, "peft", "concatenation")]
        row += [f"{ratio['peft']:.2f}", f"{ratio['concatenation']:.2f}", f"{ours['tokens_per_second']:.0f}"]
        row += [f"{ours['useful_gflops']:.0f}", f"{ours['share_of_peak']:.0%}"]
        if memory := case.get("peak_memory_bytes"):
            mine, theirs = memory[OURS], memory["peft"]
            row += [f"{mine / 1e6:.0f}", f"{theirs / 1e6:.0f}", f"{mine / theirs:.2f}"]
        else:
            row += ["", "", ""]
        rows.append([*row, f"{case['gradient_difference'][f'{OURS}/peft']:.1e}"])
    notes = [
        f"Matrix-product peak, {base}: {peak:.0f} GFLOP/s." for base, peak in document["matmul_peak_gflops"].items()
    ]
    loaded = {
        f"{case['base']} in {case['dtype']}": case["peak_memory_bytes"][LOADED_ONLY]
        for case in document["cases"]
        if "peak_memory_bytes" in case
    }
    notes += [f"Memory of a process that only reads {base}: {most / 1e6:.0f} MB." for base, most in loaded.items()]
    notes += [_flash(case) for case in document["cases"] if FLASH in case["sides"]]
    notes += [_off(case) for case in document["cases"] if "gradient_to_float32" in case]
    notes += [f"Skipped: {line}." for line in document["skipped"]]
    text = markdown_table(head, rows) + "\n" + "".join(f"- {note}\n" for note in notes)
    return text + footing(dict(document))


def _name(case: Mapping[str, Any]) -> str:
    return f"{case['base']} in {case['dtype']}, P={case['P']}, B={case['B']}, T={case.get('T') or 'films'}"


def _flash(case: Mapping[str, Any]) -> str:
    times = case["speed_ratio"][FLASH]
    return f"PEFT by FlashAttention 2, {_name(case)}: {case['sides'][FLASH]['milliseconds']:.0f} ms, {times:.2f} times."


def _off(case: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{side} {off:.1e}" for side, off in case["gradient_to_float32"].items())
    return f"Gradient's distance to float32, {_name(case)}: {parts}."


def plot(document: Mapping[str, Any], path: Path) -> None:
    """PEFT's time over ours against P, one line for each base, dtype, B and T."""
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {}
    for case in document["cases"]:
        base = Path(case["base"]).name
        line = lines.setdefault(f"{base}, {case['dtype']}, B={case['B']}, T={case.get('T') or 'films'}", [])
        line.append((case["P"], case["speed_ratio"]["peft"]))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(xlabel="virtual tokens (P)", ylabel="training step: times PEFT's speed", ylim=(0, None))
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend().set_in_layout(False)  # a long name leaves the axes their size
    figure.savefig(path)
