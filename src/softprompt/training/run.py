"""One training run, from rows to a trained prompt: the folder it leaves, how it is resumed, what is reported.

Owns the run folder: `run.json` (what is learned, so that a resumed run is the same run), the checkpoints, `log.jsonl`,
`monitor.jsonl` and `prompt/`. Knows nothing of task files or commands; `trainer.py` is the loop.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import EndedElsewhereError, SoftPromptError
from softprompt.evaluation.calibration import calibrate, check_labels, worth_keeping, worth_trying
from softprompt.evaluation.evaluate import Evaluation, Evaluator, evaluate, tell_cut
from softprompt.files import append_to, write_file
from softprompt.models.generation import find_way
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoded, Encoder
from softprompt.tasks.rows import Row, Rows, check_trainable, with_validation
from softprompt.tasks.task import Task
from softprompt.text import shown
from softprompt.training.diagnosis import Diagnosis, diagnose, special_texts
from softprompt.training.interruption import Interruption
from softprompt.training.monitor import Monitor
from softprompt.training.processes import gather, is_first, start, together
from softprompt.training.recipe import Recipe
from softprompt.training.replacing import Replaced
from softprompt.training.trainer import DivergedError, PromptTrainer, Schedule

RECORD = "run.json"
LOG = "log.jsonl"
MONITOR = "monitor.jsonl"
PROMPT = "prompt"
# What records of runs once held, and the value with which it changed nothing.
_NOTHING = object()
_GONE = {
    "residual": 0,
    "residual_learning_rate": 1e-3,
    "average": 0.0,
    "token_learning_rates": "equal",
    "max_token_norm": 0.0,
}


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
            "trainable_parameters": self.prompt.embeddings.numel(),
            "artifact_bytes": sum(file.stat().st_size for file in files),
            "validation": None if self.validation is None else self.validation.to_json(),
            "best_step": self.best_step,
            "truncated": self.truncated,
            "kernel": self.kernel,
            "diagnoses": [asdict(diagnosis) for diagnosis in self.diagnoses],
        }


def train(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    *,
    train: Rows,
    validation: Rows | float | None = None,
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
        recipe: the settings; default `Recipe()`.
        output: the run's folder; None: checkpoints go to a temporary folder and the prompt stays in memory.
        resume: go on from the newest checkpoint in `output`; the result is that of a run never interrupted.
        force: replace a run in `output`.
        callbacks: callbacks of the Trainer's kind.
        progress: called in each validation, and in calibration, with the number of rows finished since the last call.
        diagnosed: called after each log entry and validation with what looks wrong, unless the recipe's monitor is off.

    Raises:
        SoftPromptError: the data can't be used, `output` exists (without `resume` or `force`), or holds another run.
        WrongBaseError: the prompt was made for another base.
        DivergedError: the loss became NaN or infinite; the last good prompt is kept in `output`.
    """
    began = time.perf_counter()
    recipe = recipe or Recipe()
    start(base.device)
    with together():
        prompt.check_base(base)
        model = PromptedModel(
            base, [prompt], max_tokens=recipe.max_tokens, gradient_checkpointing=recipe.gradient_checkpointing
        )
        if task.labels is None:
            find_way(model)  # says now, not after the last step, if the base cannot generate, or only slowly
        rows, checks = with_validation(train, validation, task, recipe.seed)
        check_trainable(rows, task)
        if recipe.calibrate is True:
            check_labels(task, "recipe.calibrate")
        encoder = Encoder(base, task, virtual_tokens=prompt.num_virtual_tokens, max_length=recipe.max_length)
        encoded = encoder.encode_rows(rows)
        tell_cut(encoded, encoder.max_tokens)
        evaluator = None if checks is None else Evaluator(model, task, checks)
        about = _describe(base, prompt, task, recipe, encoded, checks)
    _check_same(about)
    with ExitStack() as stack:
        if output is None:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="softprompt-")) if is_first() else ""
            folder = Path(gather(own)[0])  # one for all, as its checkpoints are
        else:
            folder = Path(output)
            with together():
                if is_first():
                    check_folder(folder, about, resume=resume, force=force)
        schedule = Schedule(encoded, recipe.batch_size, recipe.max_steps, recipe.seed)
        monitor = None
        if recipe.monitor:
            steps_per_pass = len(encoded.input_ids) / recipe.batch_size
            monitor = Monitor(base, prompt, recipe.rate, steps_per_pass, folder / MONITOR, diagnosed)
        interruption, replaced = Interruption(), Replaced(folder / RECORD)
        with together():
            trainer = PromptTrainer(
                model,
                recipe,
                schedule,
                evaluator,
                task.metric,
                folder,
                [*callbacks, _Log(folder / LOG), interruption, replaced],
                progress,
                monitor,
            )
        # All that can fail before a step has been tried: now a run that is there may go.
        with together():
            if output is not None and not resume and is_first():
                open_run(folder, about)

        def finished() -> Run:
            history = trainer.state.log_history
            embeddings = trainer.prompt if trainer.best is None else trainer.best
            validated = trainer.best_evaluation
            steps = trainer.state.global_step
            best_step = steps if trainer.best is None else trainer.best_step
            card = prompt.card.replace(
                base=base.identity.model_dump(),
                task=task.model_dump(exclude_none=True),
                recipe=recipe.model_dump() | {"learning_rate": recipe.rate, "dtype": _dtype(base)},
                calibration=None,
            )
            if worth_trying(recipe.calibrate, task, validates=checks is not None):
                calibrated = calibrate(base, SoftPrompt(embeddings, card), task, rows, progress=progress)
                checked = None if checks is None else evaluate(base, calibrated, task, checks, progress=progress)
                if worth_keeping(recipe.calibrate, checked, validated, task.metric):
                    card, validated = calibrated.card, checked
            seconds = time.perf_counter() - began
            metrics: dict[str, Any] = {"steps": steps, "best_step": best_step, "seconds": round(seconds, 3)}
            if validated is not None:
                metrics["validation"] = validated.to_json()
            learned = SoftPrompt(embeddings, card.replace(metrics=metrics))
            with together():
                if output is not None and is_first():
                    learned.save(folder / PROMPT, force=(folder / PROMPT).exists())
            return Run(
                prompt=learned,
                steps=steps,
                best_step=best_step,
                seconds=seconds,
                truncated=encoded.truncated,
                validation=validated,
                history=history,
                kernel=model.kernel,
                diagnoses=[
                    *special_texts(encoded.with_special, len(rows)),
                    *([] if monitor is None else diagnose(monitor.trajectory)),
                ],
                folder=None if output is None else folder,
            )

        checkpoint = trainer.last_checkpoint() if resume else None
        if checkpoint is not None:
            trainer.restore(checkpoint)
        over = trainer.state.global_step >= recipe.max_steps or trainer.out_of_patience(trainer.state.log_history)
        try:
            if checkpoint is None or not over:
                with replaced.put_back_on_failure(is_first()), interruption:
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except DivergedError as error:
            good = trainer.last_checkpoint()
            if good is None:
                raise
            trainer.restore(good)
            kept = finished()
            where = f"kept in {kept.path}" if kept.path else "lost: give an output folder to keep it"
            raise DivergedError(f"{error}; the last good prompt (step {kept.best_step}) is {where}") from None
        return finished()


class _Log(TrainerCallback):
    """Appends each log entry to a JSONL file as it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            append_to(self._path, json.dumps({"step": state.global_step, "time": time.time()} | logs) + "\n")


def recorded_dtype(folder: Path) -> str | None:
    """The dtype of the base in the run, or the runs of several lengths, in a folder; None where none is recorded."""
    for record in [folder / RECORD, *sorted(folder.glob(f"*/{RECORD}"))]:
        try:
            return str(json.loads(record.read_text(encoding="utf-8"))["base"]["dtype"])
        except (OSError, ValueError, KeyError, TypeError):  # whoever resumes the run will say what is wrong with it
            continue
    return None


def _dtype(base: Base) -> str:
    return str(base.dtype).removeprefix("torch.")


def _describe(
    base: Base, prompt: SoftPrompt, task: Task, recipe: Recipe, encoded: Encoded, checks: Sequence[Row] | None
) -> dict[str, Any]:
    """All that the result of a run depends on."""

    def digest(content: object) -> str:
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    return {
        "base": base.identity.model_dump(exclude={"name"}) | {"dtype": _dtype(base)},  # a folder may be moved
        "prompt": prompt.sha256,
        "task": task.model_dump(),
        "recipe": recipe.model_dump(exclude={"report_to", "save_every", "log_every", "monitor"}),
        "training rows": digest([encoded.input_ids, encoded.target_ids]),
        "validation rows": None if checks is None else digest([[r.columns, r.label, r.target] for r in checks]),
    }


def _changes(about: dict[str, Any], before: dict[str, Any]) -> str:
    """In what a run differs from another, such as "recipe (max_steps: 3, now 4), prompt"; "" for nothing."""
    found = []
    for key, now in about.items():
        other = before.get(key)
        if isinstance(now, dict) and isinstance(other, dict):
            other = {name: value for name, value in other.items() if name != "name" or key != "base"}
            other = {name: value for name, value in other.items() if _GONE.get(name, _NOTHING) != value}
            names = [name for name in {**other, **now} if other.get(name) != now.get(name)]
            values = [f"{name}: {shown(other.get(name))}, now {shown(now.get(name))}" for name in names]
            found += [f"{key} ({', '.join(values)})"] if values else []
        elif other != now:
            found.append(key)
    return ", ".join(found)


def _check_same(about: dict[str, Any]) -> None:
    """Check that all processes are about to make the same run."""
    first, *others = gather(about)
    for rank, other in enumerate(others, 1):
        if what := _changes(first, other):
            message = (
                f"process {rank} has another {what} than process 0: give all the same files, and recipe.dtype where "
                "their machines differ"
            )
            raise SoftPromptError(message) if is_first() else EndedElsewhereError(message)


def check_folder(folder: Path, about: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Check that a run's folder can be made, replaced, or gone on with; what is in it is not changed.

    Raises:
        SoftPromptError: it can't.
    """
    record = folder / RECORD
    try:
        Replaced(record).put_back()  # a run that was to be replaced, by one that was killed before it began
        if resume and record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))
            if changed := _changes(about, before):
                raise SoftPromptError(
                    f"{folder}: the run to resume had another {changed}: resume it as it was, or start "
                    "a new one in another folder"
                )
        elif resume:
            raise SoftPromptError(f"{folder}: there is no run to resume; leave out --resume to start one")
        elif _is_taken(folder):
            if not force:
                raise SoftPromptError(
                    f"{folder} exists: choose another output, --resume its run or --force to replace it"
                )
            if not record.exists():
                raise SoftPromptError(
                    f"{folder} is not a run's folder (it has no {RECORD}): --force does not replace it"
                )
    except OSError as error:
        raise SoftPromptError(f"{folder}: the run's folder can't be made: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise SoftPromptError(f"{record}: the run's record is damaged: start a new run in another folder") from error


def open_run(folder: Path, about: dict[str, Any]) -> None:
    """Make the folder of a new run, once it is checked and all is ready; a run that is there is put aside."""
    try:
        if _is_taken(folder):
            Replaced(folder / RECORD).put_aside()
    except OSError as error:
        raise SoftPromptError(f"{folder}: the run's folder can't be made: {error.strerror}") from error
    write_file(folder / RECORD, json.dumps(about, indent=1))


def _is_taken(folder: Path) -> bool:
    """Whether something is there. The record's beginnings may be, alone, where a run was killed as it began."""
    begun = f".{RECORD}"
    return folder.exists() and (not folder.is_dir() or any(not e.name.startswith(begun) for e in folder.iterdir()))
