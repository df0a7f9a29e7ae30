"""What each operation of the library means. How its folder changes is in test_store.py."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import softprompt
from softprompt import prompts
from softprompt.errors import SoftPromptError, UnknownPromptError
from softprompt.prompts import Card, PromptLibrary, SoftPrompt
from softprompt.prompts.names import FILES
from softprompt.prompts.versions import digest
from tests.conftest import make_base
from tests.prompts.test_names import BAD


def prompt(value: float, length: int = 2) -> SoftPrompt:
    return SoftPrompt(torch.full((length, 4), float(value)), Card(metrics={"value": value}))


def value_of(library: PromptLibrary, name: str) -> float:
    found = library.get(name)
    assert (found.embeddings == found.embeddings[0, 0]).all()
    assert found.card.metrics["value"] == found.embeddings[0, 0]
    return float(found.embeddings[0, 0])


@pytest.fixture
def library(tmp_path: Path) -> PromptLibrary:
    """mood@1, mood@2 and taste@1, with the values 1, 2 and 10."""
    library = PromptLibrary(tmp_path / "library")
    for name, value in (("mood", 1), ("mood", 2), ("taste", 10)):
        library.add(name, prompt(value))
    return library


def refused(words: str, call, *arguments, kind=SoftPromptError) -> None:
    with pytest.raises(kind, match=words) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


# --- adding and finding


def test_added_and_got_is_the_same(tmp_path):
    library = PromptLibrary(str(tmp_path / "deep" / "library"))
    base = make_base()
    task = {"template": "é {text}\n", "target": " {label}", "labels": ["a", "b"]}
    start = SoftPrompt.from_text(base, "Mood?", 5)
    added = SoftPrompt(start.embeddings, start.card.replace(task=task))
    entry = library.add("mood", added)
    found = library.get("mood")
    assert torch.equal(found.embeddings, added.embeddings)
    assert found.card == added.card == entry.card == library.entry("mood@1").card
    found.check_base(base)
    assert entry == library.entry("mood")
    assert dataclasses.asdict(entry) | {"card": None} == {
        "name": "mood",
        "version": 1,
        "current": True,
        "path": tmp_path / "deep/library/mood/1",
        "card": None,
        "num_virtual_tokens": 5,
        "bytes": sum(file.stat().st_size for file in entry.path.iterdir()),
    }
    assert sorted(os.listdir(entry.path)) == sorted(FILES)


def test_peft_loads_a_version(library):
    base = make_base()
    added = SoftPrompt.random(base, 6)
    entry = library.add("mood", added)
    model = PeftModel.from_pretrained(base.model, entry.path)
    assert torch.equal(model.get_prompt_embedding_to_save("default"), added.embeddings)


def test_a_folder_is_added(library, tmp_path):
    saved = prompt(3).save(tmp_path / "saved")
    (saved / "notes.txt").write_text("not taken along")
    assert library.add("mood", saved).version == 3
    assert library.add("mood", str(saved)).version == 4
    assert value_of(library, "mood") == 3
    (saved / "card.json").unlink()  # as PEFT would have saved it
    entry = library.add("theirs", saved)
    assert entry.card.initialisation["method"] == "peft"
    assert library.get("theirs").sha256 == prompt(3).sha256
    assert library.add("again", library.entry("theirs").path).card == entry.card
    assert library.verify() == []


def test_versions_do_not_change(library):
    def files(number):
        path = library.entry(f"mood@{number}").path
        return {file: ((path / file).read_bytes(), (path / file).stat().st_mtime_ns) for file in FILES}

    before = files(1)
    library.add("mood", prompt(3))
    library.rollback("mood", 1)
    library.remove("mood@2")
    assert files(1) == before
    assert value_of(library, "mood@1") == 1


def test_the_name_is_the_current_version(library):
    assert [value_of(library, name) for name in ("mood", "mood@1", "mood@2", "taste")] == [2, 1, 2, 10]
    assert [(entry.version, entry.current) for entry in library.versions("mood")] == [(1, False), (2, True)]
    assert [(entry.name, entry.version) for entry in library.list()] == [("mood", 2), ("taste", 1)]
    assert library.names() == ["mood", "taste"]
    assert repr(library).startswith("PromptLibrary('/")


def test_many_versions_are_in_order(library):
    for value in range(2, 12):
        library.add("taste", prompt(value))
    assert [entry.version for entry in library.versions("taste")] == list(range(1, 12))
    assert library.entry("taste").version == 11
    library.remove("taste")
    assert library.names() == ["mood"]


def test_nothing_is_written_before_the_first_add(tmp_path):
    library = PromptLibrary(tmp_path / "library")
    assert library.list() == library.names() == library.verify() == []
    refused("there is no prompt 'mood' in", library.get, "mood", kind=UnknownPromptError)
    refused("'Mood' is not a prompt's name", library.add, "Mood", prompt(1))
    refused("there is no such folder", library.add, "mood", tmp_path / "nowhere")
    assert not library.folder.exists()
    library.folder.mkdir()  # an empty folder is as good
    assert library.list() == library.names() == library.verify() == []
    library.add("mood", prompt(1))
    assert value_of(library, "mood") == 1


# --- removing and rolling back


def test_removing_the_current_version(library):
    library.add("mood", prompt(3))
    library.rollback("mood", 2)
    library.remove("mood@2")
    assert value_of(library, "mood") == 3  # the newest that is left, not the one before
    library.remove("mood@1")
    assert value_of(library, "mood") == 3
    assert [entry.version for entry in library.versions("mood")] == [3]
    assert sorted(os.listdir(library.folder / "mood")) == ["3", "versions.json"]
    library.remove("mood@3")
    assert library.names() == ["taste"]
    assert library.verify() == []


def test_a_number_is_given_once(library):
    library.remove("mood@2")
    refused(
        "there is no version 2 of 'mood' in .*: the current one is 1", library.get, "mood@2", kind=UnknownPromptError
    )
    assert library.add("mood", prompt(3)).version == 3
    library.remove("mood")
    for call in (library.get, library.entry, library.versions, library.remove, library.rollback):
        refused("there is no prompt 'mood' in .*: see `softprompt library list`", call, "mood", kind=UnknownPromptError)
    assert library.add("mood", prompt(4)).version == 4
    refused("no version 1 of 'mood'", library.get, "mood@1", kind=UnknownPromptError)


def test_rolling_back(library):
    library.add("mood", prompt(3))
    assert (library.rollback("mood").version, value_of(library, "mood")) == (2, 2)
    entry = library.rollback("mood")
    assert (entry.version, entry.current, value_of(library, "mood")) == (1, True, 1)
    refused("no version of 'mood' before the current one, 1: say which one", library.rollback, "mood")
    assert library.rollback("mood", 3) == library.entry("mood@3")
    assert library.rollback("mood", 3).current  # it is already
    library.remove("mood@2")
    assert library.rollback("mood").version == 1
    assert library.add("mood", prompt(4)).current
    assert library.verify() == []


def test_a_damaged_version_does_not_become_the_current_one(library):
    (library.entry("mood@1").path / "adapter_model.safetensors").write_bytes(b"x")
    refused("mood/1/adapter_model.safetensors is damaged: its SHA-256", library.rollback, "mood")
    assert value_of(library, "mood") == 2


# --- bad input


@pytest.mark.parametrize("name", BAD)
def test_no_name_leaves_the_folder(library, name):
    before = sorted(library.folder.parent.rglob("*"))
    for call in (library.get, library.entry, library.remove):
        refused("is not a prompt's name", call, name)
        refused("is not a prompt's name", call, f"{name}@1")
    for call in (library.versions, library.rollback):
        refused("is not a prompt's name", call, name)
    refused("is not a prompt's name", library.add, name, prompt(1))
    assert sorted(library.folder.parent.rglob("*")) == before


def test_a_version_where_none_belongs(library):
    for call in (library.versions, library.rollback):
        refused("'mood@1' is not a prompt's name", call, "mood@1")
    refused("'mood@3' is not a prompt's name", library.add, "mood@3", prompt(1))
    for version in (0, -1, True, "1", 1.0):
        refused("is none: a whole number from 1 on", library.rollback, "mood", version)
    refused("no version 9 of 'mood'", library.rollback, "mood", 9, kind=UnknownPromptError)


def test_unknown_prompts(library):
    for call in (library.get, library.entry, library.remove):
        refused("there is no prompt 'smell'", call, "smell", kind=UnknownPromptError)
        refused("there is no prompt 'smell'", call, "smell@1", kind=UnknownPromptError)
        refused("there is no version 3 of 'mood'", call, "mood@3", kind=UnknownPromptError)
    assert [value_of(library, name) for name in ("mood@1", "mood", "taste")] == [1, 2, 10]


def test_what_is_no_prompt_is_not_added(library, tmp_path):
    broken = prompt(3).save(tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"x")
    refused("broken/adapter_model.safetensors is damaged or cut off", library.add, "mood", broken)
    refused("no prompt at", library.add, "mood", tmp_path / "nowhere")
    refused("a SoftPrompt or its folder is needed, not Tensor", library.add, "mood", torch.zeros(2, 4))
    nan = prompt(3)
    nan.embeddings[0, 0] = float("nan")
    refused("NaN", library.add, "mood", nan)
    assert [entry.version for entry in library.versions("mood")] == [1, 2]
    assert library.add("mood", prompt(3)).version == 3
    assert library.verify() == []


def test_what_is_not_a_library(library, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    other = tmp_path / "other"
    prompt(1).save(other / "mood")
    for folder, words in (
        (file, "is a file: a prompt library is a folder"),
        (other, "is not a prompt library: .*'mood'"),
    ):
        found = PromptLibrary(folder)
        for call in (found.list, found.names, found.verify):
            refused(words, call)
        for call in (found.remove, found.rollback):
            refused(words, call, "taste")
        refused(words, found.add, "mood", prompt(1))
    for call in (PromptLibrary(other).get, PromptLibrary(other).entry, PromptLibrary(other).versions):
        refused("is not a prompt library", call, "mood")
    assert sorted(os.listdir(other)) == ["mood"]
    assert file.read_text() == ""


def test_a_copy_of_a_library_is_one(library, tmp_path):
    shutil.copytree(library.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    copy = PromptLibrary(tmp_path / "copy")
    assert copy.verify() == []
    assert value_of(copy, "mood") == 2
    assert copy.add("mood", prompt(3)).version == 3


def test_one_damaged_prompt_does_not_keep_the_others_from_being_used(library):
    library.add("smell", prompt(20))
    (library.entry("mood").path / "card.json").unlink()
    (library.folder / "taste" / "versions.json").write_text("{}")
    assert [entry.name for entry in library.list()] == ["smell"]
    assert library.names() == ["mood", "smell", "taste"]
    assert [entry.version for entry in library.versions("mood")] == [1]
    refused("mood/2/card.json is missing: put it back from a copy, or remove this version", library.get, "mood")
    refused("taste/versions.json is damaged: put it back from a copy", library.get, "taste")
    assert value_of(library, "smell") == 20
    assert value_of(library, "mood@1") == 1
    library.remove("mood@2")
    assert value_of(library, "mood") == 1
    assert library.add("mood", prompt(3)).version == 3


def test_a_card_of_a_newer_softprompt(library):
    entry = library.add("mood", prompt(3))
    card = entry.path / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format_version": 3}))
    versions = library._store.versions("mood")
    changed = versions.added(3, versions.versions[3] | {"card.json": digest(card.read_bytes())})
    (library.folder / "mood" / "versions.json").write_text(changed.text())
    refused("mood/3/card.json has format version 3, .*: upgrade softprompt", library.get, "mood")
    assert [(fault.name, fault.version, fault.path) for fault in library.verify()] == [("mood", 3, card)]
    refused("upgrade softprompt", library.rollback, "mood", 3)
    assert library.rollback("mood", 2).current


def test_the_public_names():
    assert softprompt.PromptLibrary is PromptLibrary
    assert softprompt.UnknownPromptError is UnknownPromptError
    assert issubclass(UnknownPromptError, SoftPromptError)
    assert set(prompts.__all__) <= set(dir(prompts))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = prompts.nonsense
