"""The report of a training run: `report.html` in the run's folder.

Owns which of the folder's files is shown how, and what is said of a file that is missing or damaged. Does not know how
a page looks (`page`) or a figure is drawn (`figures`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation
from softprompt.files import write_file
from softprompt.inspection import inspect
from softprompt.prompts.card import Card
from softprompt.prompts.prompt import SoftPrompt
from softprompt.reporting import figures
from softprompt.reporting.findings import FINDINGS, LONGEST_TEXT, Findings, InspectionSummary, find_mistakes
from softprompt.reporting.page import Section, figure, page, paragraph, table
from softprompt.tasks.rows import Rows, as_rows
from softprompt.tasks.task import Task
from softprompt.text import shorten
from softprompt.training.diagnosis import diagnose
from softprompt.training.folder import LOG, MONITOR, PROBLEMS, PROMPT, RECORD, VALIDATION
from softprompt.training.trajectory import PERCENTILES, Trajectory

REPORT = "report.html"
_MOST_PARTS = 300  # virtual tokens of which a table has rows


def write_report(
    folder: str | Path,
    *,
    base: Base | None = None,
    validation: Rows | None = None,
    test: Evaluation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write `report.html` into a run's folder and return its path: one file that a browser shows without a network.

    What the folder holds is shown; of what it does not hold, the report says so. What needs more than the folder is
    looked for where the base is given, and kept in the folder for the next report.

    Args:
        folder: a run's folder, also of a run that was stopped or is under way.
        base: the prompt's base, to find the words nearest to the virtual tokens.
        validation: the validation rows, or a file with them, to find the worst mistakes; needs the base. Each row is
            asked once.
        test: the prompt's figures on the test rows.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: the folder is not a run's, or the report can't be written.
        WrongBaseError: the prompt was made for another base.
    """
    folder = Path(folder)
    if not (folder / RECORD).exists():
        raise SoftPromptError(f"{folder} is not a run's folder: it has no {RECORD}")
    if validation is not None and base is None:
        raise SoftPromptError("finding the mistakes in the validation rows needs the base")
    if base is not None or test is not None:
        look(folder, base=base, validation=validation, test=test, progress=progress).write(folder)
    path = folder / REPORT
    write_file(path, _render(folder))
    return path


def look(
    folder: Path,
    *,
    base: Base | None,
    validation: Rows | None,
    test: Evaluation | None,
    progress: Callable[[int], None] | None,
) -> Findings:
    """What a report says beyond what the run has written; see `write_report`. Nothing is written."""
    prompt = SoftPrompt.load(folder / PROMPT, base=base)
    found: dict[str, Any] = {} if test is None else {"test": test}
    if base is not None:
        if prompt.num_virtual_tokens:
            found["inspection"] = InspectionSummary.model_validate(inspect(base, prompt).to_json())
        if validation is not None:
            task = Task.from_dict(prompt.card.task, f"{folder / PROMPT}: the card's task")
            rows = as_rows(validation, task)
            found["mistakes"] = find_mistakes(base, prompt, task, rows, progress)
    before, _ = _read(lambda: Findings.read(folder))
    if before is None or before.prompt != prompt.sha256:
        before = Findings(prompt=prompt.sha256)
    found_all: Findings = before.model_copy(update=found)
    return found_all


def _render(folder: Path) -> str:
    card, no_card = _read(lambda: _card(folder))
    record, no_record = _read(lambda: _json(folder / RECORD))
    trajectory, no_trajectory = _read(lambda: Trajectory.read(folder / MONITOR))
    log, no_log = _read(lambda: _log(folder / LOG))
    findings, no_findings = _read(lambda: _findings(folder, card))
    trajectory, log, findings = trajectory or Trajectory(), log or [], findings or Findings()
    validation = _validation(folder, card)
    kept = None if card is None else card.metrics.get("best_step")
    kept = kept if isinstance(kept, int) else None
    sections = [
        Section("Summary", _summary(card, record, validation, findings.test)),
        Section("What looks wrong", _problems(folder) + _diagnoses(trajectory, no_trajectory)),
        Section("Learning", _learning(log, no_log, kept)),
        Section("Gradients of the virtual tokens", _gradients(trajectory, no_trajectory)),
        Section("The virtual tokens among the words", _norms(trajectory, no_trajectory)),
        Section("Right and wrong", _confusion(card, validation) + _mistakes(findings, no_findings)),
        Section("Nearest words", _words(findings, no_findings)),
        Section("Recipe", _recipe(card, record, no_record)),
        Section("Card", _source(card, no_card)),
    ]
    return page(f"Training run: {folder.resolve().name}", sections, lead=_lead(validation, findings.test))


def _read(reader: Callable[[], Any]) -> tuple[Any, str | None]:
    """What is read, or None and the reason."""
    try:
        return reader(), None
    except SoftPromptError as error:
        return None, str(error)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SoftPromptError(f"{path.name} is missing") from None
    except OSError as error:
        raise SoftPromptError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise SoftPromptError(f"{path.name} is damaged") from None
    if not isinstance(content, dict):
        raise SoftPromptError(f"{path.name} is damaged")
    return content


def _card(folder: Path) -> Card:
    if not (folder / PROMPT).exists():
        raise SoftPromptError("the run has left no prompt yet")
    return Card.parse(_json(folder / PROMPT / "card.json"))


def _log(path: Path) -> list[dict[str, Any]]:
    """The log's entries; of a step logged twice, by a run that was stopped and resumed, the later entry."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise SoftPromptError(f"{path.name} is missing") from None
    except OSError as error:
        raise SoftPromptError(f"{path.name} cannot be read: {error.strerror}") from error
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # a kill left it half written
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found[entry["step"], "loss" in entry] = entry
    return [found[key] for key in sorted(found)]


def _findings(folder: Path, card: Card | None) -> Findings:
    found = Findings.read(folder)
    if card is not None and found.prompt not in (None, card.sha256):
        raise SoftPromptError(f"what {FINDINGS} holds is of another prompt")
    return found


def _validation(folder: Path, card: Card | None) -> Evaluation | None:
    """Of the prompt that is kept; older runs have it on its card alone."""
    try:
        return Evaluation.model_validate_json((folder / VALIDATION).read_bytes())
    except (OSError, ValidationError):
        try:
            return None if card is None else Evaluation.model_validate(card.metrics["validation"])
        except (KeyError, ValidationError):
            return None


def _lead(validation: Evaluation | None, test: Evaluation | None) -> str:
    measured = test or validation
    if measured is None:
        return "This prompt has not been measured."
    figure = "accuracy" if measured.accuracy is not None else "exact_match"
    value = getattr(measured, figure)
    rows = "test" if test is not None else "validation"
    return f"{figure.replace('_', ' ')} {value:.1%} on {measured.n:,} {rows} rows." if value is not None else ""


def _missing(what: str, reason: str | None) -> Markup:
    return paragraph(f"There is no {what}: {reason}." if reason else f"There is no {what}.")


def _summary(
    card: Card | None, record: Mapping[str, Any] | None, validation: Evaluation | None, test: Evaluation | None
) -> Markup:
    rows: list[tuple[str, object]] = []
    if card is not None:
        rows.append(("base", None if card.base is None else card.base.name))
        task = card.task or {}
        rows.append(("template", task.get("template")))
        labels = task.get("labels")
        if isinstance(labels, list):
            rows.append(("labels", shorten(", ".join(map(str, labels)), LONGEST_TEXT)))
            how = "a head" if task.get("answer") == "head" else "the labels' words"
            rows.append(("answers are read by", how + (f" ({made})" if (made := card.metrics.get("head")) else "")))
        for name, key in (
            ("optimiser steps", "steps"),
            ("the prompt is from step", "best_step"),
            ("seconds", "seconds"),
        ):
            rows.append((name, card.metrics.get(key)))
    elif record is not None:
        rows.append(("base", (record.get("base") or {}).get("name")))
    body = table(["what", "value"], rows, "The run") if rows else Markup()
    body += Markup() if card is None else paragraph(_privacy(card))
    measured = {"validation": validation, "test": test}
    present = {name: found.to_json() for name, found in measured.items() if found is not None}
    if not present:
        return body + paragraph("There were no validation rows and no test rows: nothing was measured.")
    keys = [key for key, value in next(iter(present.values())).items() if isinstance(value, int | float)]
    return body + table(["rows", *keys], [[name, *map(found.get, keys)] for name, found in present.items()],
                        "Figures, from 0 to 1 unless they are counts, nats (log loss) or seconds")  # fmt: skip


def _privacy(card: Card) -> str:
    """What is known of how much the prompt gives away of its training rows."""
    private = card.metrics.get("private")
    if isinstance(private, dict):
        return (
            f"Privacy: epsilon {private.get('epsilon'):.3g} at delta {private.get('delta'):.3g} for each training row, "
            "of the prompt's files. The validation rows, and what else is in this folder and report, are not protected."
        )
    start = ""
    if card.initialisation.get("method") == "examples":
        start = " It started from words of training rows, which may be read off its file."
    return (
        f"Privacy: nothing bounds what the prompt gives away of its training rows.{start} "
        "softprompt inspect --leak measures some of it."
    )


def _problems(folder: Path) -> Markup:
    """What was wrong with the data before the first step; an older run has no such file."""
    if not (folder / PROBLEMS).exists():
        return Markup()
    found, reason = _read(lambda: _problem_lines(folder / PROBLEMS))
    if reason is not None:
        return _missing("list of what is wrong with the data", reason)
    return Markup().join(Markup('<p class="warning"><strong>{}.</strong> {}</p>\n').format(*line) for line in found)


def _problem_lines(path: Path) -> list[tuple[str, str]]:
    try:
        return [(str(one["about"]), str(one["text"])) for one in json.loads(path.read_bytes())]
    except (OSError, ValueError, KeyError, TypeError):
        raise SoftPromptError(f"{path.name} is damaged") from None


def _diagnoses(trajectory: Trajectory, reason: str | None) -> Markup:
    if trajectory.start is None and not trajectory.measurements:
        return _missing("record of the monitor", reason or f"{MONITOR} is missing or empty")
    found = diagnose(trajectory)
    if not found:
        return paragraph("Nothing: the monitor's checks found no fault.")
    warnings = [Markup('<p class="warning"><strong>{}.</strong> {}</p>\n').format(d.name, d.sentence) for d in found]
    return Markup().join(warnings)


def _learning(log: Sequence[Mapping[str, Any]], reason: str | None, kept: int | None) -> Markup:
    def curve(key: str) -> list[tuple[float, float]]:
        return figures.finite([(entry["step"], entry.get(key)) for entry in log])

    losses = {"training (mean since the entry before)": curve("loss"), "validation": curve("eval_log_loss")}
    losses = {name: points for name, points in losses.items() if points}
    if not losses:
        return _missing("curve", reason or "nothing was logged yet")
    body = figure(
        figures.curves(losses, "loss (nats)", kept),
        "Loss",
        "Lower is better. Training loss counts the tokens of the target, validation loss the choice among the labels. "
        "Where validation rises while training falls, the prompt learns its rows by heart.",
    )
    names = ("accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "bleu")
    shares = {f"validation {name.replace('_', ' ')}": curve(f"eval_{name}") for name in names}
    shares = {name: points for name, points in shares.items() if points}
    if not shares:
        return body + paragraph("Nothing was validated: there were no validation rows, or it did not come to that.")
    return body + figure(
        figures.curves(shares, "share (0 to 1)", kept),
        "Validation",
        "Higher is better. The dashed line marks the prompt that was kept.",
    )


def _gradients(trajectory: Trajectory, reason: str | None) -> Markup:
    measured = [one for one in trajectory.measurements if one.gradient]
    if not measured:
        return _missing("measurement of gradients", reason)
    length = len(measured[-1].gradient)
    measured = [one for one in measured if len(one.gradient) == length]
    return figure(
        figures.gradient_map([one.step for one in measured], [one.gradient for one in measured]),
        "How strongly the loss pulls at each virtual token",
        "Each row is a virtual token, each column a logged step. Bright: the loss pulls at this token; dark: it hardly "
        "does; grey: not at all. A row that stays dark or grey is a token that learns nothing.",
    )


def _norms(trajectory: Trajectory, reason: str | None) -> Markup:
    start, measured = trajectory.start, [one for one in trajectory.measurements if one.norm]
    if start is None or not start.norm:
        return _missing("measurement of norms", reason)
    every = [(0, start.norm), *((one.step, one.norm) for one in measured)]
    ordered = [(step, sorted(values)) for step, values in every]
    words = [start.vocabulary_percentiles[PERCENTILES.index(percent)] for percent in (1, 50, 99)]
    drawn = figures.norms(
        [(step, values[0]) for step, values in ordered],
        [(step, values[len(values) // 2]) for step, values in ordered],
        [(step, values[-1]) for step, values in ordered],
        words,
    )
    return figure(
        drawn,
        "Norms of the virtual tokens against those of the words",
        "Virtual tokens usually grow beyond the words while they learn. Far outside from the start on, the base reads "
        "them as it reads no word; growing without end is a sign of too high a learning rate.",
    )


def _confusion(card: Card | None, validation: Evaluation | None) -> Markup:
    labels = None if card is None or card.task is None else card.task.get("labels")
    counts = None if validation is None else validation.confusion
    if not isinstance(labels, list) or not counts:
        return _missing("confusion matrix", "it takes a task with labels and validation rows")
    if {len(counts), *map(len, counts)} != {len(labels)}:
        return _missing("confusion matrix", "the card's figures do not fit its labels")
    names = [str(label) for label in labels]
    body = figure(
        figures.confusion(counts, names),
        "Confusion matrix of the validation rows",
        "A row for each right label, a column for each predicted one; the diagonal is right, all else is a mistake.",
    )
    if len(labels) <= 12:
        return body
    mixed = sorted(
        ((counts[i][j], names[i], names[j]) for i in range(len(names)) for j in range(len(names)) if i != j),
        key=lambda one: -one[0],
    )
    rows = [(right, given, count) for count, right, given in mixed[:12] if count]
    return body + table(["right label", "predicted label", "rows"], rows, "The labels that are mixed up most")


def _mistakes(findings: Findings, reason: str | None) -> Markup:
    mistakes = findings.mistakes
    if mistakes is None:
        return _missing("list of mistakes", reason or "it takes the base and validation rows")
    if not mistakes:
        return paragraph("No validation row was answered wrong.")
    sure = any(mistake.probability is not None for mistake in mistakes)
    rows = [
        [mistake.text, mistake.right, mistake.given, *([mistake.probability] if sure else []), mistake.place]
        for mistake in mistakes
    ]
    head = ["text", "right", "answer", *(["probability of the answer"] if sure else []), "row"]
    return table(head, rows, "The worst mistakes on the validation rows, the most confident first, at most 20")


def _words(findings: Findings, reason: str | None) -> Markup:
    found = findings.inspection
    if found is None:
        return _missing("list of nearest words", reason or "it takes the base")
    rows = [
        [
            str(token.index),
            ", ".join(f"{json.dumps(word.token, ensure_ascii=False)} {word.similarity:.2f}" for word in token.nearest),
            None if token.start is None else json.dumps(token.start, ensure_ascii=False),
            token.drift,
            token.norm,
        ]
        for token in found.tokens[:_MOST_PARTS]
    ]
    body = paragraph(found.caption) + table(
        ["virtual token", "nearest words, with cosine", "started at", "distance from its start", "norm"],
        rows,
        "The words nearest to each virtual token",
    )
    if found.drift_unknown is not None:
        body += paragraph(f"How far the virtual tokens moved is not known: {found.drift_unknown}.")
    body += figure(
        figures.similarity(found.similarity),
        "Likeness between the virtual tokens",
        "The cosine of each pair. Tokens that are all alike do the same work twice.",
    )
    if found.continuation is None:
        return body
    return body + paragraph(
        f"Asked to continue the prompt alone, the base says: {json.dumps(found.continuation, ensure_ascii=False)}"
    )


def _recipe(card: Card | None, record: Mapping[str, Any] | None, reason: str | None) -> Markup:
    recipe = card.recipe if card is not None and card.recipe else (record or {}).get("recipe")
    if not isinstance(recipe, dict) or not recipe:
        return _missing("recipe", reason)
    rows = [
        (key, value if isinstance(value, int | float | str) else json.dumps(value)) for key, value in recipe.items()
    ]
    body = table(["setting", "value"], rows, "The settings of the training; see docs/training.md")
    if card is not None and card.initialisation:
        start = [(key, shorten(str(value), LONGEST_TEXT)) for key, value in card.initialisation.items()]
        body += table(["what", "value"], start, "How the prompt started")
    return body


def _source(card: Card | None, reason: str | None) -> Markup:
    if card is None:
        return _missing("card", reason)
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return Markup("<details><summary>card.json</summary>\n<pre>{}</pre>\n</details>\n").format(text)
