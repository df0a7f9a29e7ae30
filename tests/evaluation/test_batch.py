"""A large table: read and answered some rows at a time, and gone on with after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from softprompt.tasks import Task
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import Entries
from softprompt.tasks.tables import _AT_ONCE
from tests.conftest import make_base
from tests.serving.conftest import MOOD, make_prompt
from tests.test_cli import run, save_base

ROWS, BAD = 1000, 700


def make_batch(folder: Path, rows: int = ROWS) -> None:
    """A base, a prompt and a Parquet file of one row group, of whose rows one cannot be answered."""
    base = make_base()
    save_base(base, folder / "base")
    make_prompt(base, 4, MOOD).save(folder / "mood")
    texts = ["" if i == BAD else f"some text {i}" for i in range(rows)]
    pyarrow.parquet.write_table(pyarrow.table({"id": range(rows), "text": texts}), folder / "in.parquet")


def kill_once_begun(words: Sequence[str], part: Path) -> int:
    """Run a command until it has written some answers, then kill it; how many lines it left."""
    process = subprocess.Popen([sys.executable, "-m", "softprompt.cli", *words], stderr=subprocess.PIPE)
    end = time.monotonic() + 300
    while not part.exists() or part.stat().st_size < 10_000:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return part.read_bytes().count(b"\n") - 1


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_batch(tmp_path, 3_000)
    words = ("predict", "mood", "--input", "in.parquet", "--base", "base", "--output")
    done = kill_once_begun([*words, "stopped.parquet"], Path(".stopped.parquet.part"))
    assert 0 < done < 3_000
    assert not Path("stopped.parquet").exists()
    assert run(*words, "stopped.parquet").exit_code == 0
    assert run(*words, "whole.parquet").exit_code == 0
    found, expected = (pyarrow.parquet.read_table(f"{name}.parquet") for name in ("stopped", "whole"))
    for column in ("id", "text", "prediction", "error"):
        assert found[column].equals(expected[column])
    likely = [[one or 0.0 for one in table["probability"].to_pylist()] for table in (found, expected)]
    assert likely[0] == pytest.approx(likely[1], rel=1e-5)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str) -> None:
    task, path = Task(template="{text}:", labels=["a", "b"]), tmp_path / f"in.{suffix}"
    peaks = []
    for rows in (2 * _AT_ONCE, 12 * _AT_ONCE):
        table = pyarrow.table({"text": [f"{i} {i * 7919} ".ljust(1500, "x") for i in range(rows)]})
        if suffix == "parquet":
            pyarrow.parquet.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="none")
        else:
            with pyarrow.ipc.new_file(path, table.schema) as file:
                file.write_table(table, max_chunksize=_AT_ONCE)
        del table
        before = pyarrow.total_allocated_bytes()
        tracemalloc.start()
        held = 0
        for number, entry in enumerate(Entries(path, task, Reading())):  # noqa: B007
            if not number % _AT_ONCE:
                held = max(held, pyarrow.total_allocated_bytes() - before)
        assert (number, entry.row.number) == (rows - 1, rows)
        peaks.append((held, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    (small, large) = peaks
    size = path.stat().st_size
    assert size > 18_000_000
    assert large[0] < small[0] + size / 4
    assert large[1] < small[1] + size / 4


def test_a_table_of_many_batches_is_numbered_through(tmp_path: Path) -> None:
    rows = 2 * _AT_ONCE + 5
    texts = [f"text {i}" for i in range(rows)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=700)
    entries = list(Entries(tmp_path / "a.parquet", Task(template="{text}", labels=["a", "b"]), Reading()))
    assert [entry.row.columns["text"] for entry in entries] == texts
    assert [entry.row.number for entry in entries] == list(range(1, rows + 1))
    assert entries[-1].record.place.endswith(f"row {rows}")
