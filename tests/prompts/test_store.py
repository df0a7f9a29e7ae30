"""How the library's folder changes: killed at any moment, by several processes at once, on disks that refuse."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from softprompt.errors import SoftPromptError, UnknownPromptError
from softprompt.prompts import PromptLibrary, files
from softprompt.prompts import store as store_module
from tests import killing
from tests.prompts.test_library import prompt, value_of

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

State = dict[str, tuple[int, dict[int, float]]]


@pytest.fixture
def library(tmp_path: Path) -> PromptLibrary:
    """mood@1, mood@2 and taste@1, with the values 1, 2 and 10."""
    library = PromptLibrary(tmp_path / "library")
    for name, value in (("mood", 1), ("mood", 2), ("taste", 10)):
        library.add(name, prompt(value))
    return library


def state(library: PromptLibrary) -> State:
    """Of each name the current version and the value of every one."""
    return {
        entry.name: (
            entry.version,
            {one.version: value_of(library, f"{one.name}@{one.version}") for one in library.versions(entry.name)},
        )
        for entry in library.list()
    }


def unfinished(library: PromptLibrary) -> list[str]:
    return os.listdir(library.folder / ".unfinished")


def in_another_process(work: Callable[[], None]) -> int:
    """Start `work` and return its process id; it exits with 0 where all went well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)  # never back into pytest
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- kills


AFTER: dict[tuple[str, ...], State] = {
    ("add", "mood", "PROMPT"): {"mood": (3, {1: 1, 2: 2, 3: 3}), "taste": (1, {1: 10})},
    ("add", "smell", "PROMPT"): {"mood": (2, {1: 1, 2: 2}), "smell": (1, {1: 3}), "taste": (1, {1: 10})},
    ("rollback", "mood"): {"mood": (1, {1: 1, 2: 2}), "taste": (1, {1: 10})},
    ("remove", "mood@2"): {"mood": (1, {1: 1}), "taste": (1, {1: 10})},
    ("remove", "mood"): {"taste": (1, {1: 10})},
}


@forks
@pytest.mark.parametrize(
    "words",
    [words if words[0] == "add" else pytest.param(words, marks=pytest.mark.long) for words in AFTER],
    ids=" ".join,
)
def test_a_kill_at_any_moment(library, tmp_path, words):
    saved = str(prompt(3).save(tmp_path / "saved"))
    command = ["library", *(saved if word == "PROMPT" else word for word in words), "--library", str(library.folder)]
    before, after = state(library), AFTER[words]
    shutil.copytree(library.folder, tmp_path / "first")
    found = []
    for kill_at in itertools.count(1):
        shutil.rmtree(library.folder)
        shutil.copytree(tmp_path / "first", library.folder)
        code = killing.command(*command, kill_at=kill_at)
        found.append(state(library))
        assert found[-1] in (before, after)
        assert library.verify() == []
        added = library.add("mood", prompt(4))
        assert added.version == (3 if 3 not in found[-1].get("mood", (0, {}))[1] else 4)
        assert library.add("smell", prompt(5)).version == (2 if "smell" in found[-1] else 1)
        assert value_of(library, "mood") == 4
        assert unfinished(library) == []
        assert library.verify() == []
        kept = {str(number) for number in state(library)["mood"][1]}
        assert set(os.listdir(library.folder / "mood")) == kept | {"versions.json"}
        if code != -signal.SIGKILL:
            break
    assert code == 0
    assert found[-1] == after
    done = found.index(after)
    assert found == [before] * done + [after] * (len(found) - done)
    assert done >= 5


@forks
def test_a_kill_while_the_library_is_made(library, tmp_path):
    saved, new = str(prompt(3).save(tmp_path / "saved")), PromptLibrary(tmp_path / "new")
    found = []
    for kill_at in itertools.count(1):
        code = killing.command("library", "add", "mood", saved, "--library", str(new.folder), kill_at=kill_at)
        found.append(state(new))
        assert new.verify() == []
        assert new.add("taste", prompt(4)).version == 1
        assert new.verify() == []
        shutil.rmtree(new.folder)
        if code != -signal.SIGKILL:
            break
    assert code == 0
    assert found[0] == {}
    assert found[-1] == {"mood": (1, {1: 3})}
    assert all(one in ({}, found[-1]) for one in found)


@forks
def test_killed_whenever_it_happens(library):
    for attempt in range(10):
        number = library.entry("mood").version

        def change() -> None:
            for value in itertools.count(100):
                library.add("mood", prompt(value))
                library.remove(f"mood@{library.versions('mood')[-2].version}")
                library.rollback("mood")
                library.add("smell", prompt(value))
                library.remove("smell")

        child = in_another_process(change)
        time.sleep(0.03 + attempt * 0.0017)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        state(library)
        assert library.verify() == []
        assert library.add("mood", prompt(attempt)).version > number
        assert value_of(library, "mood") == attempt
        assert library.verify() == []


# --- several at once


@forks
def test_several_processes_add_to_one_name(library):
    def add(writer: int) -> None:
        for count in range(6):
            number = library.add("mood", prompt(100 * writer + count)).version
            assert value_of(library, f"mood@{number}") == 100 * writer + count
            library.add(f"own-{writer}", prompt(count))

    children = [in_another_process(lambda writer=writer: add(writer)) for writer in range(1, 4)]
    assert [ended(child) for child in children] == [0, 0, 0]
    found = state(library)
    assert found["mood"][0] == 20
    assert sorted(found["mood"][1]) == list(range(1, 21))
    assert sorted(found["mood"][1].values()) == [1, 2, *(100 * w + c for w in range(1, 4) for c in range(6))]
    assert [found[f"own-{writer}"][0] for writer in range(1, 4)] == [6, 6, 6]
    assert library.verify() == []
    assert unfinished(library) == []


@forks
def test_readers_find_the_old_or_the_new(library):
    """While another process adds, rolls back and removes: a reader finds a version whole, or that there is none."""

    def change() -> None:
        for value in itertools.count(3):
            number = library.add("mood", prompt(value)).version
            assert number == value
            library.rollback("mood")
            library.rollback("mood", number)
            library.remove(f"mood@{number - 1}")
            library.add("smell", prompt(value))
            library.remove("smell")

    child = in_another_process(change)
    draw = random.Random(0)
    read, gone, highest = 0, 0, 2
    until = time.monotonic() + 2
    try:
        while time.monotonic() < until:
            for name in ("mood", f"mood@{draw.randint(max(1, highest - 2), highest + 1)}", "smell"):
                try:
                    entry, value = library.entry(name), value_of(library, name)
                except UnknownPromptError:
                    assert name != "mood"
                    gone += 1
                else:
                    read += 1
                    if "@" in name:
                        assert value == entry.version == int(name[5:])
                    elif name == "mood":
                        highest = max(highest, int(value))
            assert [entry.name for entry in library.list()] in (["mood", "taste"], ["mood", "smell", "taste"])
            assert library.versions("mood")
            assert library.verify() == []
    finally:
        os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL  # and has not failed before
    assert read > 50
    assert gone > 5
    assert highest > 5
    assert library.verify() == []


def test_readers_need_no_lock_and_write_nothing(library, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for module, name in [(os, "mkdir"), (os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink")]:
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(store_module, "FileLock", refuse)
    assert value_of(library, "mood@1") == 1
    assert [entry.version for entry in library.list()] == [2, 1]
    assert len(library.versions("mood")) == 2
    assert library.verify() == []


def test_removed_at_any_moment_of_a_reading(library, monkeypatch):
    """Between any two looks at the disk: found whole, or not there, or the version that the name stands for now."""
    library.remove("mood@2")
    looks = [(os, "lstat"), (Path, "read_bytes"), (Path, "exists"), (files, "_read_config"), (files, "_read_weights")]

    def read(moment: int, ask: Callable[[int], str]) -> tuple[bool, float | None]:
        """Whether the version was removed before the look number `moment`, and what was read then."""
        number = library.add("mood", prompt(2)).version
        moments, removed = itertools.count(), False

        def remove_in_time(look: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*arguments: Any, **options: Any) -> Any:
                nonlocal removed
                if not removed and next(moments) == moment:
                    removed = True
                    library.remove(f"mood@{number}")
                return look(*arguments, **options)

            return watched

        with monkeypatch.context() as patch:
            for place, name in looks:
                patch.setattr(place, name, remove_in_time(getattr(place, name)))
            try:
                found = value_of(library, ask(number))
            except UnknownPromptError:
                found = None
        if not removed:
            library.remove(f"mood@{number}")
        return removed, found

    for ask, instead in ((lambda number: "mood", 1), (lambda number: f"mood@{number}", None)):
        found = []
        for moment in itertools.count():
            removed, value = read(moment, ask)
            if not removed:
                break
            found.append(value)
        assert value == 2
        assert len(found) > 15
        assert set(found[:-2]) == {instead}  # a version that is removed after all was read is still found
        assert set(found) <= {instead, 2}


def test_a_change_that_lasts_too_long(library, monkeypatch):
    monkeypatch.setattr(store_module, "_PATIENCE", 0.05)
    with FileLock(library.folder / ".lock"):
        with pytest.raises(SoftPromptError, match=r"another process has been changing the library .*: try again"):
            library.remove("mood")
        assert value_of(library, "mood") == 2
        (library.folder / "mood" / "2" / "card.json").unlink()
        assert len(library.verify()) == 1
    library.remove("mood")


# --- disks that refuse


CHANGES: dict[str, Callable[[PromptLibrary], object]] = {
    "add": lambda library: library.add("mood", prompt(3)),
    "add the first": lambda library: library.add("smell", prompt(3)),
    "rollback": lambda library: library.rollback("mood"),
    "remove one": lambda library: library.remove("mood@2"),
    "remove all": lambda library: library.remove("mood"),
}


@pytest.fixture
def undisturbed(library: PromptLibrary) -> Iterator[State]:
    """After the test all is as before, nothing is left over, and the next change works."""
    before = state(library)
    yield before
    assert state(library) == before
    assert unfinished(library) == []
    assert library.verify() == []
    assert library.add("mood", prompt(3)).version == 3
    assert library.add("smell", prompt(3)).version == 1


def fails(library: PromptLibrary, change: str, words: str) -> None:
    with pytest.raises(SoftPromptError, match=words) as caught:
        CHANGES[change](library)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_fills_up(library, monkeypatch, undisturbed, change):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module, name in [(Path, "mkdir"), (os, "fsync"), (os, "replace")]:
        if name == "fsync" and change.startswith("add"):
            words = "cannot save the prompt to .*: No space left on device"
        else:
            words = "cannot (change|save|be written).*: No space left on device"
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            fails(library, change, words)
        assert state(library) == undisturbed
        assert unfinished(library) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_can_only_be_read(library, monkeypatch, undisturbed, change):
    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "FileLock", refuse)
        fails(library, change, r"cannot change the library .*/library: .*/\.lock: Read-only file system")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        fails(library, change, r"cannot change the library .*: .*/\.unfinished: Read-only file system")


@pytest.mark.parametrize("change", CHANGES)
def test_ctrl_c(library, monkeypatch, undisturbed, change):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            CHANGES[change](library)


def test_what_cannot_be_deleted_is_deleted_later(library, monkeypatch):
    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(SoftPromptError, match="mood@2: Permission denied"):
            library.remove("mood@2")
        assert [entry.version for entry in library.versions("mood")] == [1]
    assert library.verify() == []
    assert unfinished(library) == ["mood@2"]
    assert library.add("mood", prompt(3)).version == 3
    assert unfinished(library) == []


def test_a_mark_whose_name_is_damaged_waits(library):
    index = library.folder / "mood" / "versions.json"
    whole = index.read_text()
    (library.folder / ".unfinished" / "mood@2").mkdir()
    (library.folder / ".unfinished" / ".DS_Store").write_text("")
    index.write_text("damaged")
    library.add("taste", prompt(11))
    assert sorted(unfinished(library)) == [".DS_Store", "mood@2"]
    index.write_text(whole)
    library.add("taste", prompt(12))
    assert unfinished(library) == [".DS_Store"]
    assert value_of(library, "mood") == 2
