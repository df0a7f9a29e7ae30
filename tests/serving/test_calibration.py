"""A calibrated prompt answers over HTTP as it does from Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from softprompt import Evaluation, PromptLibrary, Row, SoftPrompt, calibrate, predict
from softprompt.bases.base import Base
from softprompt.serving.classification import Classifier
from tests.serving.conftest import ENGINES, TOPIC, living, make_prompt

TEXTS = [{"title": title, "text": text} for title, text in (("Late", "again"), ("A", "b"), ("War", "and peace"))]


@pytest.fixture(scope="module")
def prompts(base: Base) -> tuple[SoftPrompt, SoftPrompt]:
    """As it is, and calibrated."""
    prompt = make_prompt(base, 4, TOPIC, seed=7)
    return prompt, calibrate(base, prompt, TOPIC, [Row(text, i) for i, text in enumerate(TEXTS)])


def test_the_server_answers_as_python_does(base: Base, prompts: tuple[SoftPrompt, SoftPrompt], tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path / "library")
    library.add("plain", prompts[0])
    library.add("calibrated", prompts[1])
    with living(ENGINES["local"](base), library) as live:
        for name, prompt in zip(("plain", "calibrated"), prompts, strict=True):
            expected = predict(base, prompt, TOPIC, TEXTS)
            answer = live.post("/v1/classify", json={"model": name, "input": TEXTS}).json()["data"]
            for given, one in zip(answer, expected, strict=True):
                assert given["label"] == one.label
                assert given["probabilities"] == pytest.approx(one.probabilities, rel=1e-4)
    plain, calibrated = (predict(base, prompt, TOPIC, TEXTS)[0].probabilities for prompt in prompts)
    assert plain != pytest.approx(calibrated, rel=0.01)


def test_an_answer_is_pythons_to_the_last_bit(
    base: Base, prompts: tuple[SoftPrompt, SoftPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    likelihoods = [-3.25, -1.5, -2.125]
    classifier = Classifier(base, TOPIC, prompts[1])
    monkeypatch.setattr(sys.modules[Evaluation.__module__], "score", lambda *_, **__: torch.tensor([likelihoods]))
    expected = predict(base, prompts[1], TOPIC, TEXTS[:1])[0]
    assert classifier.answer([likelihoods]) == (expected.label, expected.probabilities)
    assert expected.probabilities != predict(base, prompts[0], TOPIC, TEXTS[:1])[0].probabilities
