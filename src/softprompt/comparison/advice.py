"""Advice before training: what the rows, the words and the base suggest, what to try, and what it will cost.

Owns what is said, and that each sentence names where it comes from: the user's own data, a measurement on this machine,
a benchmark of the repository (`measured`), or a paper. Where nothing is known nothing is said. Counting is `survey`'s,
the stopwatch `costs`'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from softprompt.comparison.costs import ROWS, STEPS, Costs, measure_costs
from softprompt.comparison.measured import Measured, read_measured
from softprompt.comparison.report import seconds, size
from softprompt.comparison.survey import Survey, survey
from softprompt.models.base import Base, load_base
from softprompt.tasks.rows import Row, check_trainable, load_rows, with_validation
from softprompt.tasks.task import LABEL_COLUMN
from softprompt.training.taskfile import TaskFile, make_prompt

USUAL = 16  # virtual tokens, where no measurement says more
LEAST = 8  # that are advised: fewer do for an easy task, but one task is no proof for another
FEW_ROWS = 100
LONG = 32
UNEVEN = 3  # times as many rows of the most frequent label as of the rarest

_LESTER = "Lester et al. 2021, {}, https://aclanthology.org/2021.emnlp-main.243"
_QUALITY = "benchmarks/results/quality.json, {}"
_COUNTED = "counted in the task file's data"
_HERE = "measured on this machine a moment ago"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Statement:
    """One piece of advice.

    Attributes:
        about: "data", "words", "base", "length", "next" or "costs".
        text: the sentence.
        source: where it comes from.
    """

    about: str
    text: str
    source: str


@dataclass(frozen=True)
class Advice:
    """What is advised.

    Attributes:
        name: the task file's.
        num_virtual_tokens: P to start with.
        costs: of a run with as many as the task file says; where it gives no number, with `num_virtual_tokens`.
        statements: each with its source.
    """

    name: str
    num_virtual_tokens: int
    costs: Costs
    statements: list[Statement]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class _Case:
    """All that a statement may look at."""

    file: TaskFile
    base: Base
    found: Survey
    known: Measured


def advise(file: TaskFile, *, progress: Progress | None = None) -> Advice:
    """Look at a task file's rows and its base, take three training steps, and say what follows.

    Args:
        file: the task file.
        progress: called with what is being done and the share of all work that is done, from 0 to 1.

    Raises:
        SoftPromptError: the rows or the base can't be used, or the steps can't be taken.
    """
    tell = progress or (lambda what, share: None)
    tell("Reading the rows", 0.0)
    parts = _rows(file)
    tell("Loading the base", 0.1)
    base = load_base(file.base, dtype=file.recipe.dtype)
    known = read_measured()
    count, reason = _start(known)
    start = file.prompt
    if not isinstance(start.num_virtual_tokens, int) and start.init != "prompt":
        start = start.model_copy(update={"num_virtual_tokens": count})
    prompt = make_prompt(base, start, file.task, parts["training"])
    room = None if base.max_positions is None else base.max_positions - prompt.num_virtual_tokens
    case = _Case(file, base, survey(parts, file.task, base.tokenizer, room), known)
    tell("Taking three training steps", 0.4)
    costs = measure_costs(base, prompt, file.task, parts["training"], parts.get("validation", []), file.recipe)
    tell("Taking three training steps", 1.0)
    statements = [
        *_about_rows(case),
        *_about_labels(case),
        *_about_words(case),
        *_about_base(case),
        reason,
        *_about_length(case, prompt.num_virtual_tokens),
        *_about_next(case),
        *_about_costs(case, prompt.num_virtual_tokens, costs),
    ]
    return Advice(file.name, count, costs, statements)


def _rows(file: TaskFile) -> dict[str, Sequence[Row]]:
    """The task file's rows by the part of the data."""
    train = load_rows(file.data.train, file.task)
    check_trainable(train, file.task)
    rows, checks = with_validation(train, file.data.validation, file.task, file.recipe.seed)
    test = None if file.data.test is None else load_rows(file.data.test, file.task)
    parts = {"training": rows, "validation": checks, "test": test}
    return {part: found for part, found in parts.items() if found is not None}


def _about_rows(case: _Case) -> Iterator[Statement]:
    rows, recipe = case.found.rows, case.file.recipe
    said = ", ".join(f"{count:,} {part}" for part, count in rows.items())
    yield Statement("data", f"There are {said} rows.", _COUNTED)
    count = rows["training"]
    if count < FEW_ROWS:
        passes = recipe.max_steps * recipe.batch_size / count
        yield Statement(
            "data",
            f"{count} training rows are few: {recipe.max_steps} steps of {recipe.batch_size} rows show each of them "
            f"{passes:.0f} times. Look in the run's report for overfitting.",
            "arithmetic on the task file's recipe",
        )
        by_rows = case.known.scores("rows")
        if by_rows:
            said = ", ".join(f"{variant} {score:.3f}" for variant, score in by_rows.items())
            yield _quality(case, "data", f"What more rows brought elsewhere: {said}.", "rows", list(by_rows))
    for part in ("validation", "test"):
        if part not in rows:
            continue
        if rows[part] < FEW_ROWS:
            noise = 0.5 / math.sqrt(rows[part])
            yield Statement(
                "data",
                f"{rows[part]} {part} rows measure a share of right answers with a standard error of up to "
                f"{noise:.1%}: smaller differences tell nothing.",
                "binomial standard error, at most 0.5 / sqrt(rows)",
            )
    if "validation" not in rows:
        yield Statement(
            "data",
            "There are no validation rows: the last prompt is kept whether or not it is the best, and nothing stops "
            "the run early. Give data.validation, a file or a fraction such as 0.1.",
            "docs/training.md",
        )
    if "test" not in rows:
        yield Statement(
            "data",
            "There are no test rows: what is reported will be the validation rows, on which the best step was "
            "chosen, and too good. Give data.test.",
            "docs/comparison.md",
        )
    for (one, other), shared in case.found.shared.items():
        if shared:
            yield Statement(
                "data",
                f"{shared:,} texts of the {other} rows are among the {one} rows too: take them out of one of the two, "
                "else the figures on them are of what was learned by heart.",
                _COUNTED,
            )
    if case.found.contradictory:
        yield Statement(
            "data",
            f"{case.found.contradictory:,} training texts stand there with more than one answer: at most one of them "
            "can be learned.",
            _COUNTED,
        )
    if case.found.repeated:
        yield Statement("data", f"{case.found.repeated:,} training rows repeat an earlier one.", _COUNTED)
    for part, cut in case.found.truncated.items():
        if cut:
            yield Statement(
                "data",
                f"{cut:,} {part} texts do not fit the base's context of {case.base.max_positions:,} tokens beside the "
                "prompt and the target: their ends are cut.",
                _COUNTED,
            )


def _about_labels(case: _Case) -> Iterator[Statement]:
    labels, task = case.found.labels, case.file.task
    if not labels:
        return
    total = sum(labels.values())
    first, last = next(iter(labels)), next(reversed(labels))
    missing = [label for label, count in labels.items() if not count]
    yield Statement(
        "data",
        f"There are {len(labels)} labels; always answering '{first}' would be right for {labels[first] / total:.1%} of "
        "the training rows.",
        _COUNTED,
    )
    if missing:
        yield Statement(
            "data", f"No training row has the label {', '.join(missing)}: add rows, or drop the label.", _COUNTED
        )
    if task.metric == "accuracy" and labels[first] >= UNEVEN * labels[last]:
        yield Statement(
            "data",
            f"The labels are uneven ({labels[first]:,} rows of '{first}', {labels[last]:,} of '{last}'): accuracy "
            "hardly notices the rare ones. Set task.metric: macro_f1, in which each label counts alike.",
            _COUNTED,
        )
    longest = max(case.found.label_tokens, key=lambda label: case.found.label_tokens[label])
    tokens = case.found.label_tokens[longest]
    if tokens > 1:
        single = sum(count == 1 for count in case.found.label_tokens.values())
        yield Statement(
            "words",
            f"{single} of {len(labels)} labels are one token to this base; '{longest}' takes {tokens}. Labels that are "
            "one common word are quicker to score and to learn from.",
            "counted with the base's tokenizer; all tokens of a label are scored, see docs/task-files.md",
        )


def _about_words(case: _Case) -> Iterator[Statement]:
    task, start = case.file.task, case.file.prompt
    source = "docs/task-files.md, Spaces"
    ends, begins = task.template[-1:].isspace(), task.target[:1].isspace()
    if task.template.endswith(" "):
        yield Statement(
            "words",
            "The template ends with a space. In most tokenizers the space belongs to the word after it: end the "
            'template without it, and begin the target with it, as in target: " {label}".',
            source,
        )
    elif not ends and not begins and task.suffix:
        joint = task.suffix.split("\n")[-1] + task.render_target({LABEL_COLUMN: task.labels[0]}) if task.labels else ""
        shown = f", as in '{joint}'" if joint else ""
        yield Statement(
            "words",
            f"Nothing separates the template's end from the target{shown}: where words are written with spaces, begin "
            'the target with one, as in target: " {label}".',
            source,
        )
    if start.init == "text" and start.init_text is None:
        yield Statement(
            "words",
            "There is no prompt.init_text, so that the prompt starts from words made of the task itself. Say in a "
            "sentence what is to be done: on small models where a prompt starts makes large differences.",
            _LESTER.format("section 3.2"),
        )
    if start.init == "random" or start.init == "vocabulary":
        yield Statement(
            "words",
            f"The prompt starts from init: {start.init}. Class labels did best in the paper, and the smaller the model "
            "the greater was the difference: try init: labels, or init: text.",
            _LESTER.format("section 3.2"),
        )
    by_start = case.known.scores("initialisation")
    if by_start:
        said = ", ".join(f"{variant} {score:.3f}" for variant, score in by_start.items())
        yield _quality(case, "words", f"Measured starts: {said}.", "initialisation", list(by_start))
    labels = task.labels or []
    count = start.num_virtual_tokens
    if start.init == "labels" and isinstance(count, int) and count < len(labels):
        yield Statement(
            "words",
            f"{len(labels)} labels do not fit {count} virtual tokens: the prompt starts from {count} of them.",
            "docs/task-files.md, How a prompt starts",
        )


def _about_base(case: _Case) -> Iterator[Statement]:
    parameters, base = case.base.model.num_parameters(), case.base
    context = "no fixed context" if base.max_positions is None else f"a context of {base.max_positions:,} tokens"
    yield Statement(
        "base",
        f"{base.name} has {parameters:,} parameters, virtual tokens of H = {base.hidden_size:,} numbers and {context}.",
        "the base itself",
    )
    if parameters < 10_000_000_000:
        yield Statement(
            "base",
            "Prompt tuning was as good as full fine-tuning with models of about ten billion parameters, and the "
            "smaller the model the further behind. On this base measure it against LoRA before you decide: softprompt "
            "compare.",
            _LESTER.format("figure 1"),
        )
    else:
        yield Statement(
            "base",
            "With models of this size prompt tuning was as good as full fine-tuning.",
            _LESTER.format("figure 1"),
        )
    for task in dict.fromkeys(one.task for one in case.known.methods):
        here = [one for one in case.known.methods if one.task == task]
        scores = ", ".join(f"{one.method} {one.score:.3f}" for one in here)
        yield Statement(
            "base",
            f"Measured with a base of {here[0].base_parameters:,} parameters on {task}, {here[0].metric}: {scores}.",
            _QUALITY.format(f"methods on {task}"),
        )


def _start(known: Measured) -> tuple[int, Statement]:
    """How many virtual tokens to start with, and why."""
    scores = known.scores("length")
    lengths = {int(variant.removeprefix("P = ")): score for variant, score in scores.items()}
    lengths = {count: score for count, score in lengths.items() if count >= LEAST}
    if not lengths:
        return USUAL, Statement(
            "length",
            f"Start with {USUAL} virtual tokens: more than 20 brought little in the paper, for models of all sizes.",
            _LESTER.format("section 3.2"),
        )
    rows = known.rows("length", list(scores))
    best = max(lengths, key=lambda count: lengths[count])
    noise = math.sqrt(lengths[best] * (1 - lengths[best]) / rows)
    count = min(count for count, score in lengths.items() if score >= lengths[best] - noise)
    return count, Statement(
        "length",
        f"Start with {count} virtual tokens: they scored {lengths[count]:.3f}, and the best length, {best}, "
        f"{lengths[best]:.3f}; fewer, from {LEAST} on, were worse than that by more than its standard error, "
        f"{noise:.3f}.",
        _QUALITY.format(f"length on {', '.join(known.tasks('length', list(scores)))}"),
    )


def _about_length(case: _Case, count: int) -> Iterator[Statement]:
    if count <= LONG:
        return
    yield Statement(
        "length",
        f"{count} virtual tokens are many: beyond 20 the paper found little gain. Try fewer, or softprompt prune "
        "afterwards.",
        _LESTER.format("section 3.2"),
    )
    by_length = {one.num_virtual_tokens: one for one in case.known.steps if one.batch_size == 16}
    if 20 in by_length and 100 in by_length:
        short, long = by_length[20], by_length[100]
        yield Statement(
            "length",
            f"They take time: with {short.base} a training step of 16 rows took {short.milliseconds:,.0f} ms with 20 "
            f"virtual tokens and {long.milliseconds:,.0f} ms with 100.",
            "benchmarks/results/training_step.json, B = 16",
        )


def _about_next(case: _Case) -> Iterator[Statement]:
    start, recipe, known = case.file.prompt, case.file.recipe, case.known
    if start.num_virtual_tokens != "auto" and start.init != "prompt" and "validation" in case.found.rows:
        yield Statement(
            "next",
            "prompt: {num_virtual_tokens: auto} tries 8, 16 and 32 for as long as validation improves by more than its "
            "noise; it takes up to three times as long.",
            "docs/training.md, How many virtual tokens",
        )
    by_rate = {float(variant.removeprefix("rate ")): score for variant, score in known.scores("rate").items()}
    if recipe.optimizer == "adamw" and by_rate and recipe.rate < min(by_rate):
        best = max(by_rate, key=lambda rate: by_rate[rate])
        tried = ", ".join(f"{rate:g}: {score:.3f}" for rate, score in sorted(by_rate.items()))
        yield _quality(
            case,
            "next",
            f"recipe.learning_rate {recipe.rate:g} is below every rate that was measured; {best:g} had the best score "
            f"({tried}). Try learning_rate: auto.",
            "rate",
            [f"rate {rate:g}" for rate in by_rate],
        )
    options = {one.variant for one in known.variants if one.part == "options"} - {"none"}
    gains = {}
    for option in options:
        found = known.scores("options", ["none", option])
        if found:
            gains[option] = found[option] - found["none"]
    for option, gain in sorted(gains.items(), key=lambda pair: (-pair[1], pair[0])):
        verdict = f"gained {gain:.3f}" if gain > 0 else f"did not help ({gain:+.3f})"
        yield _quality(case, "next", f"Of the options, {option} {verdict}.", "options", ["none", option])
    if not recipe.residual:
        yield Statement(
            "next",
            "recipe: {residual: 128} trains the prompt behind a small network: in the paper it gained seven points "
            "over plain prompt tuning with T5-Base on SuperGLUE.",
            "Razdaibiedina et al. 2023, https://arxiv.org/abs/2305.03937",
        )
    if start.init != "prompt":
        yield Statement(
            "next",
            "If you have a prompt of a related task with many rows, start from it (prompt: {init: prompt, init_from: "
            "FOLDER}): in the paper that matched or beat full fine-tuning at all model sizes.",
            "Vu et al. 2022 (SPoT), https://arxiv.org/abs/2110.07904",
        )


def _about_costs(case: _Case, count: int, costs: Costs) -> Iterator[Statement]:
    share = costs.trainable_parameters / costs.base_parameters
    yield Statement(
        "costs",
        f"{count} virtual tokens are {costs.trainable_parameters:,} trained numbers, {share:.3%} of the base's, and "
        f"about {size(costs.artifact_bytes)} on disk.",
        "the prompt's own size and folder",
    )
    recipe = case.file.recipe
    checks = case.found.rows.get("validation", 0)
    validations = math.ceil(recipe.max_steps / recipe.evaluate_every) if checks else 0
    validated = f" and {validations} validations of {checks:,} rows at {costs.row_seconds:.2g} s" if checks else ""
    lengths = " for each length" if case.file.prompt.num_virtual_tokens == "auto" else ""
    yield Statement(
        "costs",
        f"A run takes about {_time(costs.train_seconds)}{lengths}: {recipe.max_steps} steps of "
        f"{costs.step_seconds:.2g} s{validated}; less if it stops early.",
        f"{_HERE}: {STEPS} steps, {min(ROWS, checks or ROWS)} answers",
    )
    yield Statement(
        "costs",
        f"It needs about {size(costs.peak_memory_bytes)} of memory, the base included.",
        f"{_HERE}: the peak of this process",
    )


def _quality(case: _Case, about: str, text: str, part: str, variants: Sequence[str]) -> Statement:
    """A statement from the quality benchmark, with the tasks that it was measured on."""
    tasks = case.known.tasks(part, variants)
    return Statement(about, text, _QUALITY.format(f"{part} on {', '.join(tasks)}"))


def _time(count: float) -> str:
    return f"{count / 60:.0f} minutes" if count >= 120 else seconds(count)
