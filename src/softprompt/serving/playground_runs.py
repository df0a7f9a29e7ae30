"""The training runs that the playground shows: which there are, how far each is, its curves.

Owns the reading of runs' folders while somebody may write them. Does not know how the figures are drawn (`reporting`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from markupsafe import Markup

from softprompt.reporting import figures
from softprompt.reporting.page import figure
from softprompt.serving.playground_looks import error, notice
from softprompt.serving.playground_texts import Texts
from softprompt.training.diagnosis import diagnose
from softprompt.training.folder import MONITOR, PROMPT, RECORD
from softprompt.training.trajectory import Trajectory

_SHARES = ("accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "bleu")

Mark = tuple[object, ...]


def list_runs(folder: Path) -> list[str]:
    """The runs' folders in `folder`, or one folder deeper, relative to it; that with the newest entry first."""
    found: list[Path] = []
    for pattern in (f"*/{RECORD}", f"*/*/{RECORD}"):
        with suppress(OSError):  # not to be read: nothing to show
            found.extend(record.parent for record in folder.glob(pattern))
    return [run.relative_to(folder).as_posix() for run in sorted(found, key=lambda run: (-_changed(run), run))]


def mark(run: Path) -> Mark:
    """What changes with what a run has to show."""
    return (run, _changed(run), (run / PROMPT).exists())


def show_run(run: Path, texts: Texts) -> Markup:
    """How far a run is, what looks wrong, and its curves; half-written lines are passed over.

    Raises:
        SoftPromptError: the monitor's file cannot be read.
    """
    trajectory = Trajectory.read(run / MONITOR)
    measured = trajectory.measurements
    parts = []
    most = _most_steps(run)
    if most is None:
        parts.append(error(texts["run_damaged"].format(file=RECORD)))
    if not measured:
        return Markup().join([*parts, notice(texts["run_no_steps"])])
    step = measured[-1].step
    if (run / PROMPT).exists():
        parts.append(notice(texts["run_finished"].format(step=step)))
    else:
        parts.append(notice(texts["run_going"].format(step=step, most=most or "?")))
    diagnoses = diagnose(trajectory)
    parts.extend(
        Markup('<p class="warning"><strong>{}.</strong> {}</p>').format(one.name, one.sentence) for one in diagnoses
    )
    if not diagnoses:
        parts.append(Markup('<p class="faint">{}</p>').format(texts["healthy"]))
    validated = trajectory.validations
    losses = {
        texts["training"]: figures.finite([(one.step, one.loss) for one in measured]),
        texts["validation"]: figures.finite([(one.step, one.figures.get("log_loss")) for one in validated]),
    }
    parts.append(_curves(losses, "loss", texts))
    shares = {
        name.replace("_", " "): figures.finite([(one.step, one.figures.get(name)) for one in validated])
        for name in _SHARES
    }
    parts.append(_curves(shares, "shares", texts))
    length = len(measured[-1].gradient)
    pulled = [one for one in measured if one.gradient and len(one.gradient) == length]
    if pulled:
        drawn = figures.gradient_map([one.step for one in pulled], [one.gradient for one in pulled])
        axes, colours = drawn.axes
        axes.set_xlabel(texts["step"])
        axes.set_ylabel(texts["virtual_token"])
        colours.set_ylabel(texts["gradients_unit"])
        parts.append(figure(drawn, texts["gradients"], texts["gradients_help"]))
    return Markup().join(parts)


def _curves(named: dict[str, list[tuple[float, float]]], what: str, texts: Texts) -> Markup:
    present: dict[str, Sequence[tuple[float, float]]] = {name: points for name, points in named.items() if points}
    if not present:
        return Markup()
    drawn = figures.curves(present, texts[f"{what}_unit"])
    drawn.axes[0].set_xlabel(texts["step"])
    return figure(drawn, texts[what], texts[f"{what}_help"])


def _changed(run: Path) -> float:
    """When the run last wrote what is shown of it, in seconds since 1970."""
    for file in (run / MONITOR, run / RECORD):
        try:
            return file.stat().st_mtime
        except OSError:
            continue
    return 0.0


def _most_steps(run: Path) -> int | None:
    try:
        most = json.loads((run / RECORD).read_bytes())["recipe"]["max_steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return most if isinstance(most, int) else None


def find_run(folder: Path, name: object) -> Path | None:
    """The folder of the run `name`; None where there is none of that name in `folder`."""
    return folder / name if isinstance(name, str) and name in list_runs(folder) else None
