"""What an inspection and a pruning look like on a terminal.

Owns the tables and the lines. Does not know how anything is found, nor arguments and exit codes.
"""

from __future__ import annotations

import json

from rich.table import Table

from softprompt.inspection.inspection import CAPTION, Inspection
from softprompt.inspection.leakage import CAPTION as LEAKAGE_CAPTION
from softprompt.inspection.leakage import CHANCE_EXPOSURE, Leakage
from softprompt.inspection.pruning import Pruned
from softprompt.inspection.similarity import TaskMap

_WORDS = 3  # nearest words of each kind that fit a terminal's width
_TEXTS = 3  # read off a prompt, that are shown
_PAIRS = 3  # most alike virtual tokens that are named


def describe_inspection(found: Inspection) -> list[str | Table]:
    """The parts of an inspection, in order."""
    parts: list[str | Table] = [_tokens(found), CAPTION]
    parts.append(f"The norm of the base's words is {found.word_norm_mean:.2f} +- {found.word_norm_deviation:.2f}.")
    if found.drift_unknown is not None:
        parts.append(f"The drift is not known: {found.drift_unknown}.")
    if len(found.tokens) > 1:
        parts.append(f"Most alike (cosine): {_most_alike(found)}")
    if found.importance is not None:
        whole, measure = found.importance.whole, found.importance.measure
        parts.append(
            f"importance: how much worse {measure} is without the virtual token; the whole prompt has "
            f"{getattr(whole, measure):.4f} on {whole.n} rows"
        )
        pushed = [f"{token.index} to {quoted(token.pushes)}" for token in found.tokens if token.pushes is not None]
        if pushed:
            parts.append(f"pushes (the label that a virtual token adds the most answers to): {', '.join(pushed)}")
    if found.continuation is not None:
        parts.append(f"Asked to continue the prompt alone, the base says: {quoted(found.continuation)}")
    return parts if found.map is None else [*parts, *_map(found.map)]


def describe_pruning(found: Pruned, path: str) -> list[str | Table]:
    """What pruning left in `path`."""
    before, after = (
        {key: value for key, value in one.to_json().items() if isinstance(value, float) and key != "seconds"}
        for one in (found.before, found.after)
    )
    table = Table("", "virtual tokens", "rows", *before)
    for name, count, figures in (
        ("before", len(found.kept) + len(found.dropped), before),
        ("after", len(found.kept), after),
    ):
        table.add_row(name, str(count), str(found.before.n), *(f"{value:.4f}" for value in figures.values()))
    places = ", ".join(map(str, found.kept))
    return [table, f"Kept the virtual tokens {places}. The new prompt is in {path}"]


def describe_leakage(found: Leakage) -> list[str | Table]:
    """What a prompt gives away, and what is not known of it."""
    table = Table("what is looked for", "found [95% interval]", "chance")
    parts: list[str | Table] = [table]
    words, told, planted = found.recovery, found.membership, found.canaries
    if words is not None:
        chance = "" if words.by_chance is None else f"{words.by_chance}"
        table.add_row("virtual tokens that read as a training text", f"{words.by_cosine} of {words.tokens}", chance)
        table.add_row("likewise by distance, norms made equal", f"{words.by_distance} of {words.tokens}", "")
        if words.kept is not None:
            table.add_row("nearest to the word they started at", f"{words.kept} of {words.tokens}", "")
        if words.texts:
            parts.append(f"read off: {' '.join(quoted(text) for text in words.texts[:_TEXTS])}")
    if told is not None:
        for name, value, (low, high), chance in (
            ("membership by loss: ROC AUC", told.auc, told.auc_interval, "0.500"),
            ("members found at 1% false alarms", told.tpr, told.tpr_interval, "0.010"),
        ):
            table.add_row(name, f"{value:.3f} [{low:.3f}, {high:.3f}]", chance)
        parts.append(f"Membership: {told.seen:,} rows learned against {told.unseen:,} that were not.")
    else:
        parts.append("Membership is not measured: give rows that the prompt has not learned with --unseen.")
    if planted is not None:
        mean = sum(planted.exposures) / len(planted.exposures)
        table.add_row(
            f"exposure of {len(planted.exposures)} canaries, mean (most {planted.most:.1f} bits)",
            f"{mean:.2f} (p = {planted.p_value:.2g})",
            f"{CHANCE_EXPOSURE:.2f}",
        )
    else:
        parts.append("There are no canaries among the rows: sp.plant_canaries puts some there before training.")
    if found.private is not None:
        parts.append(
            f"Trained with differential privacy: epsilon {found.private['epsilon']:.3g} at delta "
            f"{found.private['delta']:.3g} for its training rows."
        )
    return [*parts, LEAKAGE_CAPTION]


def quoted(text: str) -> str:
    """A text on one line in quotes, with nothing in it that a terminal would obey."""
    whole = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in whole)


def _tokens(found: Inspection) -> Table:
    measured = ["importance"] if found.importance is not None else []
    started = ["start", "drift"] if found.drift_unknown is None else []
    table = Table("#", "norm", *started, *measured, "nearest by cosine", "nearest by distance")
    for token in found.tokens:
        start = [quoted(str(token.start)), f"{token.drift:.2f}"] if started else []
        score = [f"{token.importance:+.4f}"] if measured else []
        words = [
            " ".join(f"{quoted(word.token)} {word.value:.2f}" for word in near[:_WORDS])
            for near in (token.around.by_cosine, token.around.by_distance)
        ]
        table.add_row(str(token.index), f"{token.norm:.2f}", *start, *score, *words)
    return table


def _most_alike(found: Inspection) -> str:
    count = len(found.tokens)
    pairs = sorted(
        ((found.similarity[i][j], i, j) for i in range(count) for j in range(i + 1, count)),
        key=lambda pair: -pair[0],
    )
    return ", ".join(f"{i} and {j} {cosine:.2f}" for cosine, i, j in pairs[:_PAIRS])


def _map(found: TaskMap) -> list[str | Table]:
    table = Table("prompt", "likeness (cosine of the mean virtual tokens)", "on the map")
    order = sorted(range(len(found.names)), key=lambda i: -found.similarity[found.asked][i])
    for i in order:
        name = found.names[i] + (" (asked about)" if i == found.asked else "")
        x, y = found.places[i]
        table.add_row(name, f"{found.similarity[found.asked][i]:.3f}", f"({x:+.2f}, {y:+.2f})")
    return [table, *(f"{name} is not compared: {reason}" for name, reason in found.left_out.items())]
