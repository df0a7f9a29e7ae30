"""The figures that the package quotes: `python -m benchmarks.figures` writes them from benchmarks/results.

Owns which figures those are. `softprompt.comparison.measured` says what they mean; a test checks that the file in the
package is what this makes of the results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.quality import other_settings
from softprompt import comparison
from softprompt.comparison.measured import Measured, Method, Step, Variant

SHIPPED = Path(comparison.__file__).with_name("measured.json")


def collect(results: Path = RESULTS) -> Measured:
    """The figures of the result files in a folder; a file that is not there has none."""
    return Measured(
        steps=[
            Step(
                base=case["base"],
                num_virtual_tokens=case["P"],
                batch_size=case["B"],
                milliseconds=case["sides"]["softprompt"]["milliseconds"],
            )
            for case in _read(results, "training_step").get("cases", [])
        ],
        methods=_methods(_read(results, "quality").get("methods", [])),
        variants=_variants(_read(results, "quality").get("rows", [])),
    )


def _read(results: Path, name: str) -> dict[str, Any]:
    file = results / f"{name}.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content


def _methods(comparisons: Sequence[dict[str, Any]]) -> list[Method]:
    return [
        Method(
            task=found["name"],
            metric=found["metric"],
            method=row["method"],
            score=row["test"][found["metric"]],
            trainable_parameters=row["trainable_parameters"],
            base_parameters=row["base_parameters"],
        )
        for found in comparisons
        for row in found["rows"]
        if row["status"] == "done"
    ]


def _variants(rows: Sequence[dict[str, Any]]) -> list[Variant]:
    rows = [row for row in rows if not other_settings(row)]
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "score" in row:
            budget = f"{row['steps']} steps of {row['batch_size']}"
            groups.setdefault((row["part"], row["task"], budget, row["variant"]), []).append(row)
    return [
        Variant(
            part=part,
            task=task,
            budget=budget,
            variant=variant,
            score=fmean(row["score"] for row in here),
            seeds=len(here),
            n=here[0]["n"],
        )
        for (part, task, budget, variant), here in groups.items()
    ]


def main() -> None:
    temporary = SHIPPED.with_name(f".{SHIPPED.name}")
    temporary.write_text(json.dumps(collect().model_dump(), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, SHIPPED)
    print(SHIPPED)


if __name__ == "__main__":
    main()
