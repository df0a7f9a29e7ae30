"""Without a hub that answers: names fail in seconds, and say why."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import softprompt as sp
from softprompt.bases import hub
from softprompt.bases.load import load_outline
from softprompt.prompts.hub import pull
from softprompt.tasks.reading import Reading
from softprompt.tasks.tables import open_tables
from tests.conftest import make_base
from tests.test_cli import save_base


@pytest.fixture(params=["silent", "closed"])
def nowhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that takes connections and never answers, or takes none; and nothing says that there is no network."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "silent":
            server.listen()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "SECONDS", 2.0)
        yield


@pytest.mark.parametrize(
    "ask",
    [
        lambda: sp.load_base("owner/name"),
        lambda: load_outline("owner/name"),
        lambda: open_tables("hub:owner/name:train", Reading()),
        lambda: pull("owner/name", token=None, revision=None),
    ],
    ids=["base", "outline", "rows", "prompt"],
)
def test_a_name_fails_in_seconds_and_says_what_to_look_at(nowhere: None, ask: object) -> None:
    began = time.monotonic()
    with pytest.raises(sp.SoftPromptError, match=r"the hub cannot be reached.*check.*HF_HUB_OFFLINE"):
        ask()  # type: ignore[operator]
    assert time.monotonic() - began < 4
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("load", [sp.load_base, load_outline])
def test_what_the_hub_gave_before_is_loaded_in_seconds(
    nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: object
) -> None:
    commit = "0" * 40
    kept = tmp_path / "models--owner--name"
    save_base(make_base(), kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    base = load("owner/name")  # type: ignore[operator]
    assert time.monotonic() - began < 4
    assert base.identity.fingerprint == make_base().identity.fingerprint
