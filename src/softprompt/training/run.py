"""One training run, from rows to a trained prompt: what is checked first, the loop, and what comes of it.

Owns the order of these. The run's folder is `folder.py`'s, the loop `loop.py`'s. Knows nothing of task files.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from softprompt.bases.base import Base, dtype_name
from softprompt.errors import SoftPromptError
from softprompt.evaluation.calibration import calibrate, check_labels, rows_of, worth_keeping, worth_trying
from softprompt.evaluation.evaluate import Evaluation, Evaluator, evaluate, tell_cut
from softprompt.files import write_file
from softprompt.models.generation import find_way
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.answers import KINDS
from softprompt.tasks.encode import Encoded, Encoder, check_kind
from softprompt.tasks.problems import Problem, in_rows, in_words, unseen
from softprompt.tasks.rows import Row, Rows, as_rows
from softprompt.tasks.splits import check_trainable, with_validation
from softprompt.tasks.task import Task
from softprompt.training.diagnosis import Diagnosis, diagnose, special_texts
from softprompt.training.folder import (
    LOG,
    MONITOR,
    PROMPT,
    RECORD,
    VALIDATION,
    Log,
    Replaced,
    check_folder,
    check_same,
    describe,
    digest,
    locked,
    open_run,
    write_problems,
)
from softprompt.training.heads import choose_answer, fit, fit_head, label_weights, rows_to_fit, with_head
from softprompt.training.interruption import Interruption
from softprompt.training.loop import DivergedError, Lane, PromptTrainer
from softprompt.training.monitor import Monitor
from softprompt.training.privacy import Draws, Mechanism, make_mechanism, warn_of_start
from softprompt.training.processes import check_base, gather, is_first, none_lost, start, together
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Schedule, learned_rows
from softprompt.training.shares import ask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a training run left.

    Attributes:
        prompt: the best prompt by validation, or the last one where nothing was validated. Its card tells the rest.
        steps: optimiser steps done.
        best_step: the step that the prompt is from.
        seconds: time taken by this call.
        truncated: training texts that were cut to fit the context.
        validation: the prompt's validation; None without validation rows.
        history: the Trainer's log, one dictionary an entry.
        kernel: how the steps were computed.
        diagnoses: what looked wrong in the rows, and with the monitor at the end.
        problems: the faults of the rows and the template.
        fit_seconds: of `seconds`, those in which a head was fitted.
        folder: the run's folder; None where none was asked for.
    """

    prompt: SoftPrompt
    steps: int
    best_step: int
    seconds: float
    truncated: int
    validation: Evaluation | None
    history: list[dict[str, Any]]
    kernel: str
    diagnoses: list[Diagnosis] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    fit_seconds: float = 0.0
    folder: Path | None = field(default=None)

    @property
    def path(self) -> Path | None:
        """The saved prompt's folder."""
        return None if self.folder is None else self.folder / PROMPT

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints of the run."""
        files = [] if self.path is None else list(self.path.iterdir())
        return {
            "prompt": None if self.path is None else str(self.path),
            "steps": self.steps,
            "seconds": self.seconds,
            "trainable_parameters": self.prompt.trainable_parameters,
            "artifact_bytes": sum(file.stat().st_size for file in files),
            "validation": None if self.validation is None else self.validation.to_json(),
            "best_step": self.best_step,
            "truncated": self.truncated,
            "kernel": self.kernel,
            "diagnoses": [asdict(diagnosis) for diagnosis in self.diagnoses],
            "problems": [asdict(problem) for problem in self.problems],
        }


@none_lost()
def train(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    *,
    train: Rows,
    validation: Rows | float | None = None,
    test: Rows | None = None,
    recipe: Recipe | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Callable[[int], None] | None = None,
    diagnosed: Callable[[Sequence[Diagnosis]], None] | None = None,
) -> Run:
    """Learn a task: train the prompt's `[P, H]` numbers, and nothing else, by cross-entropy on the targets.

    Lester, Al-Rfou, Constant 2021, https://aclanthology.org/2021.emnlp-main.243.

    Args:
        base: the frozen base.
        prompt: where to start from; it is not changed.
        task: what is learned.
        train: labelled rows, or a file or `hub:OWNER/NAME:SPLIT` with them.
        validation: likewise, or the fraction of the training rows to set aside; None: the last prompt is kept.
        test: rows that the prompt is to be measured on later: it is said which of their texts are learned too.
        recipe: the settings; default `Recipe()`.
        output: the run's folder; None: checkpoints go to a temporary folder and the prompt stays in memory.
        resume: go on from the newest checkpoint in `output`; the result is that of a run never interrupted.
        force: replace a run in `output`.
        callbacks: callbacks of the Trainer's kind.
        progress: called with the number of rows finished since the last call, but for those of the steps.
        diagnosed: called after each log entry and validation with what looks wrong, unless the recipe's monitor is off.

    Raises:
        SoftPromptError: the data can't be used, `output` exists (without `resume` or `force`), or holds another run.
        WrongBaseError: the prompt was made for another base.
        DivergedError: the loss became NaN or infinite; the last good prompt is kept in `output`.
    """
    began = time.perf_counter()
    recipe = recipe or Recipe()
    start(base.device)
    check_base(base.sharded, base.name)
    with together():
        rows, checks = with_validation(train, validation, task, recipe.seed)
        recipe = recipe.for_rows(len(rows))
        parts = rows, checks, None if test is None else as_rows(test, task)
        planned = plan(base, prompt, choose_answer(task, rows, prompt, base.family), recipe, parts)
    prepared = _agree(planned, parts[2], resume=resume, force=force)
    with ExitStack() as stack:
        folder = _folder(output, prepared.about, stack, resume=resume, force=force)
        interruption, replaced = Interruption(), Replaced(folder / RECORD)
        with together():
            lane = prepared.lane(folder, [*callbacks, interruption, replaced], diagnosed)
            trainer = PromptTrainer(prepared.model, recipe, [lane], folder, progress=progress)
        checkpoint = trainer.last_checkpoint() if resume else None
        check_same({"checkpoint": checkpoint and checkpoint.name})
        with together():
            if checkpoint is None:
                prepared.fit_head(progress)
        # All that can fail before a step has been tried: now a run that is there may go.
        with together():
            if output is not None and not resume and is_first():
                open_run(folder, prepared.about)
                write_problems(folder, prepared.problems)
        kept = None if output is None else folder
        try:
            if prompt.num_virtual_tokens:
                with replaced.put_back_on_failure(is_first()), interruption:
                    trainer.go_on(checkpoint)
            else:
                logger.warning("no virtual tokens: the head is fitted, and nothing is trained")
                replaced.drop()
        except DivergedError as error:
            if (good := trainer.last_checkpoint()) is None:
                raise
            trainer.restore(good)
            raise with_last_good(error, finish(prepared, trainer, 0, kept, progress, began)) from None
        return finish(prepared, trainer, 0, kept, progress, began)


def _agree(planned: Planned, test: Sequence[Row] | None, **options: bool) -> Prepared:
    """What all processes have planned alike, made ready to be run."""
    alike = {"recipe": planned.recipe.model_dump(), "test rows": digest(test), "options": options}
    check_same(planned.about | alike)
    with together():
        return planned.prepare()


def rows_around(task: Task, recipe: Recipe, rows: int, checks: int) -> tuple[int, int]:
    """How many rows are asked before the first step and after the last: to fit a head, to calibrate, to validate again.

    Args:
        task: with a kind of answer that is not `auto`.
        recipe: of the run.
        rows: the training rows.
        checks: the validation rows.
    """
    if recipe.private is not None:
        return 0, 0
    if KINDS[task.kind].head == "labels":
        fitted = len(rows_to_fit(rows, recipe))
        return fitted, fitted + checks if checks else 0
    if worth_trying(recipe.calibrate, task, validates=bool(checks)):
        return 0, len(rows_of(rows, len(task.labels or []))) + checks
    return 0, 0


def _folder(output: str | Path | None, about: dict[str, Any], stack: ExitStack, *, resume: bool, force: bool) -> Path:
    """The run's folder, checked, and locked until the stack ends; without an output one that goes with the stack."""
    if output is None:  # one for all processes, as the checkpoints are
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="softprompt-")) if is_first() else ""
        return Path(gather(own)[0])
    with together():
        if is_first():
            stack.enter_context(locked(Path(output)))
            check_folder(Path(output), about, resume=resume, force=force)
    return Path(output)


def with_last_good(error: DivergedError, run: Run) -> DivergedError:
    """The error, with where the last good prompt is."""
    where = f"kept in {run.path}" if run.path else "lost: give an output folder to keep it"
    return DivergedError(f"{error}; the last good prompt (step {run.best_step}) is {where}")


@dataclass(frozen=True)
class Planned:
    """What a run is, before the base has computed anything of it.

    Attributes:
        rows, checks: for training and validation.
        encoded: the ids of the training rows that are learned from.
        about: all that the result depends on.
        problems: the faults of the rows and the template.
        mechanism: what makes the training private; None: nothing does.
    """

    base: Base
    prompt: SoftPrompt
    task: Task
    recipe: Recipe
    rows: Sequence[Row]
    checks: Sequence[Row] | None
    encoded: Encoded
    about: dict[str, Any]
    problems: list[Problem]
    mechanism: Mechanism | None

    def prepare(self) -> Prepared:
        """The model, once it is known that it can be computed; of a spread base all processes do this together."""
        recipe, task = self.recipe, self.task
        model = PromptedModel(
            self.base,
            [self.prompt],
            max_tokens=None if self.base.sharded else recipe.max_tokens,
            gradient_checkpointing=recipe.gradient_checkpointing,
        )
        if task.kind == "text":
            find_way(model)  # says now, not after the last step, if the base cannot generate, or only slowly
        model.label_weights = label_weights(self.encoded, task, recipe)
        evaluator = None if self.checks is None else Evaluator(model, task, self.checks, ask=ask)
        return Prepared(**vars(self), model=model, evaluator=evaluator)


@dataclass(frozen=True)
class Prepared(Planned):
    """What a run needs before its folder is opened.

    Attributes:
        model: the base with the prompt.
        evaluator: the validation rows; None: there are none.
        fits: seconds that each fit of a head took.
    """

    model: PromptedModel
    evaluator: Evaluator | None
    fits: list[float] = field(default_factory=list)

    def fit_head(self, progress: Callable[[int], None] | None) -> None:
        """Fit the head, where the task is answered by one; in private training it starts at zero."""
        if self.mechanism is not None:
            return
        began = time.perf_counter()
        fit_head(self.model, self.encoded, self.task, self.recipe, progress)
        self.fits.append(time.perf_counter() - began)

    def lane(
        self,
        folder: Path,
        callbacks: Sequence[TrainerCallback] = (),
        diagnosed: Callable[[Sequence[Diagnosis]], None] | None = None,
    ) -> Lane:
        """The rows in the order in which they are learned, watched where the recipe asks for it."""
        recipe, count, monitor = self.recipe, len(self.rows), None
        learned = _learned(recipe, count, self.task)
        if recipe.monitor:
            passes = count / recipe.batch_size
            monitor = Monitor(self.base, self.prompt, recipe.rate, passes, folder / MONITOR, diagnosed)
        rows: Schedule | Draws
        if self.mechanism is not None:
            rows = Draws(self.encoded, self.mechanism, recipe.max_steps)
        else:
            rows = Schedule(self.encoded, recipe.batch_size, recipe.max_steps, recipe.seed, learned, count)
        return Lane(rows, self.evaluator, monitor, [Log(folder / LOG), *callbacks], recipe.patience)


def prepare(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    recipe: Recipe,
    data: tuple[Sequence[Row], Sequence[Row] | None, Sequence[Row] | None],
) -> Prepared:
    """Check all that can be checked before there is a folder, and encode the rows; see `plan`."""
    return plan(base, prompt, task, recipe, data).prepare()


def plan(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    recipe: Recipe,
    data: tuple[Sequence[Row], Sequence[Row] | None, Sequence[Row] | None],
) -> Planned:
    """Check all that can be checked before the base computes anything, and encode the rows.

    Args:
        base: the frozen base.
        prompt: where to start from.
        task: with a kind of answer that is not `auto`.
        recipe: with `max_steps`.
        data: the rows for training, validation and test.

    Raises:
        SoftPromptError: the rows can't be used.
        WrongBaseError: the prompt was made for another base.
    """
    prompt.check_base(base)
    check_kind(base, task.kind)
    rows, checks, test = data
    if recipe.private is not None and KINDS[task.kind].task_type == "FEATURE_EXTRACTION":
        raise SoftPromptError("recipe.private is not for embeddings: a pair's loss depends on the others of its batch")
    mechanism = make_mechanism(recipe, prompt, len(rows))
    warn_of_start(prompt)
    prompt = with_head(prompt, task, base)
    check_trainable(rows, task)
    problems = _problems({"training": rows, "validation": checks, "test": test}, task, recipe)
    if recipe.calibrate is True:
        check_labels(task, "recipe.calibrate")
    encoder = Encoder(base, task, virtual_tokens=prompt.num_virtual_tokens, max_length=recipe.max_length)
    learned = _learned(recipe, len(rows), task)
    encoded = encoder.encode_rows([rows[i] for i in learned])
    tell_cut(encoded, encoder.max_tokens)
    most = recipe.batch_size // recipe.gradient_accumulation_steps * max(map(len, encoded.input_ids), default=0)
    if base.sharded and recipe.max_tokens is not None and most > recipe.max_tokens:
        logger.warning(
            "recipe.max_tokens bounds nothing where the base is spread over processes, which compute in step: a batch "
            "has up to %s tokens of text; recipe.gradient_accumulation_steps makes its parts smaller",
            f"{most:,}",
        )
    about = describe(base, prompt, task, recipe, encoded, checks)
    return Planned(base, prompt, task, recipe, rows, checks, encoded, about, problems, mechanism)


def _learned(recipe: Recipe, count: int, task: Task) -> list[int]:
    """The rows that are needed: those of the steps, and those that a head is fitted on. Private steps may draw any."""
    if recipe.private is not None:
        return list(range(count))
    steps = learned_rows(count, recipe.batch_size, recipe.max_steps, recipe.seed)
    return sorted({*steps, *rows_to_fit(count, recipe)}) if KINDS[task.kind].head == "labels" else steps


def _problems(parts: Mapping[str, Sequence[Row] | None], task: Task, recipe: Recipe) -> list[Problem]:
    """The faults of what is given, said before the first step."""
    given = {part: rows for part, rows in parts.items() if rows is not None}
    found = [*in_rows(given, task), *unseen(len(given["training"]), recipe.max_steps, recipe.batch_size)]
    faults = [problem for problem in [*found, *in_words(task)] if problem.is_fault]
    for fault in faults:
        logger.warning("%s: %s", fault.about, fault.text)
    return faults


def finish(
    prepared: Prepared,
    trainer: PromptTrainer,
    k: int,
    folder: Path | None,
    progress: Callable[[int], None] | None,
    began: float,
) -> Run:
    """What the loop has learned: calibrated where that is better, with its card, saved where there is a folder.

    Args:
        prepared: what was trained.
        trainer: the loop, which is through.
        k: which of the loop's prompts it was.
        folder: the run's; None: nothing is saved.
        progress: called with the number of rows finished since the last call.
        began: of the run, as `time.perf_counter` has it.
    """
    base, task, recipe, checks = prepared.base, prepared.task, prepared.recipe, prepared.checks
    member, monitor = trainer.members[k], trainer.monitor_of(k)
    validated, steps = member.validation, trainer.state.global_step if member.ended is None else member.ended
    best_step = steps if member.best is None else member.step
    card = prepared.prompt.card.replace(
        base=base.identity.model_dump(),
        task=task.model_dump(exclude_none=True),
        recipe=recipe.for_card(dtype_name(base.dtype)),
        calibration=None,
    )
    learned = replace(prepared.prompt, embeddings=member.learned.embeddings, card=card, head=member.learned.head)
    made = None if learned.head is None else "trained" if steps else "fitted"
    mechanism = prepared.mechanism
    if KINDS[task.kind].head == "labels" and checks is not None and mechanism is None:
        learned, validated, made = _refit(prepared, learned, validated, progress)
    if mechanism is None and worth_trying(recipe.calibrate, task, validates=checks is not None):
        calibrated = calibrate(base, learned, task, prepared.rows, progress=progress, ask=ask)
        checked = None if checks is None else evaluate(base, calibrated, task, checks, progress=progress, ask=ask)
        if worth_keeping(recipe.calibrate, checked, validated, task.metric):
            learned, validated = calibrated, checked
    seconds = time.perf_counter() - began
    metrics: dict[str, Any] = {"steps": steps, "best_step": best_step, "seconds": round(seconds, 3)}
    if made is not None:
        metrics["head"] = made
    if mechanism is not None:
        metrics["private"] = mechanism.for_card(steps)
    if validated is not None:
        metrics["validation"] = validated.for_card()
    learned = replace(learned, card=learned.card.replace(metrics=metrics))
    with together():
        if folder is not None and is_first():
            learned.save(folder / PROMPT, force=(folder / PROMPT).exists())
            if validated is not None:
                write_file(folder / VALIDATION, validated.model_dump_json(exclude_none=True))
    watched = [] if monitor is None else diagnose(monitor.trajectory)
    return Run(
        prompt=learned,
        steps=steps,
        best_step=best_step,
        seconds=seconds,
        truncated=prepared.encoded.truncated,
        validation=validated,
        history=member.history or trainer.state.log_history,
        kernel=prepared.model.kernel,
        diagnoses=[*special_texts(prepared.encoded.with_special, len(prepared.encoded.input_ids)), *watched],
        problems=prepared.problems,
        fit_seconds=sum(prepared.fits),
        folder=folder,
    )


def _refit(
    prepared: Prepared, learned: SoftPrompt, validated: Evaluation | None, progress: Callable[[int], None] | None
) -> tuple[SoftPrompt, Evaluation, str]:
    """The head fitted again behind the prompt that has been learned, where that is better; its validation, and how."""
    base, task = prepared.base, prepared.task
    if validated is None:  # nothing has been trained: the head as it was fitted
        return learned, evaluate(base, learned, task, prepared.checks or [], progress=progress, ask=ask), "fitted"
    began = time.perf_counter()
    head = fit(PromptedModel(base, [learned]), prepared.encoded, task, prepared.recipe, progress)
    prepared.fits.append(time.perf_counter() - began)
    again = replace(learned, head=head)
    checked = evaluate(base, again, task, prepared.checks or [], progress=progress, ask=ask)
    better = checked.better_than(validated, task.metric)
    logger.info("the head fitted again is %s", "kept" if better else "no better: the trained one is kept")
    return (again, checked, "fitted again") if better else (learned, validated, "trained")
