"""A job's process: its memory, its words, its death and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.test_compare import base_folder, project, run

__all__ = ["base_folder", "project"]  # fixtures

ROOT = Path(__file__).parents[2]
# As a user would write it who has not heard of `if __name__ == "__main__"`.
SCRIPT = """\
import json, sys
from softprompt.comparison import compare
from softprompt.comparison.methods import METHODS
from softprompt.training.taskfile import load_task_file
from tests.comparison.toys import Toy, is_killed, leaves, sleeps, speaks

for toy in (Toy("speaks", speaks), Toy("leaves", leaves), Toy("killed", is_killed), Toy("sleeps", sleeps)):
    METHODS[toy.name] = toy
"""


def start(project: Path, code: str) -> subprocess.Popen[str]:
    (project / "script.py").write_text(SCRIPT + code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_its_peak_memory_is_its_own(project: Path) -> None:
    ballast = bytearray(1 << 30)
    found = run(project, "prompt").rows[0]
    assert found.status == "done"
    assert found.figures is not None
    assert found.figures.trained.peak_memory_bytes < len(ballast)


@pytest.mark.slow
def test_one_that_dies_is_a_line_and_what_it_prints_is_in_its_log(project: Path) -> None:
    """In a script without a guard, which a spawned process must not run again."""
    process = start(
        project,
        'asked = ["speaks", "leaves", "killed"]\n'
        'found = compare(load_task_file("task.yaml"), asked, output="out", quick=True)\n'
        "print(json.dumps(found.to_json()))\n",
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    rows: dict[str, Any] = {row["method"]: row for row in json.loads(out)["rows"]}
    assert [row["status"] for row in rows.values()] == ["done", "failed", "out of memory"]
    assert rows["leaves"]["message"] == "leaves-1-seed-0: its process ended with exit code 3: last words"
    assert rows["killed"]["message"].startswith("killed-1-seed-0: its process was killed (signal 9)")
    log = (project / "out/logs/speaks-1-seed-0.log").read_text()
    for words in ("spoken by a worker", "whispered by a worker", "sung by the child of a worker"):
        assert words in log


@pytest.mark.long
@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_all(project: Path) -> None:
    process = start(
        project,
        "from softprompt.cli import main\n"
        'sys.argv = ["softprompt", "compare", "task.yaml", "--methods", "sleeps", "--quick", "--output", "out"]\n'
        "main()\n",
    )
    pid = project / "out/pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[1:] == [
        "sleeps 1 (0% done)",
        "error: interrupted; the same command goes on where it stopped, in out",
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
