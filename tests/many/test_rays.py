"""`softprompt train-many --ray`: on two workers of this machine, of which one is killed. `make test-ray` runs these."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from softprompt import SoftPrompt
from tests.many.test_train_many import base_folder, project, run, trained  # noqa: F401 - fixtures
from tests.test_cli import weights


@pytest.fixture
def six(project: Path) -> list[str]:  # noqa: F811
    """Six tasks, of 24 steps."""
    for name in ("one", "two", "three"):
        content = yaml.safe_load(Path(f"tasks/{name}.yaml").read_text())
        content["recipe"] |= {"max_steps": 24, "evaluate_every": 12}
        for name_of_it in (name, f"{name}-too"):
            Path(f"tasks/{name_of_it}.yaml").write_text(yaml.safe_dump(content | {"name": name_of_it}))
    return sorted(path.stem for path in Path("tasks").iterdir())


class Killer(threading.Thread):
    """Kills a worker of Ray's that trains, once there is a checkpoint."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed: list[int] = []

    def run(self) -> None:
        for _ in range(6000):
            time.sleep(0.02)
            if not next(Path("runs").glob(".side-by-side/*/checkpoint-*"), None):
                continue
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::Worker.tra"):
                        process.kill()
                        self.killed.append(process.pid)
                        return
                except psutil.Error:
                    continue


def test_six_tasks_on_two_workers_of_which_one_is_killed(six: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="`make test-ray` runs it")
    monkeypatch.setenv(
        "RAY_worker_niceness", "0"
    )  # Ray's workers give way to all else, of which a busy machine has much
    trained("tasks", "--output", "here", "--at-once", "3")
    killer = Killer()
    killer.start()
    result = run("train-many", "tasks", "--ray", "local", "--workers", "2")
    assert result.exit_code == 0, result.output
    killer.join()
    assert killer.killed
    assert "6 tasks in 2 groups, on 2 Ray workers" in result.stderr
    assert "a worker died" in result.stderr
    assert "another goes on with it from the last checkpoint" in result.stderr
    for name in six:
        assert weights(f"runs/{name}/prompt") == weights(f"here/{name}/prompt")
        assert SoftPrompt.load(f"runs/{name}/prompt").card.metrics["steps"] == 24
        assert Path("runs", name, "report.html").exists()
    again: dict[str, Any] = trained("tasks", "--ray", "local", "--resume")
    assert {one["status"] for one in again.values()} == {"kept"}


def test_no_cluster_at_the_address(project: Path) -> None:  # noqa: F811
    pytest.importorskip("ray", reason="`make test-ray` runs it")
    result = run("train-many", "tasks", "--ray", "127.0.0.1:1")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: --ray 127.0.0.1:1: no cluster can be reached there")
    assert last.endswith("start one with `ray start --head`, or give --ray local")


def test_without_ray(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("train-many", "tasks", "--ray", "local")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == 'error: --ray needs Ray: install it with pip install "softprompt[ray]"'
    assert "--workers goes with --ray" in run("train-many", "tasks", "--workers", "2").output
