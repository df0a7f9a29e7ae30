"""What looks wrong in a run: one sentence each, with the number and the remedy.

Owns the checks and their thresholds. Does not know how anything was measured (`monitor`), and changes nothing.

The numbers called measured are from SmolLM2-135M on the demonstration's film reviews: 16 virtual tokens started from
text unless said, AdamW, batches of 16, 25 to 50 steps; see docs/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from softprompt.training.trajectory import PERCENTILES, Start, Trajectory, Validated

# A dead token's gradient, as a share of the strongest one's. In healthy runs the weakest was never below 1/60
# (measured); what a base cannot see from a text gets exactly nothing.
DEAD = 1e-4
# An exploding token's norm, in norms that 99% of the words stay below. A run that learned well at a rate of 0.3
# reached 5 (measured).
EXPLODING = 20.0
# A start outside the table: its median norm in norms that 99% of the words stay below, or stay above. Initialisers that
# take words stay within 1; PEFT's N(0, 1) is at 4.9 (measured) and grows with the root of H.
OUTSIDE, BELOW = 2.0, 0.5
# What one step adds at the full rate, in norms of the average word. Measured: 0.05 at rate 0.03 and 0.3 at 0.3, which
# learned well; 3.4 at 3 and 1.1 with the recipe "lester", which learned worse, the latter after a loss of 6 at step 5;
# 0.005 at 0.001, where the loss after 30 steps was twice that at 0.03.
TOO_FAST, TOO_SLOW, USUAL = 1.0, 0.006, 0.02
# Small steps are enough where there are many: a prompt this far from its start, in the same unit, has moved. In 30
# steps rate 0.001 came 0.07 far, rate 0.03 came 0.9 (measured).
MOVED = 0.3
# The loss is flat where its fall is less than this many standard errors of it. A loss that only jumps passes for one
# that falls once in 40 times; one that falls does so by dozens of them.
FLAT = 2.0
# Validation got worse: log loss by this share, shares (such as accuracy) by this much, twice in a row, while the
# training loss fell by this share. A validation of 100 rows is uncertain by about as much.
WORSE_LOSS, WORSE_SHARE, BETTER_TRAINING = 0.1, 0.05, 0.1

# Entries without which nothing is said.
_FEWEST_GRADIENTS, _FEWEST_LOSSES, _FEWEST_STEPS_AT_RATE = 3, 8, 2
_MOST_STEPS_AT_RATE = 20  # a check is to take as long at the end of a long run as at its start
_MOST_NAMED = 8
# The standard deviation of normal noise, in medians of the absolute difference of two neighbours.
_DEVIATION = 1.0483
_SHARES = ("accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "bleu")


@dataclass(frozen=True)
class Diagnosis:
    """Something that looks wrong.

    Attributes:
        name: a few words, such as "dead tokens".
        sentence: what was found, with the number, and what to do.
    """

    name: str
    sentence: str


def diagnose(trajectory: Trajectory) -> list[Diagnosis]:
    """All that looks wrong in a trajectory so far, the gravest first."""
    checks = (_outside_start, _dead, _exploding, _learning_rate, _flat, _overfitting)
    return [found for check in checks if (found := check(trajectory)) is not None]


def special_texts(count: int, rows: int) -> list[Diagnosis]:
    """What is to be said of `count` of `rows` texts in which the text of a special token stands, such as `</s>`."""
    if not count:
        return []
    return [
        Diagnosis(
            "special tokens in rows",
            f"{count} of {rows} training rows hold the text of a special token, such as </s>, in a value, where it is "
            "taken as text: write it in the template if it is meant as a token, or remove it",
        )
    ]


def _outside_start(run: Trajectory) -> Diagnosis | None:
    start = run.start
    if start is None or start.trained or not start.norm:
        return None
    low, high, norm = _percentile(start, 1), _percentile(start, 99), median(start.norm)
    if BELOW * low <= norm <= OUTSIDE * high:
        return None
    return Diagnosis(
        "start outside the vocabulary",
        f"the prompt started at a median norm of {norm:.3g}, where 98% of the words are between {low:.3g} and "
        f"{high:.3g}: start from text, labels or the vocabulary (prompt.init)",
    )


def _dead(run: Trajectory) -> Diagnosis | None:
    last = [one.gradient for one in run.measurements[-_FEWEST_GRADIENTS:]]
    if len(last) < _FEWEST_GRADIENTS:
        return None
    gradients = [median(of_token) for of_token in zip(*last, strict=True)]
    strongest, count = max(gradients), len(gradients)
    dead = [token for token, gradient in enumerate(gradients) if gradient <= DEAD * strongest]
    if not dead:
        return None
    if strongest == 0:
        return Diagnosis(
            "dead tokens",
            f"all {count} virtual tokens get a gradient of 0 and learn nothing: the loss does not depend on the "
            "prompt; choose another recipe.dtype or another base",
        )
    names = ", ".join(map(str, dead[:_MOST_NAMED])) + (", ..." if len(dead) > _MOST_NAMED else "")
    return Diagnosis(
        "dead tokens",
        f"{len(dead)} of {count} virtual tokens ({names}) get less than 1/{1 / DEAD:,.0f} of the strongest one's "
        "gradient and learn nothing: the base may not look back that far; set prompt.num_virtual_tokens to "
        f"{count - len(dead)}",
    )


def _exploding(run: Trajectory) -> Diagnosis | None:
    start = run.start
    if start is None or not run.measurements:
        return None
    last, words = run.measurements[-1], _percentile(start, 99)
    if not words:
        return None
    grown = [
        (now / max(words, before), token)
        for token, (now, before) in enumerate(zip(last.norm, start.norm, strict=False))
        if now > EXPLODING * max(words, before)
    ]
    if not grown:
        return None
    _, token = max(grown)
    return Diagnosis(
        "exploding tokens",
        f"{len(grown)} of {len(last.norm)} virtual tokens have exploded, token {token} to a norm of "
        f"{last.norm[token]:.0f} where 99% of the words are below {words:.3g}: lower recipe.learning_rate, now "
        f"{start.learning_rate:g}, to about {start.learning_rate / 10:.1g}, or set recipe.weight_decay",
    )


def _learning_rate(run: Trajectory) -> Diagnosis | None:
    start = run.start
    if start is None or not start.vocabulary_mean:
        return None
    # Not in the warm-up, and not at the end of a schedule that goes to 0.
    at_rate = [one for one in run.measurements if one.learning_rate >= start.learning_rate / 2]
    # A step is close to orthogonal to where it starts, which gives the norm before it from the norm after it.
    steps = [
        median(u * n / (1 + u * u) ** 0.5 for u, n in zip(one.update, one.norm, strict=True)) / start.vocabulary_mean
        for one in at_rate[-_MOST_STEPS_AT_RATE:]
    ]
    if len(steps) < _FEWEST_STEPS_AT_RATE:
        return None
    length, rate = median(steps), start.learning_rate
    advice = f"recipe.learning_rate, now {rate:g}, to about {rate * USUAL / max(length, 1e-9):.1g}"
    moves = f"one step moves a virtual token by {length:.2g} times the norm of a word ({USUAL:g} is usual)"
    if length > TOO_FAST:
        return Diagnosis("learning rate too high", f"{moves}: lower {advice}")
    drift = median(run.measurements[-1].drift) / start.vocabulary_mean
    if length < TOO_SLOW and drift < MOVED:
        return Diagnosis(
            "learning rate too low", f"{moves}, and it has come {drift:.2g} times that norm far: raise {advice}"
        )
    return None


def _flat(run: Trajectory) -> Diagnosis | None:
    losses = [one.loss for one in run.measurements]
    if len(losses) < _FEWEST_LOSSES or (run.start is not None and run.start.trained):
        return None
    early, late = losses[: len(losses) // 4], losses[len(losses) // 2 :]
    noise = _DEVIATION * median(abs(b - a) for a, b in pairwise(losses))
    fall = fmean(early) - fmean(late)
    if fall > FLAT * noise * (1 / len(early) + 1 / len(late)) ** 0.5:
        return None
    first, last = run.measurements[0].step, run.measurements[-1].step
    return Diagnosis(
        "flat loss",
        f"from step {first} to {last} the loss went from {fmean(early):.3f} to {fmean(late):.3f}, which is within its "
        f"noise of {noise:.3f}: raise recipe.learning_rate or recipe.max_steps, start from other words, or check that "
        "the labels follow from the texts",
    )


def _overfitting(run: Trajectory) -> Diagnosis | None:
    named = _costs(run.validations)
    # Rows that were seen once cannot be known by heart: a validation that worsens then is a run that jumps.
    if named is None or run.start is None or run.validations[-1].step <= run.start.steps_per_pass:
        return None
    name, costs, margin = named
    best = min(range(len(costs)), key=lambda i: costs[i])
    later = costs[best + 1 :][-2:]
    if len(later) < 2 or min(later) <= costs[best] + margin * (costs[best] if name == "log_loss" else 1):
        return None
    steps = [one.step for one in run.validations]
    since = (steps[best] + (steps[best - 1] if best else 0)) / 2
    before = [one.loss for one in run.measurements if since < one.step <= steps[best]]
    after = [one.loss for one in run.measurements if steps[-2] < one.step]
    if not before or not after or fmean(after) > (1 - BETTER_TRAINING) * fmean(before):
        return None
    figures = [one.figures[name] for one in run.validations]
    return Diagnosis(
        "overfitting",
        f"validation {name.replace('_', ' ')} got worse, from {figures[best]:.3f} at step {steps[best]} to "
        f"{figures[-1]:.3f} at step {steps[-1]}, while the training loss fell from {fmean(before):.3f} to "
        f"{fmean(after):.3f}: stop at about step {steps[best]} (recipe.max_steps), add training rows, or take fewer "
        "virtual tokens",
    )


def _costs(validations: Sequence[Validated]) -> tuple[str, list[float], float] | None:
    """The figure that tells of overfitting, its values as costs, and the margin: log loss where there is one."""
    for name in ("log_loss", *_SHARES):
        values = [one.figures[name] for one in validations if name in one.figures]
        if values and len(values) == len(validations):
            is_loss = name == "log_loss"
            return name, values if is_loss else [-value for value in values], WORSE_LOSS if is_loss else WORSE_SHARE
    return None


def _percentile(start: Start, percent: int) -> float:
    return start.vocabulary_percentiles[PERCENTILES.index(percent)]
