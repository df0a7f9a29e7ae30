"""What is served follows the library, and outlives it."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from softprompt.prompts.library import PromptLibrary
from softprompt.serving import following
from softprompt.serving.local import LocalEngine
from tests.serving import conftest
from tests.serving.conftest import MOOD, Live, living, make_prompt

EVERY = 0.05


@pytest.fixture
def served(base, own_library: PromptLibrary, monkeypatch) -> Iterator[Live]:
    def make(engine, library):
        return following.Following(engine, library, every=EVERY)

    monkeypatch.setattr(conftest, "Service", make)
    with living(LocalEngine(base), own_library) as server:
        yield server


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def loaded(server: Live) -> set[str]:
    return {one["id"] for one in server.get("/v1/prompts").json()["data"]}


def ask(server: Live, model: str) -> int:
    return int(server.post("/v1/completions", json={"model": model, "prompt": "hello", "max_tokens": 2}).status_code)


def test_it_follows(base, served: Live, own_library: PromptLibrary) -> None:
    assert loaded(served) == {"mood@2", "topic@1", "colour@1", "bare@1"}
    own_library.add("new", make_prompt(base, 2, seed=9))
    until(lambda: "new@1" in loaded(served))
    assert ask(served, "new@1") == 200
    own_library.add("mood", make_prompt(base, 3, MOOD, seed=8))
    until(lambda: "mood@3" in loaded(served))
    assert (ask(served, "mood"), ask(served, "mood@3"), ask(served, "mood@2")) == (200, 200, 404)
    own_library.rollback("mood", 1)
    until(lambda: "mood@1" in loaded(served))
    own_library.remove("new")
    until(lambda: "new@1" not in loaded(served))
    assert ask(served, "new") == 404


def test_what_vanishes_is_answered_on(base, served: Live, own_library: PromptLibrary, caplog) -> None:
    with caplog.at_level(logging.WARNING, "softprompt.serving"):
        away = own_library.folder.with_name("away")
        own_library.folder.rename(away)
        time.sleep(10 * EVERY)
        assert ask(served, "mood@2") == 200
        assert loaded(served) == {"mood@2", "topic@1", "colour@1", "bare@1"}
        own_library.folder.mkdir()  # as a mount's place is, once it is unmounted
        time.sleep(10 * EVERY)
        assert ask(served, "mood@2") == 200
    (record,) = [one for one in caplog.records if one.getMessage() == "library not followed"]
    assert record.fields["reason"] == "bare, colour, mood, topic: gone from the storage, and answered on"
    own_library.folder.rmdir()
    away.rename(own_library.folder)
    own_library.add("mood", make_prompt(base, 3, MOOD, seed=8))
    until(lambda: "mood@3" in loaded(served))


def test_what_cannot_be_loaded_leaves_what_is(base, served: Live, own_library: PromptLibrary, caplog) -> None:
    with caplog.at_level(logging.WARNING, "softprompt.serving"):
        away = own_library.folder.rename(own_library.folder.with_name("away"))
        entry = PromptLibrary(away).add("mood", make_prompt(base, 3, MOOD, seed=8))
        (entry.path / "adapter_model.safetensors").write_bytes(b"damaged")
        caplog.clear()
        away.rename(own_library.folder)
        until(lambda: any("damaged" in str(getattr(one, "fields", "")) for one in caplog.records))
        time.sleep(10 * EVERY)
    assert len([one for one in caplog.records if "damaged" in str(getattr(one, "fields", ""))]) == 1
    assert ask(served, "mood@2") == 200
    own_library.rollback("mood", 2)
    own_library.remove("mood@3")
    own_library.add("mood", make_prompt(base, 3, MOOD, seed=8))
    until(lambda: "mood@4" in loaded(served))
    assert served.get("/v1/prompts").json()["refused"] == []


def test_what_is_loaded_is_the_librarys_to_say(served: Live, own_library: PromptLibrary) -> None:
    assert served.post("/v1/prompts/load", json={"name": "mood"}).json()["id"] == "mood@2"
    assert served.post("/v1/prompts/load", json={"name": "mood@2"}).status_code == 200
    for path, name, said in (
        ("load", "mood@1", "mood@1 is not the library's current version"),
        ("unload", "mood", "`softprompt library remove`"),
    ):
        answer = served.post(f"/v1/prompts/{path}", json={"name": name})
        assert answer.status_code == 409
        assert said in answer.json()["error"]["message"]
    assert loaded(served) == {"mood@2", "topic@1", "colour@1", "bare@1"}
    assert served.post("/v1/prompts/load", json={"name": "mood@x"}).status_code == 409
    shutil.rmtree(own_library.folder)
    assert served.post("/v1/prompts/load", json={"name": "mood"}).status_code == 404
