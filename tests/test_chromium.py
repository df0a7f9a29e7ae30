"""`scripts/chromium.sh`, with a PATH of its own on which nothing is real that could install anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "chromium.sh"
APT = 'echo "$@" >> "{log}"; exit {status}'


class Machine:
    """A machine with a few programs, and what its apt-get was asked for."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.log = folder / "bin", folder / "log"
        self.programs.mkdir()
        for name in ("bash", "env", "timeout"):
            (self.programs / name).symlink_to(str(shutil.which(name)))
        self.has("grep", "exit 1")  # this is not Ubuntu
        self.has("id", "echo 0")

    def has(self, name: str, does: str = "") -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (self.programs / name).chmod(0o755)

    def run(self) -> str:
        """What the script says; it must never fail."""
        environment = os.environ | {"PATH": str(self.programs)}
        done = subprocess.run([str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.has("apt-get", APT.format(log=machine.log, status=0))
    return machine


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_nothing_is_done_where_there_is_one(machine: Machine, name: str) -> None:
    machine.has(name)
    assert machine.run() == ""
    assert machine.asked == []


def test_it_is_installed_where_there_is_none(machine: Machine) -> None:
    assert machine.run() == "Installing Chromium for the browser tests\n"
    assert machine.asked == ["-q update", "-q install -y --no-install-recommends chromium"]


def test_root_is_asked_for_where_that_takes_no_password(machine: Machine) -> None:
    machine.has("id", "echo 1000")
    assert "installing it takes root" in machine.run()
    assert machine.asked == []
    machine.has("sudo", '[ "$1" = -n ] && shift && [ "$1" = true ] || exec "$@"')
    machine.run()
    assert machine.asked[-1:] == ["-q install -y --no-install-recommends chromium"]


@pytest.mark.parametrize("reason", ["no apt-get", "apt-get could not", "snap only"])
def test_what_stands_in_the_way_is_said(machine: Machine, reason: str) -> None:
    if reason == "no apt-get":
        (machine.programs / "apt-get").unlink()
    elif reason == "apt-get could not":
        machine.has("apt-get", APT.format(log=machine.log, status=100))
    else:
        machine.has("grep", "exit 0")
    last = machine.run().splitlines()[-1]
    assert last.startswith("note: there is no Chromium, and ")
    assert reason in last
    assert last.endswith("; the browser tests will be skipped")
