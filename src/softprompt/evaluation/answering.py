"""A table answered a few rows at a time: each answer, or what was wrong, beside its row, in a file that a stop leaves.

Owns the order, the answers' columns and the file's formats. Does not know how rows are read, nor how they are answered.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import predict
from softprompt.files import append_to, replacing
from softprompt.prompts.ensemble import Ensemble
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.answers.answer import Prediction
from softprompt.tasks.rows import Entry
from softprompt.tasks.task import Task

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
CHUNK = 128  # rows that are answered together
_AT_ONCE = 8192  # rows of a Parquet file that are written together


@dataclass(frozen=True)
class Answered:
    """A row with its answer.

    Attributes:
        entry: the row, as it was read.
        prediction: the answer; None where there is none.
        error: why there is none; "" where there is one.
    """

    entry: Entry
    prediction: Prediction | None
    error: str = ""


def answer(
    base: Base,
    prompt: SoftPrompt | Ensemble,
    task: Task,
    entries: Iterable[Entry],
    progress: Callable[[int], None] | None = None,
) -> Generator[Answered, None, None]:
    """The answer to each row, in order; one that cannot be answered says why, and the others are answered.

    Args:
        base: the frozen base.
        prompt: the prompt, or the ensemble, checked against the base.
        task: what is asked.
        entries: from `read_entries`.
        progress: called with the number of rows finished since the last call.

    Raises:
        WrongBaseError: the prompt was made for another base.
    """
    prompt.check_base(base)
    waiting = iter(entries)
    while some := list(islice(waiting, CHUNK)):
        usable = [entry for entry in some if entry.row is not None]
        found = dict(zip(map(id, usable), _ask(base, prompt, task, usable), strict=True))
        for entry in some:
            answered = found.get(id(entry), entry.fault)
            if isinstance(answered, str):
                yield Answered(entry, None, answered)
            else:
                yield Answered(entry, answered)
        if progress is not None:
            progress(len(some))


def _ask(base: Base, prompt: SoftPrompt | Ensemble, task: Task, entries: Sequence[Entry]) -> list[Prediction | str]:
    """The answers, or for a row that cannot be encoded the reason."""
    rows = [entry.row for entry in entries if entry.row is not None]
    try:
        return list(predict(base, prompt, task, rows))
    except SoftPromptError as error:
        if len(rows) == 1:
            return [str(error).removeprefix(f"{rows[0].place}: ")]
    return [found for entry in entries for found in _ask(base, prompt, task, [entry])]


class AnswerFile:
    """A file of answers that is written as they come, and is there under its name when it is whole.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file.
        about: what the answers depend on; what was begun for the same is gone on with.
        force: replace a file that is there.

    Attributes:
        done: rows that an earlier call has answered.
        failed: rows without an answer.

    Raises:
        SoftPromptError: the file is there, or of another kind.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, force: bool = False) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise SoftPromptError(f"{path}: answers are written as one of {', '.join(SUFFIXES)}: choose such a name")
        if path.exists() and not force:
            raise SoftPromptError(f"{path} exists: choose another --output, or replace it with --force")
        self.path, self._begun = path, path.with_name(f".{path.name}.part")
        mark = json.dumps(
            {"about": hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()}
        )
        self.done = self.failed = 0
        with replacing(self._begun) as file:  # without a line that a kill cut
            file.write(f"{mark}\n".encode())
            lines = self._lines()
            if next(lines, None) == mark:
                for line in lines:
                    file.write(f"{line}\n".encode())
                    self.done += 1
                    self.failed += json.loads(line)[0]

    def _lines(self) -> Iterator[str]:
        try:
            with self._begun.open(encoding="utf-8", newline="\n") as file:
                for line in file:
                    if line.endswith("\n"):
                        yield line[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            raise SoftPromptError(f"{self._begun}: cannot be read: {error.strerror}") from error

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows that have been written."""
        whole = self.path.suffix.lower() == ".jsonl"
        for line in islice(self._lines(), 1, None):
            row: dict[str, Any] = json.loads(line)[1]
            if not whole:
                row.pop("probabilities", None)  # as many as there are labels: for JSONL
            yield row

    def add(self, answered: Answered) -> None:
        """Write one more answer."""
        self.failed += bool(answered.error)
        line = [bool(answered.error), _row(answered)]
        append_to(self._begun, json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def finish(self) -> None:
        """Give the file its format and its name."""
        suffix = self.path.suffix.lower()
        with replacing(self.path) as file:
            if suffix == ".jsonl":
                file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in self._rows())
            elif suffix == ".parquet":
                _write_parquet(file, self._rows)
            else:
                _write_delimited(file, self._rows, suffix)
        os.unlink(self._begun)


def _row(answered: Answered) -> dict[str, Any]:
    """A row's own columns, and what was answered: `prediction`, `probability`, or `error`."""
    row = dict(answered.entry.record.values)

    def put(name: str, value: object) -> None:
        while name in row:  # a column of the table has that name
            name += "_"
        row[name] = value

    if answered.prediction is None:
        put("error", answered.error)
        return row
    found = answered.prediction
    if found.embedding is not None:
        put("embedding", found.embedding)
    else:
        put("prediction", found.output if found.label is None else found.label)
    if found.probabilities is not None and found.label is not None:
        put("probability", found.probabilities[found.label])
        put("probabilities", found.probabilities)
    if found.truncated:
        put("truncated", True)
    return row


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _write_delimited(file: BinaryIO, rows: Callable[[], Iterable[Mapping[str, Any]]], suffix: str) -> None:
    columns = list(dict.fromkeys(name for row in rows() for name in row))
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows())
    text.detach()


def _write_parquet(file: BinaryIO, rows: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    types: dict[str, set[type]] = {}
    for row in rows():
        for name, value in row.items():
            found = types.setdefault(name, set())
            if value is not None:
                found.add(type(_cell(value)))
    of = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    # A column of several types is text.
    alike = {name: next(iter(found)) if len(found) == 1 else str for name, found in types.items()}
    schema = pyarrow.schema([(name, of.get(kind, pyarrow.string())) for name, kind in alike.items()])
    waiting = iter(rows())
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while some := list(islice(waiting, _AT_ONCE)):
            columns = {
                name: [None if (value := row.get(name)) is None else kind(_cell(value)) for row in some]
                for name, kind in alike.items()
            }
            writer.write_table(pyarrow.table(columns, schema))
