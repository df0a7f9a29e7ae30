"""What the version before wrote loads, classifies, serves and goes on as it did; see `format1/README.md`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import softprompt as sp
from softprompt.cli import app
from softprompt.serving.local import LocalEngine
from tests.serving.conftest import living

TEXTS = ["good 1", "awful 2"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the working folder."""
    folder = shutil.copytree(Path(__file__).parent / "format1", tmp_path / "format1")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected(old: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((old / "expected.json").read_text())
    return found


def losses(run: Path) -> list[float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def train(*options: str) -> None:
    result = CliRunner().invoke(app, ["train", "task.yaml", *options])
    assert result.exit_code == 0, result.output


def test_a_base_is_known_by_the_same_fingerprint(old: Path, expected: dict[str, Any]) -> None:
    assert sp.load_base("base", dtype="float32").identity.model_dump(exclude_none=True) == expected["fingerprint"]


def test_a_prompt_classifies_as_it_did(old: Path, expected: dict[str, Any]) -> None:
    base = sp.load_base("base", dtype="float32")
    prompt = sp.SoftPrompt.load("whole/prompt", base=base)
    assert prompt.sha256 == expected["prompt_sha256"]
    task = sp.Task(**prompt.card.task)
    for found, then in zip(sp.predict(base, prompt, task, TEXTS), expected["probabilities"], strict=True):
        assert found.probabilities == pytest.approx(then, abs=1e-5)
    result = CliRunner().invoke(app, ["predict", "whole/prompt", *TEXTS, "--json"])
    assert result.exit_code == 0, result.output
    given = json.loads(result.stdout)["predictions"]
    assert [one["label"] for one in given] == [max(one, key=one.get) for one in expected["probabilities"]]


def test_a_library_is_served(old: Path, expected: dict[str, Any]) -> None:
    library = sp.PromptLibrary("library")
    base = sp.load_base("base", dtype="float32")
    with living(LocalEngine(base, state_bytes=1 << 20), library) as live:
        assert {model["id"] for model in live.get("/v1/models").json()["data"]} == {"base", "mood", "bare"}
        live.post("/v1/prompts/load", json={"name": "mood@1"}).raise_for_status()
        answer = live.post("/v1/classify", json={"model": "mood", "input": TEXTS}).json()
    for found, then in zip(answer["data"], expected["probabilities"], strict=True):
        assert found["probabilities"] == pytest.approx(then, abs=1e-5)


def test_the_same_run_learns_the_same(old: Path, expected: dict[str, Any]) -> None:
    train("--output", "again")
    assert losses(old / "again") == pytest.approx(expected["losses"], rel=1e-5)


def test_a_stopped_run_goes_on(old: Path, expected: dict[str, Any]) -> None:
    train("--output", "stopped", "--resume")
    assert losses(old / "stopped") == pytest.approx(expected["losses"], rel=1e-5)
    base = sp.load_base("base", dtype="float32")
    task = sp.Task(**sp.SoftPrompt.load("stopped/prompt").card.task)
    found = sp.predict(base, sp.SoftPrompt.load("stopped/prompt"), task, TEXTS)
    assert found[0].probabilities == pytest.approx(expected["probabilities"][0], abs=1e-5)
