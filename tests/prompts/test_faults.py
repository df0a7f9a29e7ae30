"""Whatever is damaged, missing or foreign in a library's folder is named, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from softprompt.errors import SoftPromptError
from softprompt.prompts import PromptLibrary
from softprompt.prompts.faults import Fault
from softprompt.prompts.names import CARD, FILES, WEIGHTS
from tests.prompts.test_library import prompt, value_of


@pytest.fixture
def library(tmp_path: Path) -> PromptLibrary:
    """mood@1 and mood@3, taste@1, and smell, of which all was removed."""
    library = PromptLibrary(tmp_path / "library")
    for name, value in (("mood", 1), ("mood", 2), ("mood", 3), ("taste", 10), ("smell", 20)):
        library.add(name, prompt(value))
    library.remove("mood@2")
    library.remove("smell")
    return library


def faults(library: PromptLibrary) -> list[tuple[str | None, int | None, str]]:
    """Each fault's name, version and path below the library."""
    return [(fault.name, fault.version, str(fault.path.relative_to(library.folder))) for fault in library.verify()]


def test_all_is_well(library):
    before = {path: path.stat().st_mtime_ns for path in library.folder.rglob("*")}
    assert library.verify() == []
    assert {path: path.stat().st_mtime_ns for path in library.folder.rglob("*")} == before


def test_every_damaged_byte_of_every_file(library):
    files = [path for path in sorted(library.folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    assert len(files) == 3 * len(FILES) + 3
    for file in files:
        whole = file.read_bytes()
        for place in range(0, len(whole), 1 + len(whole) // 40):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            found = library.verify()
            assert [fault.path for fault in found] == [file]
            assert "damaged" in found[0].problem or "format version" in found[0].problem
        file.write_bytes(whole)
    assert library.verify() == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_version(library, name):
    file = library.folder / "mood" / "3" / name
    whole = file.read_bytes()
    place = ("mood", 3, f"mood/3/{name}")

    def named(words: str) -> None:
        assert faults(library) == [place]
        assert words in library.verify()[0].problem
        with pytest.raises(SoftPromptError, match=words) as caught:
            library.get("mood")
        assert str(caught.value).startswith(f"{file} ")
        assert value_of(library, "mood@1") == 1

    file.write_bytes(whole[:-1])
    named("is damaged: its SHA-256 is not the one it was added with")
    file.write_bytes(b"")
    named("is damaged")
    file.unlink()
    named("is missing: put it back from a copy, or remove this version")
    file.mkdir()
    named("is not a file")
    file.rmdir()
    os.mkfifo(file)  # reading it would wait for ever
    named("is not a file")
    file.unlink()
    outside = library.folder.parent / "outside"
    outside.write_bytes(whole)
    file.symlink_to(outside)
    named("is a link, which could lead out of the library")
    file.unlink()
    shutil.move(outside, file)
    assert library.verify() == []
    assert value_of(library, "mood") == 3


def test_a_tensor_that_is_another_version_s(library):
    shutil.copy(library.folder / "mood" / "1" / WEIGHTS, library.folder / "mood" / "3" / WEIGHTS)
    assert faults(library) == [("mood", 3, f"mood/3/{WEIGHTS}")]


def test_several_faults_are_all_named(library):
    (library.folder / "mood" / "1" / CARD).unlink()
    (library.folder / "mood" / "3" / CARD).write_text("{}")
    (library.folder / "mood" / "3" / WEIGHTS).write_text("{}")
    shutil.rmtree(library.folder / "taste" / "1")
    assert faults(library) == [
        ("mood", 1, f"mood/1/{CARD}"),
        ("mood", 3, f"mood/3/{WEIGHTS}"),
        ("mood", 3, f"mood/3/{CARD}"),
        ("taste", 1, "taste/1"),
    ]
    assert library.verify()[-1] == Fault(
        "taste", 1, library.folder / "taste/1", "is missing: put it back from a copy, or remove this version"
    )


def test_what_is_not_the_library_s(library):
    for foreign in (
        "notes.txt",
        "Big/x",
        ".DS_Store",
        "empty/",
        "mood/2/x",
        "mood/9/x",
        "mood/x",
        "mood/3/x",
        "smell/1/",
    ):
        path = library.folder / foreign
        if foreign.endswith("/"):
            path.mkdir()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
    prompt(1).save(library.folder / "saved")
    assert faults(library) == [
        (None, None, ".DS_Store"),
        (None, None, "Big"),
        (None, None, "empty"),
        ("mood", None, "mood/2"),
        ("mood", None, "mood/9"),
        ("mood", None, "mood/x"),
        ("mood", 3, "mood/3/x"),
        (None, None, "notes.txt"),
        (None, None, "saved"),
        ("smell", None, "smell/1"),
    ]
    assert {fault.problem.partition(" (")[0] for fault in library.verify()} == {
        "is not part of the library: move it away"
    }
    assert [library.names(), value_of(library, "mood")] == [["mood", "taste"], 3]
    for name in ("saved", "notes.txt"):
        with pytest.raises(SoftPromptError, match=r"is not (part of the library|a folder)"):
            library.add(name, prompt(1))
    assert library.add("empty", prompt(5)).version == 1
    assert library.add("smell", prompt(21)).version == 2
    library.remove("mood@3")
    library.remove("mood")
    assert (library.folder / "mood/2/x").exists()  # no change deletes what is not the library's
    assert (library.folder / "saved" / CARD).exists()


def test_a_number_that_somebody_has_taken_is_left_out(library):
    prompt(7).save(library.folder / "mood" / "4")
    assert library.add("mood", prompt(5)).version == 5
    assert faults(library) == [("mood", None, "mood/4")]
    with pytest.raises(SoftPromptError, match="no version 4"):
        library.get("mood@4")


def test_links_lead_nowhere(library, tmp_path):
    outside = tmp_path / "outside"
    for place, inner in (("mood", ""), ("mood/1", "1"), ("mood/versions.json", "versions.json")):
        shutil.copytree(library.folder / "mood", outside)
        kept = sorted(outside.rglob("*"))
        path = library.folder / place
        moved = path.rename(tmp_path / "moved")
        path.symlink_to(outside / inner)
        (found,) = library.verify()
        assert (found.name, found.path) == ("mood", path)
        assert "is a link, which could lead out of the library" in found.problem
        with pytest.raises(SoftPromptError, match="is a link"):
            library.get("mood@1")
        if place == "mood/1":
            assert value_of(library, "mood") == 3
            library.add("mood", prompt(4))
            library.remove("mood@4")
            library.remove("mood@1")  # the link goes, and not what it leads to
            assert not path.is_symlink()
            shutil.rmtree(library.folder / "mood")
            shutil.copytree(outside, library.folder / "mood")
            shutil.rmtree(moved)
        else:
            for call in (lambda: library.add("mood", prompt(4)), lambda: library.remove("mood")):
                with pytest.raises(SoftPromptError, match="is a link"):
                    call()
            path.unlink()
            moved.rename(path)
        assert sorted(outside.rglob("*")) == kept
        assert library.verify() == []
        shutil.rmtree(outside)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mood@1").mkdir()
    (library.folder / ".unfinished").rmdir()
    (library.folder / ".unfinished").symlink_to(tmp_path / "work")
    with pytest.raises(SoftPromptError, match=r"\.unfinished is a link"):
        library.remove("mood")
    assert (tmp_path / "work" / "mood@1").exists()


def test_a_damaged_list_of_versions(library):
    index = library.folder / "mood" / "versions.json"
    whole = index.read_text()
    index.write_text(whole.replace('"current": 3', '"current": 1'))
    assert faults(library) == [("mood", None, "mood/versions.json")]
    for call in (library.get, library.entry, library.versions, library.remove, library.rollback):
        with pytest.raises(SoftPromptError, match=r"mood/versions\.json is damaged: put it back from a copy, or move"):
            call("mood")
    with pytest.raises(SoftPromptError, match=r"mood/versions\.json is damaged"):
        library.add("mood", prompt(4))
    assert value_of(library, "taste") == 10
    index.unlink()
    assert faults(library) == [(None, None, "mood")]
    assert "(it has no versions.json)" in library.verify()[0].problem
    with pytest.raises(SoftPromptError, match="library/mood is not part of the library: move it away"):
        library.add("mood", prompt(4))
    index.write_text(whole)
    assert library.verify() == []


def test_what_cannot_be_read(library, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert faults(library) == [(name, None, f"{name}/versions.json") for name in ("mood", "smell", "taste")]
        assert library.verify()[0].problem == "cannot be read: Permission denied"
        with pytest.raises(SoftPromptError, match=r"versions\.json cannot be read: Permission denied"):
            library.get("mood")
    real = os.listdir
    for closed in ("mood", "3"):
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "listdir", lambda path, closed=closed: (refuse if Path(path).name == closed else real)(path)
            )
            (found,) = library.verify()
            assert (found.path.name, found.problem) == (closed, "cannot be read: Permission denied")
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(SoftPromptError, match="library cannot be read: Permission denied"):
            library.verify()
    assert library.verify() == []


def test_a_library_that_can_only_be_read(library, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("softprompt.prompts.store.FileLock", refuse)
    assert library.verify() == []
    (library.folder / "mood" / "1" / CARD).unlink()
    assert faults(library) == [("mood", 1, f"mood/1/{CARD}")]
