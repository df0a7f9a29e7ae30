"""`softprompt train-many`: many task files, those that can side by side, and what came of each."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Collection, Hashable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from softprompt.commands.options import Json, Overrides, Ray, Workers
from softprompt.commands.tables import tasks_table
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError
from softprompt.text import counted

if TYPE_CHECKING:
    from softprompt.bases.base import Base
    from softprompt.many.entries import Entry
    from softprompt.many.group import Watcher


def train_many(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK.yaml...",
            help="Task files, folders or patterns of them, or a YAML file with a list of these.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where each run has its folder, by its task's name.")
    ] = Path("runs"),
    at_once: Annotated[
        int, typer.Option(min=1, metavar="K", help="The most tasks that learn side by side; 1: one after another.")
    ] = 16,
    ray: Ray = None,
    workers: Workers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what is finished, and go on with the rest.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace runs that are already in the folder.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train many tasks: side by side where they share a base and a shape, each with its own data, folder and report."""
    if ray is None and workers is not None:
        raise typer.BadParameter("--workers goes with --ray")
    if resume and force:
        raise typer.BadParameter("give either --resume or --force")
    with reporting(libraries=True) as out, ExitStack() as stack:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SoftPromptError("train-many runs in one process: start it without torchrun or accelerate launch")
        from softprompt.many.entries import read_entries, task_files
        from softprompt.many.group import failure
        from softprompt.training.folder import locked

        began = time.perf_counter()
        paths = task_files(tasks)
        if output.exists() and not output.is_dir():
            raise SoftPromptError(f"{output} is not a folder: choose another --output")
        stack.enter_context(locked(output))
        results: dict[str, dict[str, Any]] = {}

        def failed(path: Path, error: Exception) -> None:
            results[str(path)] = failure(path.stem, path, error)
            typer.echo(f"{path.stem}: failed: {results[str(path)]['error']}", err=True)

        entries = read_entries(paths, output, failed, overrides=overrides or [], resume=resume, force=force)
        if resume:
            entries = _tell_kept(entries, results)
        try:
            how = (entries, set(results), at_once, resume, force)
            for one in _train(*how) if ray is None else _over(ray, workers, *how):
                results[one["task"]] = one
        except KeyboardInterrupt:
            settings = [word for override in overrides or [] for word in ("--set", override)]
            there = [] if ray is None else ["--ray", ray, *([] if workers is None else ["--workers", str(workers)])]
            again = ["softprompt", "train-many", *tasks, *settings, "--output", str(output), "--at-once", str(at_once)]
            again += there
            raise SoftPromptError(f"interrupted; go on with: {shlex.join([*again, '--resume'])}") from None
        every = [results[str(path)] for path in paths]
        bad = [one for one in every if one["status"] == "failed"]
        seconds = time.perf_counter() - began
        document = {"tasks": every, "failed": len(bad), "seconds": seconds}
        print_result(
            out,
            document if as_json else None,
            tasks_table(every),
            *(f"{one['name']}: {one['error']}" for one in bad),
            f"{len(every) - len(bad)} of {len(every)} tasks in {seconds:.0f} s; each run and its report is in {output}",
        )
        if bad:
            names = ", ".join(one["name"] for one in bad)
            raise SoftPromptError(
                f"{len(bad)} of {len(every)} tasks failed: {names}; mend them and go on with --resume"
            )


def _tell_kept(entries: Sequence[Entry], results: dict[str, dict[str, Any]]) -> list[Entry]:
    """Note what came of those that are finished; those are given that can be used."""
    from softprompt.many.group import failure, kept

    usable, count = [], 0
    for entry in entries:
        try:
            found = kept(entry)
        except SoftPromptError as error:
            found = failure(entry.file.name, entry.path, error)
        if found is not None:
            results[str(entry.path)] = found | {"task": str(entry.path)}
        if found is None or found["status"] == "kept":
            usable.append(entry)
            count += found is not None
    if count:
        typer.echo(f"kept as they are: {counted(count, 'task', 'tasks')}", err=True)
    return usable


def _left(groups: Sequence[Sequence[Entry]], known: Collection[str]) -> list[Sequence[Entry]]:
    """What is to be trained, where it is known what came of some task files."""
    from softprompt.many.group import unfinished

    return unfinished(groups, {entry.file.name for group in groups for entry in group if str(entry.path) in known})


def _sizes(groups: Sequence[Sequence[Entry]]) -> str:
    return f"{counted(sum(map(len, groups)), 'task', 'tasks')} in {counted(len(groups), 'group', 'groups')}"


def _over(
    address: str,
    workers: int | None,
    entries: Sequence[Entry],
    known: Collection[str],
    at_once: int,
    resume: bool,
    force: bool,
) -> list[dict[str, Any]]:
    """What came of each task, trained on a Ray cluster."""
    from softprompt.many.entries import groups
    from softprompt.many.rays import cluster, train_groups
    from softprompt.progress import ManyProgress

    if all(str(entry.path) in known for entry in entries):
        return []
    with cluster(address) as devices:
        count = workers or devices
        found = _left(groups(entries, at_once, count), known)
        typer.echo(f"{_sizes(found)}, on {counted(count, 'Ray worker', 'Ray workers')}", err=True)
        with ManyProgress(Console(stderr=True), [entry.file.name for entry in entries]) as watcher:
            return list(train_groups(found, count, watcher, resume=resume, force=force))


def _train(
    entries: Sequence[Entry], known: Collection[str], at_once: int, resume: bool, force: bool
) -> list[dict[str, Any]]:
    """What came of each task, trained in groups one after another."""
    from softprompt.many.entries import groups
    from softprompt.many.group import failure, train_group
    from softprompt.progress import ManyProgress

    found = _left(groups(entries, at_once), known)
    if found:
        sizes = ", ".join(str(len(group)) for group in found)
        typer.echo(f"{_sizes(found)}, which are trained one after another; side by side: {sizes}", err=True)
    results: list[dict[str, Any]] = []
    base: Base | None = None
    loaded: Hashable = None
    watcher: Watcher
    with ManyProgress(Console(stderr=True), [entry.file.name for entry in entries]) as watcher:
        for group in found:
            wanted = group[0].base_key
            try:
                if loaded != wanted:
                    base = None  # its memory is needed
                    base, loaded = group[0].load_base(), wanted
            except Exception as error:
                loaded = None
                results += [failure(entry.file.name, entry.path, error) for entry in group]
                for entry in group:
                    watcher.tell(entry.file.name, "failed")
                continue
            assert base is not None, "it is loaded"
            results += train_group(base, group, watcher, resume=resume, force=force)
    return results
