"""The rules of the house that no linter knows: who may import whom, what a newcomer finds, what is pinned."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import softprompt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"

# What each room may import besides itself, the ground floor and libraries. What stands beside the rooms (`commands`,
# `cli`, `demo`) may import them all; no room may import those.
GROUND = ("errors", "files", "text")
ROOMS = {
    "bases": set(),
    "prompts": {"bases"},
    "tasks": {"bases"},
    "models": {"bases", "prompts"},
    "training": {"bases", "evaluation", "models", "prompts", "tasks"},
    "evaluation": {"bases", "models", "prompts", "tasks"},
    "inspection": {"bases", "evaluation", "models", "prompts", "tasks"},
    "comparison": {"bases", "evaluation", "models", "prompts", "reporting", "tasks", "training"},
    "reporting": {"bases", "evaluation", "inspection", "models", "prompts", "tasks", "training"},
    "many": {"bases", "evaluation", "prompts", "reporting", "tasks", "training"},
    "serving": {"bases", "models", "prompts", "reporting", "tasks", "training"},
}


# The most lines and parameters of a function, outside `commands`, whose functions' parameters are a command's options.
MOST_LINES, MOST_PARAMETERS = 80, 8
# Whose parameters are named elsewhere: by Transformers' attention interface and PEFT's forward; and the public face's.
WITH_MORE = {"packed_attention", "forward", "train", "grow"}


def declared(extra: str | None = None) -> list[Requirement]:
    """What pyproject.toml asks for, always and with an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    more = project["optional-dependencies"][extra] if extra else []
    return [Requirement(line) for line in project["dependencies"] + more]


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(file): ast.parse(file.read_text("utf-8")) for file in sorted(SOURCE.rglob("*.py"))}


def imported_names(node: ast.AST) -> set[str]:
    """The modules that an import statement names, `softprompt`'s own down to the submodule."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: a relative import"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in TREES else str(node.module) for name in names}
    return set()


def imports(module: str) -> set[str]:
    """Everything that `module` imports, inside functions too."""
    return set().union(*(imported_names(node) for node in ast.walk(TREES[module])))


@pytest.mark.parametrize("module", [module for module in TREES if not module.startswith("softprompt.commands")])
def test_functions_are_short_and_have_few_parameters(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in every)
            assert lines <= MOST_LINES, f"{node.name} has {lines} lines"
            assert count <= MOST_PARAMETERS or node.name in WITH_MORE, f"{node.name} has {count} parameters"


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "softprompt"} - {module}


def room_of(module: str) -> str:
    return module.partition("softprompt.")[2].partition(".")[0]


@pytest.mark.parametrize("module", [module for module in TREES if room_of(module) in ROOMS])
def test_imports_go_one_way(module):
    room = room_of(module)
    visited = {room_of(name) for name in own_imports(module)}
    assert visited <= {room, *GROUND} | ROOMS[room]


def test_no_module_imports_itself_over_others():
    TopologicalSorter({module: own_imports(module) for module in TREES}).prepare()  # raises CycleError


def test_nobody_knows_the_command_line():
    known_by = {module for module in TREES if "softprompt.cli" in own_imports(module)}
    assert known_by <= {"softprompt.__main__"}


@cache
def core_modules() -> set[str]:
    """What the core dependencies bring along."""
    return {file.parts[0].removesuffix(".py") for one in declared() for file in files(one.name) or ()}


@pytest.mark.parametrize("module", TREES)
def test_a_module_imports_with_the_core_dependencies_alone(module):
    """At import time; an optional package may be imported inside the function that needs it."""
    names = set().union(*(imported_names(node) for node in TREES[module].body))
    roots = {name.split(".")[0] for name in names} - {"softprompt"} - sys.stdlib_module_names
    assert roots - core_modules() == set(), "none of the core dependencies in pyproject.toml"
    importlib.import_module(module)


@pytest.mark.parametrize("module", TREES)
def test_a_module_says_what_it_owns(module):
    assert ast.get_docstring(TREES[module])
    assert not {"utils", "helpers", "manager"} & set(module.split("."))


@pytest.mark.parametrize("module", [module for module in TREES if hasattr(importlib.import_module(module), "__all__")])
def test_all_is_sorted_and_true(module):
    loaded = importlib.import_module(module)
    assert loaded.__all__ == sorted(set(loaded.__all__))
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


def test_the_public_face_is_complete():
    named_by_the_readme = set(re.findall(r"\bsp\.([A-Za-z_]+)", (ROOT / "README.md").read_text("utf-8")))
    assert named_by_the_readme
    assert named_by_the_readme <= set(softprompt.__all__)
    exposed = {name for name, value in vars(softprompt).items() if is_ours(value) and not name.startswith("_")}
    assert exposed <= set(softprompt.__all__)


def is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("softprompt")


def test_every_dependency_is_pinned_within_its_range():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    for requirement in [
        *declared("playground"),
        *declared("private"),
        *declared("docs"),
        *declared("ray"),
        *(r for r in declared("dev") if r.name != "softprompt"),
    ]:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize(
    "script",
    [
        ".ci/run",
        *(f"scripts/{one}.sh" for one in ("install", "lint", "test", "chromium", "docs", "test_pythons", "test_ray")),
    ],
)
def test_scripts_can_be_run(script):
    assert os.access(ROOT / script, os.X_OK)
    assert "set -euo pipefail" in (ROOT / script).read_text("utf-8")
    subprocess.run(["bash", "-n", ROOT / script], check=True)


class TestInstall:
    """`scripts/install.sh` in a project of its own, with an interpreter that only notes what it was asked to do."""

    FAKE = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
case "$*" in
    *version_info*) exit "${TOO_OLD:-0}" ;;
    "-m venv"*) rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) [ -z "${KILLED:-}" ] || kill -9 $PPID; exit "${FAILED:-0}" ;;
esac
"""

    @pytest.fixture
    def project(self, tmp_path) -> Path:
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts/install.sh").write_bytes((ROOT / "scripts/install.sh").read_bytes())
        (tmp_path / "pyproject.toml").write_text("one")
        (tmp_path / "constraints.txt").write_text("two")
        (tmp_path / "python").write_text(self.FAKE)
        (tmp_path / "python").chmod(0o755)
        return tmp_path

    @staticmethod
    def install(project: Path, **environment: str) -> tuple[int, list[str], str]:
        """The exit status, what the interpreter was asked to do (venv, pip) and what was printed."""
        log = project / "log"
        log.write_text("")
        settings = os.environ | {"PYTHON": str(project / "python"), "LOG": str(log)} | environment
        run = subprocess.run(["bash", "scripts/install.sh"], cwd=project, env=settings, capture_output=True, text=True)
        asked = re.findall(r"-m venv|pip install", log.read_text())
        return run.returncode, asked, run.stdout + run.stderr

    def test_it_installs_once(self, project):
        assert self.install(project)[:2] == (0, ["-m venv", "pip install"])
        assert self.install(project) == (0, [], "")

    @pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
    def test_it_installs_again_when_what_is_asked_for_changed(self, project, file):
        self.install(project)
        (project / file).write_text("three")
        assert self.install(project)[:2] == (0, ["pip install"])
        assert self.install(project)[1] == []

    def test_after_a_failure_it_tries_again(self, project):
        status, asked, _ = self.install(project, FAILED="1")
        assert (status, asked) == (1, ["-m venv", "pip install"])
        assert self.install(project)[:2] == (0, ["pip install"])

    def test_after_a_kill_it_starts_afresh(self, project):
        assert self.install(project, KILLED="1")[0] != 0
        assert self.install(project)[:2] == (0, ["-m venv", "pip install"])
        assert self.install(project)[1] == []

    def test_an_old_python_is_one_line(self, project):
        status, asked, said = self.install(project, TOO_OLD="1")
        assert (status, asked) == (1, [])
        assert re.fullmatch(r"error: softprompt needs Python 3\.10 or newer, .*set PYTHON.*\n", said)

    def test_no_python_is_one_line(self, project):
        status, _, said = self.install(project, PYTHON="no-such-python")
        assert status == 1
        assert re.fullmatch(r"error: .*no-such-python.*\n", said)
