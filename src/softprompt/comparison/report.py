"""How a comparison is shown: as a table of text, as Markdown, and as one page for a browser.

Owns the words and the figures. Everything shown is in the rows; knows nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from softprompt.comparison.methods import METHODS
from softprompt.comparison.methods.method import Method
from softprompt.comparison.table import Figures, TableRow
from softprompt.reporting.page import Section, figure, page, paragraph, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each method's marker and colour, in the order of the methods' table. Okabe and Ito's colours, told apart by
# colour-blind readers; their grey and orange darkened to be seen on white too.
_LOOKS = (("o", "#808080"), ("s", "#B07A00"), ("D", "#0072B2"), ("^", "#009E73"), ("v", "#D55E00"), ("P", "#CC79A7"))
Done = Sequence[tuple[Method, Figures]]  # the methods that are done


def cells(metric: str, rows: Sequence[TableRow]) -> tuple[list[str], list[list[str]]]:
    """The table: a column for each method, a line for each measure; the first cell of a line names it."""
    lines: list[tuple[str, Callable[[Figures], str]]] = [
        (f"test {_words(metric)} [95% interval]", lambda found: _measured(found, metric)),
        ("spread over the seeds", lambda found: "" if found.spread is None else f"± {found.spread:.3f}"),
        ("difference from prompt tuning", _against),
        ("trainable parameters", lambda found: f"{found.trained.trainable_parameters:,}"),
        ("share of the base", lambda found: f"{found.share:.4%}" if found.share else "0"),
        ("file for one task", lambda found: size(found.trained.artifact_bytes)),
        ("files for 100 tasks, base included", lambda found: size(found.bytes_of_100_tasks)),
        ("peak memory", lambda found: size(found.trained.peak_memory_bytes)),
        ("time to train", lambda found: seconds(found.trained.train_seconds)),
        ("time to the best validation", lambda found: seconds(found.trained.best_seconds)),
        ("switch to another task, from disk", lambda found: seconds(found.tested.switch_seconds)),
        ("switch, both in memory", lambda found: seconds(found.tested.switch_in_memory_seconds)),
    ]
    if all(found.spread is None for _, found in _done(rows)):
        del lines[1]
    # A method that failed says so in the first line.
    body = [
        [name, *(shown(row.figures) if row.figures else "" if number else row.status for row in rows)]
        for number, (name, shown) in enumerate(lines)
    ]
    return ["", *(row.method.title for row in rows)], [*body, ["setting chosen by validation", *map(_setting, rows)]]


def remarks(rows: Sequence[TableRow], notes: Sequence[str]) -> list[str]:
    """What has to be said beside the table: the notes, what failed, and where a grid ended too early."""
    found = list(notes)
    for row in rows:
        title = row.method.title
        if row.message:
            some = " (not with every seed)" if row.figures else ""
            found.append(f"{title}{some}: {row.message}")
        if row.failures and row.figures:
            found.append(f"{title}: settings that failed: {', '.join(row.failures)}.")
        if row.figures and row.figures.edge:
            found.append(f"{title}: the best rate is at the end of its grid; another one may do better.")
    return found


def markdown(name: str, metric: str, rows: Sequence[TableRow], notes: Sequence[str]) -> str:
    """The comparison as Markdown."""
    head, body = cells(metric, rows)
    lines = [head, ["---", *["---:"] * len(rows)], *body]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"# {name}\n\n{text}\n\n" + "".join(f"- {remark}\n" for remark in remarks(rows, notes))


def html(name: str, metric: str, rows: Sequence[TableRow], notes: Sequence[str]) -> str:
    """The comparison as one self-contained page."""
    head, body = cells(metric, rows)
    said = Markup("").join(paragraph(remark) for remark in remarks(rows, notes))
    done = _done(rows)
    sections = [Section("The table", table(head, body, f"{name}: every method on the same task") + said)]
    if done:
        sections.append(Section("Quality against parameters", _quality(metric, done)))
        sections.append(Section("Memory", _memory(done)))
    if any(found.trained.curve for _, found in done):
        sections.append(Section("Training", _curves(metric, done) + _losses(done)))
    return page(f"Prompt tuning and its peers: {name}", sections, lead=notes[0] if notes else "")


def size(count: float) -> str:
    """Bytes for people, in powers of 1,000 as disks are sold."""
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


def _done(rows: Sequence[TableRow]) -> Done:
    return [(row.method, row.figures) for row in rows if row.figures is not None]


def _look(method: Method) -> tuple[str, str]:
    """A method's marker and colour."""
    return _LOOKS[list(METHODS).index(method.name) % len(_LOOKS)]


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _measured(found: Figures, metric: str) -> str:
    shown = f"{getattr(found.tested.test, metric):.3f}"
    return f"{shown} [{found.interval[0]:.3f}, {found.interval[1]:.3f}]" if found.interval else shown


def _against(found: Figures) -> str:
    paired = found.against_prompt
    return "" if paired is None else f"{paired.difference:+.3f} (p = {paired.p:.2g})"


def _setting(row: TableRow) -> str:
    chosen = {setting for setting in (row.figures.settings if row.figures else []) if setting is not None}
    shown = ", ".join(f"{setting:.3g}" for setting in sorted(chosen))
    return f"{row.method.tunes} {shown}" if chosen else ""


def _axes(title: str, horizontal: str, vertical: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    return drawn, axes


def _quality(metric: str, done: Done) -> Markup:
    words, scores = _words(metric), {method: getattr(found.tested.test, metric) for method, found in done}
    drawn, axes = _axes(f"Test {words} against trained parameters", "trained parameters", f"test {words} (0 to 1)")
    untrained = [method for method, found in done if not found.trained.trainable_parameters]
    for method, found in done:
        middle = scores[method]
        low, high = found.interval or (middle, middle)
        marker, colour = _look(method)
        # Methods that train nothing would hide each other at 0.
        beside = 0.3 * (untrained.index(method) - (len(untrained) - 1) / 2) if method in untrained else 0.0
        axes.errorbar(
            found.trained.trainable_parameters + beside,
            middle,
            # The mean may lie a hair outside an interval that rounding has made empty.
            yerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
            fmt=marker,
            color=colour,
            capsize=4,
            label=method.title,
        )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.5)
    axes.legend()
    best = max(scores, key=lambda method: scores[method])
    return figure(
        drawn,
        f"Test {words} against trained parameters",
        "Further up is better, further left is smaller; the scale is logarithmic, and what trains nothing stands "
        f"around 0. The bars are 95% intervals. The highest is {best.title} with {scores[best]:.3f}.",
    )


def _memory(done: Done) -> Markup:
    drawn, axes = _axes("Peak memory of the process", "method", "peak memory (gigabytes)")
    for method, found in done:
        axes.bar(method.title, found.trained.peak_memory_bytes / 1e9, color=_look(method)[1])
    shown = ", ".join(f"{method.title} {size(found.trained.peak_memory_bytes)}" for method, found in done)
    return figure(
        drawn,
        "Peak memory",
        f"The most memory that each method's process held, the base included; lower is better. {shown}.",
    )


def _curves(metric: str, done: Done) -> Markup:
    title = f"Validation {_words(metric)} while training"
    drawn, axes = _axes(title, "time in training steps (seconds)", f"validation {_words(metric)} (0 to 1)")
    for method, found in done:
        points = [(entry["seconds"], entry[metric]) for entry in found.trained.curve if metric in entry]
        _draw(axes, method, points, _look(method)[0])
    axes.legend()
    return figure(
        drawn,
        title,
        "Each mark is one validation. Only the time of the training steps counts; steps are as many for all methods.",
    )


def _losses(done: Done) -> Markup:
    drawn, axes = _axes("Training loss", "training step", "loss (nats per target token)")
    for method, found in done:
        _draw(axes, method, [(entry["step"], entry["loss"]) for entry in found.trained.losses])
    axes.legend()
    return figure(drawn, "Training loss", "The mean loss since the entry before; lower is better.")


def _draw(axes: Axes, method: Method, points: Sequence[tuple[float, float]], marker: str = "") -> None:
    if points:
        axes.plot(*zip(*points, strict=True), marker=marker, color=_look(method)[1], label=method.title)
