"""A job in a process of its own, so that its peak memory is its own and its failure nobody else's.

Owns starting, listening and what a process that died without a word is taken to have died of. Does not know what a job
does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from softprompt.comparison.jobs import Job
from softprompt.comparison.plan import read_result, result_file
from softprompt.comparison.worker import Tell
from softprompt.files import write_file

_KILLED = -9  # what Linux does to the process that takes the last memory


def run_job(folder: Path, job: Job, parts: Sequence[str], tell: Tell) -> None:
    """Do a job; see `worker.perform`. A process that leaves no result gets one that says so.

    Args:
        folder: the comparison's, with its plan.
        job: what is learned.
        parts: "trained", "tested" or both.
        tell: called with the work that is done and how much there is.
    """
    for part in parts:
        result_file(folder, part, job.name).unlink(missing_ok=True)
    setting = "none" if job.setting is None else repr(job.setting)
    command = [sys.executable, "-m", "softprompt.comparison.worker", str(folder), job.method, setting, str(job.seed)]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    log = folder / "logs" / f"{job.name}.log"
    log.parent.mkdir(exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as errors,
        subprocess.Popen(
            [*command, *parts], stdout=subprocess.PIPE, stderr=errors, env=environment, text=True, encoding="utf-8"
        ) as process,
    ):
        try:
            assert process.stdout is not None, "a pipe was asked for"
            for line in process.stdout:
                said = json.loads(line)
                tell(said["done"], said["of"])
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    for part in parts:
        found = read_result(result_file(folder, part, job.name))
        if found is None:
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no message"]
            died = {"status": "failed", "message": f"its process ended with {code}: {words[0]}"}
            if code == _KILLED:
                died = {"status": "out of memory", "message": "its process was killed, as for want of memory"}
            write_file(result_file(folder, part, job.name), json.dumps(asdict(job) | died))
        if found is None or found["status"] != "done":
            return
