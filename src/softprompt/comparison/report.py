"""How a comparison is shown: as a table of text, as Markdown, and as one page for a browser.

Owns the words and the figures. Everything shown is in the rows; knows nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from softprompt.comparison.methods import METHODS
from softprompt.reporting.page import Section, figure, page, paragraph, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]


def cells(metric: str, rows: Rows) -> tuple[list[str], list[list[str]]]:
    """The table: a column for each method, a line for each measure; the first cell of a line names it."""
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (f"test {_words(metric)} [95% interval]", lambda row: _measured(row, metric)),
        ("spread over the seeds", lambda row: "" if row["spread"] is None else f"± {row['spread']:.3f}"),
        ("difference from prompt tuning", _against),
        ("trainable parameters", lambda row: f"{row['trainable_parameters']:,}"),
        ("share of the base", lambda row: f"{row['share']:.4%}" if row["share"] else "0"),
        ("file for one task", lambda row: size(row["artifact_bytes"])),
        ("files for 100 tasks, base included", lambda row: size(row["bytes_of_100_tasks"])),
        ("peak memory", lambda row: size(row["peak_memory_bytes"])),
        ("time to train", lambda row: seconds(row["train_seconds"])),
        ("time to the best validation", lambda row: seconds(row["best_seconds"])),
        ("switch to another task, from disk", lambda row: seconds(row["switch_seconds"])),
        ("switch, both in memory", lambda row: seconds(row["switch_in_memory_seconds"])),
        ("setting chosen by validation", _setting),
    ]
    if all(row["spread"] is None for row in rows):
        del lines[1]
    head = ["", *(METHODS[row["method"]].title for row in rows)]
    body = []
    for number, (name, shown) in enumerate(lines):
        # A method that failed says so in the first line.
        body.append(
            [name, *(shown(row) if row["status"] == "done" else "" if number else row["status"] for row in rows)]
        )
    return head, body


def remarks(rows: Rows, notes: Sequence[str]) -> list[str]:
    """What has to be said beside the table: the notes, what failed, and where a grid ended too early."""
    found = list(notes)
    for row in rows:
        title = METHODS[row["method"]].title
        if row["message"]:
            some = "" if row["status"] != "done" else " (not with every seed)"
            found.append(f"{title}{some}: {row['message']}")
        if row["failures"] and row["status"] == "done":
            found.append(f"{title}: settings that failed: {', '.join(row['failures'])}.")
        if row["edge"]:
            found.append(f"{title}: the best rate is at the end of its grid; another one may do better.")
    return found


def markdown(name: str, metric: str, rows: Rows, notes: Sequence[str]) -> str:
    """The comparison as Markdown."""
    head, body = cells(metric, rows)
    lines = [head, ["---", *["---:"] * len(rows)], *body]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"# {name}\n\n{text}\n\n" + "".join(f"- {remark}\n" for remark in remarks(rows, notes))


def html(name: str, metric: str, rows: Rows, notes: Sequence[str]) -> str:
    """The comparison as one self-contained page."""
    head, body = cells(metric, rows)
    said = Markup("").join(paragraph(remark) for remark in remarks(rows, notes))
    done = [row for row in rows if row["status"] == "done"]
    sections = [Section("The table", table(head, body, f"{name}: every method on the same task") + said)]
    if done:
        sections += [
            Section("Quality against parameters", _quality(metric, done)),
            Section("Memory", _memory(done)),
        ]
    if any(row["curve"] for row in done):
        sections.append(Section("Training", _curves(metric, done) + _losses(done)))
    return page(f"Prompt tuning and its peers: {name}", sections, lead=notes[0] if notes else "")


def size(count: float | None) -> str:
    """Bytes for people, in powers of 1,000 as disks are sold."""
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(count: float | None) -> str:
    """A time for people."""
    if count is None:
        return "not possible"
    if count == 0:
        return "0"
    if count < 0.001:
        return f"{count * 1e6:.0f} µs"
    return f"{count * 1e3:.1f} ms" if count < 1 else f"{count:.1f} s"


def _measured(row: dict[str, Any], metric: str) -> str:
    shown = f"{row['test'][metric]:.3f}"
    return f"{shown} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]" if row["interval"] else shown


def _against(row: dict[str, Any]) -> str:
    found = row["against_prompt"]
    return "" if found is None else f"{found['difference']:+.3f} (p = {found['p']:.2g})"


def _setting(row: dict[str, Any]) -> str:
    what = METHODS[row["method"]].unit
    chosen = sorted({setting for setting in row["settings"] if setting is not None})
    return f"{what} {', '.join(f'{setting:.3g}' for setting in chosen)}" if chosen else ""


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _axes(title: str, horizontal: str, vertical: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    return drawn, axes


def _quality(metric: str, rows: Rows) -> Markup:
    words = _words(metric)
    drawn, axes = _axes(f"Test {words} against trained parameters", "trained parameters", f"test {words} (0 to 1)")
    untrained = [row["method"] for row in rows if not row["trainable_parameters"]]
    for row in rows:
        middle = row["test"][metric]
        low, high = row["interval"] or (middle, middle)
        method = row["method"]
        # Methods that train nothing would hide each other at 0.
        beside = 0.3 * (untrained.index(method) - (len(untrained) - 1) / 2) if method in untrained else 0.0
        axes.errorbar(
            row["trainable_parameters"] + beside,
            middle,
            # The mean may lie a hair outside an interval that rounding has made empty.
            yerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
            fmt=METHODS[method].marker,
            color=METHODS[method].colour,
            capsize=4,
            label=METHODS[method].title,
        )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.5)
    axes.legend()
    best = max(rows, key=lambda row: row["test"][metric])
    return figure(
        drawn,
        f"Test {words} against trained parameters",
        "Further up is better, further left is smaller; the scale is logarithmic, and what trains nothing stands "
        "around 0. The bars are 95% intervals. "
        f"The highest is {METHODS[best['method']].title} with {best['test'][metric]:.3f}.",
    )


def _memory(rows: Rows) -> Markup:
    drawn, axes = _axes("Peak memory of the process", "method", "peak memory (gigabytes)")
    for row in rows:
        axes.bar(METHODS[row["method"]].title, row["peak_memory_bytes"] / 1e9, color=METHODS[row["method"]].colour)
    shown = ", ".join(f"{METHODS[row['method']].title} {size(row['peak_memory_bytes'])}" for row in rows)
    return figure(
        drawn,
        "Peak memory",
        f"The most memory that each method's process held, the base included; lower is better. {shown}.",
    )


def _curves(metric: str, rows: Rows) -> Markup:
    words = _words(metric)
    drawn, axes = _axes(
        f"Validation {words} while training", "time in training steps (seconds)", f"validation {words} (0 to 1)"
    )
    for row in rows:
        points = [entry for entry in row["curve"] if metric in entry]
        if points:
            method = row["method"]
            axes.plot(
                [entry["seconds"] for entry in points],
                [entry[metric] for entry in points],
                marker=METHODS[method].marker,
                color=METHODS[method].colour,
                label=METHODS[method].title,
            )
    axes.legend()
    return figure(
        drawn,
        f"Validation {words} while training",
        "Each mark is one validation. Only the time of the training steps counts; steps are as many for all methods.",
    )


def _losses(rows: Rows) -> Markup:
    drawn, axes = _axes("Training loss", "training step", "loss (nats per target token)")
    for row in rows:
        if row["losses"]:
            method = row["method"]
            axes.plot(
                [entry["step"] for entry in row["losses"]],
                [entry["loss"] for entry in row["losses"]],
                color=METHODS[method].colour,
                label=METHODS[method].title,
            )
    axes.legend()
    return figure(drawn, "Training loss", "The mean loss since the entry before; lower is better.")
