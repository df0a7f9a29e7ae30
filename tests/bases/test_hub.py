"""Without a hub that answers: names fail in seconds, and say why."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

import softprompt as sp
from softprompt.bases import hub
from softprompt.prompts.hub import pull
from softprompt.tasks.reading import Reading
from softprompt.tasks.tables import open_tables


@pytest.fixture(params=["silent", "closed"])
def nowhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that takes connections and never answers, or takes none; and nothing says that there is no network."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "silent":
            server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "SECONDS", 1.0)
        yield


@pytest.mark.parametrize(
    "ask",
    [
        lambda: sp.load_base("owner/name"),
        lambda: open_tables("hub:owner/name:train", Reading()),
        lambda: pull("owner/name", token=None, revision=None),
    ],
    ids=["base", "rows", "prompt"],
)
def test_a_name_fails_in_seconds_and_says_what_to_look_at(nowhere: None, ask: object) -> None:
    began = time.monotonic()
    with pytest.raises(sp.SoftPromptError, match=r"the hub cannot be reached.*check.*HF_HUB_OFFLINE"):
        ask()  # type: ignore[operator]
    assert time.monotonic() - began < 4
    assert not constants.HF_HUB_OFFLINE
