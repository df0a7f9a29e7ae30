"""The tab Runs: which training runs there are, how far each is, its curves.

Owns the reading of runs' folders while somebody may write them. Does not know how the figures are drawn (`reporting`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from markupsafe import Markup

from softprompt.reporting import figures
from softprompt.reporting.page import figure
from softprompt.serving.playground.looks import error, notice, page
from softprompt.serving.playground.texts import Texts
from softprompt.training.diagnosis import diagnose
from softprompt.training.folder import MONITOR, PROMPT, RECORD
from softprompt.training.trajectory import Trajectory

_SHARES = ("accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "bleu")


def list_runs(folder: Path) -> list[str]:
    """The runs' folders in `folder`, or one folder deeper, relative to it; that with the newest entry first."""
    found: list[Path] = []
    for pattern in (f"*/{RECORD}", f"*/*/{RECORD}"):
        with suppress(OSError):  # not to be read: nothing to show
            found.extend(record.parent for record in folder.glob(pattern))
    return [run.relative_to(folder).as_posix() for run in sorted(found, key=lambda run: (-_changed(run), run))]


def show_run(folder: Path, name: str | None, seen: object, texts: Texts) -> tuple[str, object] | None:
    """The run `name`, and a mark of what was seen; None where that mark is `seen`: nothing has changed.

    Raises:
        SoftPromptError: the monitor's file cannot be read.
    """
    if not name:
        return page(notice(texts["no_runs"].format(folder=folder))), None
    if name not in list_runs(folder):
        return page(error(texts["no_such_run"])), None
    run = folder / name
    mark = (name, _changed(run), (run / PROMPT).exists())
    return None if mark == seen else (page(_show(run, texts)), mark)


def _show(run: Path, texts: Texts) -> Markup:
    """How far a run is, what looks wrong, and its curves; half-written lines are passed over."""
    trajectory = Trajectory.read(run / MONITOR)
    measured, validated = trajectory.measurements, trajectory.validations
    if not measured:
        return notice(texts["run_no_steps"])
    state = texts["run_finished" if (run / PROMPT).exists() else "run_going"]
    parts = [notice(state.format(step=measured[-1].step, most=_most_steps(run)))]
    parts += [error(f"{one.name}. {one.sentence}") for one in diagnose(trajectory)]
    losses: dict[str, Sequence[tuple[int, object]]] = {
        texts["training"]: [(one.step, one.loss) for one in measured],
        texts["validation"]: [(one.step, one.figures.get("log_loss")) for one in validated],
    }
    shares = {name.replace("_", " "): [(one.step, one.figures.get(name)) for one in validated] for name in _SHARES}
    parts += [_curves(losses, "loss", texts), _curves(shares, "shares", texts)]
    length = len(measured[-1].gradient)
    pulled = [one for one in measured if one.gradient and len(one.gradient) == length]
    if pulled:
        drawn = figures.gradient_map([one.step for one in pulled], [one.gradient for one in pulled])
        axes, colours = drawn.axes
        axes.set(xlabel=texts["step"], ylabel=texts["virtual_token"])
        colours.set_ylabel(texts["gradients_unit"])
        parts.append(figure(drawn, texts["gradients"], texts["gradients_help"]))
    return Markup().join(parts)


def _curves(named: Mapping[str, Sequence[tuple[int, object]]], what: str, texts: Texts) -> Markup:
    present: dict[str, Sequence[tuple[float, float]]] = {
        name: finite for name, points in named.items() if (finite := figures.finite(points))
    }
    if not present:
        return Markup()
    drawn = figures.curves(present, texts[f"{what}_unit"])
    drawn.axes[0].set_xlabel(texts["step"])
    return figure(drawn, texts[what], texts[f"{what}_help"])


def _changed(run: Path) -> float:
    """When the run last wrote what is shown of it, in seconds since 1970."""
    for file in (run / MONITOR, run / RECORD):
        with suppress(OSError):
            return file.stat().st_mtime
    return 0.0


def _most_steps(run: Path) -> int | str:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return int(json.loads((run / RECORD).read_bytes())["recipe"]["max_steps"])
    return "?"
