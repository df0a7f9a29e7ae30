"""A run's folder: `run.json` (what is learned, so that a resumed run is the same run), the checkpoints, `log.jsonl`,
`monitor.jsonl`, `problems.json`, `prompt/`, and `validation.json` with all its figures.

Owns the record, whether a folder can be begun, replaced or gone on with, by one process at a time, and what becomes of
a run that is replaced. Knows nothing of the loop.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from softprompt.bases.base import Base, dtype_name
from softprompt.errors import EndedElsewhereError, SoftPromptError
from softprompt.files import append_to, write_file
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoded
from softprompt.tasks.problems import Problem
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.text import shown
from softprompt.training.processes import gather, is_first
from softprompt.training.recipe import Recipe

RECORD = "run.json"
LOG = "log.jsonl"
MONITOR = "monitor.jsonl"
PROMPT = "prompt"
VALIDATION = "validation.json"
PROBLEMS = "problems.json"
_LOCK = ".lock"
# What a record's recipe once held, and the value with which it changed nothing.
_GONE = {
    "residual": 0,
    "residual_learning_rate": 1e-3,
    "average": 0.0,
    "token_learning_rates": "equal",
    "max_token_norm": 0.0,
}


def recorded_dtype(folder: Path) -> str | None:
    """The dtype of the base in the run, or the runs of several lengths, in a folder; None where none is recorded."""
    for record in [folder / RECORD, *sorted(folder.glob(f"*/{RECORD}"))]:
        try:
            return str(json.loads(record.read_text(encoding="utf-8"))["base"]["dtype"])
        except (OSError, ValueError, KeyError, TypeError):  # whoever resumes the run will say what is wrong with it
            continue
    return None


def describe(
    base: Base, prompt: SoftPrompt, task: Task, recipe: Recipe, encoded: Encoded, checks: Sequence[Row] | None
) -> dict[str, Any]:
    """All that the result of a run depends on."""
    return {
        "base": base.identity.model_dump(exclude={"name"}) | {"dtype": dtype_name(base.dtype)},  # a folder may be moved
        "prompt": prompt.sha256,
        "task": task.model_dump(),
        "recipe": recipe.model_dump(exclude={"report_to", "save_every", "log_every", "monitor", "device_map"}),
        "training rows": _hash(
            [encoded.input_ids, encoded.target_ids, *([encoded.gold] if prompt.head is not None else [])]
        ),
        "validation rows": digest(checks),
    }


def digest(rows: Sequence[Row] | None) -> str | None:
    """What rows are recognised by."""
    return None if rows is None else _hash([[r.columns, r.label, r.target] for r in rows])


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, default=list).encode()).hexdigest()


def _changes(about: dict[str, Any], before: dict[str, Any]) -> str:
    """In what a run differs from another, such as "recipe (max_steps: 3, now 4), prompt"; "" for nothing."""
    found = []
    for key, now in about.items():
        other = before.get(key)
        if isinstance(now, dict) and isinstance(other, dict):
            names = [name for name in {**other, **now} if other.get(name) != now.get(name)]
            values = [f"{name}: {shown(other.get(name))}, now {shown(now.get(name))}" for name in names]
            found += [f"{key} ({', '.join(values)})"] if values else []
        elif other != now:
            found.append(key)
    return ", ".join(found)


def _without_gone(record: dict[str, Any]) -> dict[str, Any]:
    """An older record without what none holds any more: the base's name, and settings that changed nothing."""
    record.get("base", {}).pop("name", None)
    if (task := record.get("task")) is not None:
        task.setdefault("answer", "text" if task.get("labels") is None else "words")
    recipe = record.get("recipe", {})
    for key, value in (
        ("head_learning_rate", 0.003),
        ("fit_rows", 16384),
        ("class_weights", "none"),
        ("private", None),
        ("quantization", None),
    ):
        recipe.setdefault(key, value)
    for key in [key for key, value in _GONE.items() if recipe.get(key) == value]:
        del recipe[key]
    return record


def check_same(about: dict[str, Any]) -> None:
    """Check that all processes are about to make the same run."""
    first, *others = gather(about)
    for rank, other in enumerate(others, 1):
        if what := _changes(first, other):
            message = (
                f"process {rank} has another {what} than process 0: give all the same files, and recipe.dtype where "
                "their machines differ"
            )
            raise SoftPromptError(message) if is_first() else EndedElsewhereError(message)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process trains in the folder. The system takes the lock from a process that has died.

    Raises:
        SoftPromptError: another process trains there.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise SoftPromptError(
            f"{folder}: another process trains there: wait for it, stop it or choose another output"
        ) from None
    except OSError as error:
        if folder.is_dir() or not folder.exists():
            raise SoftPromptError(f"{folder}: the run's folder can't be made: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)  # before it is given free: whoever opens it now makes a new one
        lock.release()
        with suppress(OSError):  # what is not empty stays
            folder.rmdir()


def check_folder(folder: Path, about: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Check that a run's folder can be made, replaced, or gone on with; what is in it is not changed.

    Raises:
        SoftPromptError: it can't.
    """
    record = folder / RECORD
    try:
        Replaced(record).put_back()  # a run that was to be replaced, by one that was killed before it began
        if resume and record.exists():
            before = _without_gone(json.loads(record.read_text(encoding="utf-8")))
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


def write_problems(folder: Path, problems: Sequence[Problem]) -> None:
    """Keep what is wrong with a run's data, for its report."""
    write_file(folder / PROBLEMS, json.dumps([asdict(problem) for problem in problems], indent=1))


def _is_taken(folder: Path) -> bool:
    """Whether something is there. The record's beginnings may be, alone, where a run was killed as it began."""
    begun = (f".{RECORD}", _LOCK)
    return folder.exists() and (not folder.is_dir() or any(not e.name.startswith(begun) for e in folder.iterdir()))


class Replaced(TrainerCallback):
    """What a run's folder held before a run that is forced to replace it.

    Args:
        record: the file by which a folder is known for a run's.
    """

    def __init__(self, record: Path) -> None:
        self._record, self._folder, self._aside = record, record.parent, record.parent / ".replaced"
        self._stays = {self._aside, self._folder / _LOCK}

    def put_aside(self) -> None:
        """Empty the folder for a new run."""
        self._aside.mkdir()
        # The record goes last, and comes back first: where it is aside, all else is.
        for entry in sorted(set(self._folder.iterdir()) - self._stays, key=lambda entry: entry == self._record):
            entry.rename(self._aside / entry.name)

    def put_back(self) -> None:
        """Undo `put_aside`, where a new run has not begun; what there is of it goes."""
        if not self._aside.is_dir():
            return
        if (self._aside / self._record.name).exists():
            for entry in set(self._folder.iterdir()) - self._stays:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for entry in sorted(self._aside.iterdir(), key=lambda entry: entry.name != self._record.name):
            entry.rename(self._folder / entry.name)
        self._aside.rmdir()

    def drop(self) -> None:
        """Give up what is aside: the new run has begun."""
        if self._aside.is_dir():
            shutil.rmtree(self._aside)

    @contextmanager
    def put_back_on_failure(self, first: bool) -> Iterator[None]:
        """Within it a new run begins; of several processes the first one looks after the folder."""
        try:
            yield
        except KeyboardInterrupt:  # it is to be gone on with
            if first:
                self.drop()
            raise
        except Exception:
            if first:
                self.put_back()
            raise

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.drop()


class Log(TrainerCallback):
    """Appends each log entry to a JSONL file as it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            append_to(self._path, json.dumps({"step": state.global_step, "time": time.time()} | logs) + "\n")
