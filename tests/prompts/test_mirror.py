"""A library on storage that fsspec reads is, once mirrored, the library."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from softprompt.errors import SoftPromptError
from softprompt.prompts import SoftPrompt
from softprompt.prompts.library import PromptLibrary
from softprompt.prompts.mirror import Mirror, is_url

URL = "memory://shelf/library"


@pytest.fixture
def storage() -> Iterator[fsspec.AbstractFileSystem]:
    found = fsspec.filesystem("memory")
    yield found
    if found.exists("/shelf"):
        found.rm("/shelf", recursive=True)


@pytest.fixture
def library(tmp_path: Path) -> PromptLibrary:
    found = PromptLibrary(tmp_path / "origin")
    found.add("mood", SoftPrompt(torch.ones(2, 8)))
    found.add("mood", SoftPrompt(torch.full((3, 8), 2.0)))
    found.add("topic", SoftPrompt(torch.full((4, 8), 3.0)))
    return found


def upload(storage: fsspec.AbstractFileSystem, library: PromptLibrary) -> None:
    for file in sorted(library.folder.rglob("*")):
        if file.is_file():
            storage.pipe_file(f"/shelf/library/{file.relative_to(library.folder)}", file.read_bytes())


def contents(library: PromptLibrary) -> dict[str, list[float]]:
    every = [entry for name in library.names() for entry in library.versions(name)]
    return {
        f"{one.name}@{one.version}": library.load(f"{one.name}@{one.version}")[1].embeddings.flatten().tolist()
        for one in every
    }


def test_it_is_the_library(storage, library: PromptLibrary, tmp_path: Path) -> None:
    upload(storage, library)
    mirror, mirrored = Mirror(URL, tmp_path / "here"), PromptLibrary(tmp_path / "here")
    assert mirror.refresh() == {}
    assert contents(mirrored) == contents(library)
    assert mirrored.current() == library.current() == {"mood": 2, "topic": 1}
    assert mirrored.verify() == []
    library.add("topic", SoftPrompt(torch.zeros(1, 8)))
    library.rollback("mood")
    library.remove("topic@1")
    upload(storage, library)
    assert mirror.refresh() == {}
    assert contents(mirrored) == contents(library)
    assert mirrored.current() == {"mood": 1, "topic": 2}
    library.remove("mood")
    upload(storage, library)
    mirror.refresh()
    assert mirrored.current() == library.current() == {"mood": None, "topic": 2}


def test_what_is_there_is_not_fetched_again(storage, library: PromptLibrary, tmp_path: Path, monkeypatch) -> None:
    upload(storage, library)
    mirror = Mirror(URL, tmp_path / "here")
    mirror.refresh()
    fetched = []
    read = type(storage).cat_file
    monkeypatch.setattr(
        type(storage), "cat_file", lambda self, path, **more: fetched.append(path) or read(self, path, **more)
    )
    mirror.refresh()
    assert [path.rpartition("/")[2] for path in fetched] == ["versions.json", "versions.json"]


@pytest.mark.parametrize("bad", ["missing", "changed"])
def test_what_is_half_there_waits(storage, library: PromptLibrary, tmp_path: Path, bad: str) -> None:
    upload(storage, library)
    mirror, mirrored = Mirror(URL, tmp_path / "here"), PromptLibrary(tmp_path / "here")
    mirror.refresh()
    before = contents(mirrored)
    library.add("mood", SoftPrompt(torch.zeros(1, 8)))
    upload(storage, library)
    file = "/shelf/library/mood/3/adapter_model.safetensors"
    whole = storage.cat_file(file)
    if bad == "missing":
        storage.rm_file(file)
    else:
        storage.pipe_file(file, whole[:-1])
    ((name, reason),) = mirror.refresh().items()
    assert name == "mood"
    assert "mood/3/adapter_model.safetensors" in reason
    assert contents(mirrored) == before
    storage.pipe_file(file, whole)
    assert mirror.refresh() == {}
    assert contents(mirrored) == contents(library)


def test_what_has_gone_stays(storage, library: PromptLibrary, tmp_path: Path) -> None:
    upload(storage, library)
    mirror, mirrored = Mirror(URL, tmp_path / "here"), PromptLibrary(tmp_path / "here")
    mirror.refresh()
    storage.rm("/shelf", recursive=True)
    with pytest.raises(SoftPromptError, match=r"^memory://shelf/library: there is no library$"):
        mirror.refresh()
    assert contents(mirrored) == contents(library)


def test_urls(tmp_path: Path) -> None:
    assert is_url(URL)
    assert not is_url("/some/folder")
    with pytest.raises(SoftPromptError, match=r"^nothing://library: cannot be read: .*nothing"):
        Mirror("nothing://library", tmp_path)


def test_current_is_what_the_names_stand_for(library: PromptLibrary) -> None:
    (library.folder / "topic" / "versions.json").write_text("damaged")
    assert library.current() == {"mood": 2}
    shutil.rmtree(library.folder)
    assert library.current() == {}
