from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt import (
    Base,
    Row,
    SoftPrompt,
    SoftPromptError,
    Task,
    WrongBaseError,
    calibrate,
    evaluate,
    predict,
    prune,
    train,
)
from softprompt.training.ensemble import Ensemble
from tests.conftest import make_base
from tests.training.test_run import TASK as LEARNED
from tests.training.test_run import learn, recipe
from tests.training.test_run import rows as learned_rows

LABELS = ["yes", "yellow", "no", "a longer label"]
TASK = Task(template="Is it {text}?\n", labels=LABELS)
TEXTS = ["warm", "a", "rather far from here", "late", "cold", "wet"]
ROWS = [Row({"text": text}, i % 4) for i, text in enumerate(TEXTS)]


def probabilities(base: Base, prompt: SoftPrompt, texts: list[str] = TEXTS) -> torch.Tensor:
    found = predict(base, prompt, TASK, texts)
    return torch.tensor([[(one.probabilities or {})[label] for label in LABELS] for one in found], dtype=torch.double)


def test_each_labels_mean_probability_is_divided_out(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 5)
    plain = probabilities(tiny_base, prompt)
    calibrated = calibrate(tiny_base, prompt, TASK, ROWS)
    assert calibrated.card.calibration is not None
    assert list(calibrated.card.calibration) == LABELS
    assert list(calibrated.card.calibration.values()) == pytest.approx(plain.mean(0).log().tolist())
    expected = plain / plain.mean(0)
    expected /= expected.sum(1, keepdim=True)
    assert torch.allclose(probabilities(tiny_base, calibrated), expected, rtol=1e-9)
    assert not torch.allclose(expected, plain, atol=0.01)
    assert prompt.card.calibration is None
    assert calibrated.sha256 == prompt.sha256
    figures = evaluate(tiny_base, calibrated, TASK, ROWS)
    right = (expected.argmax(1) == torch.tensor([row.label for row in ROWS])).double().mean()
    assert figures.accuracy == pytest.approx(float(right))


def test_it_is_kept_and_measured_anew(tiny_base: Base, tmp_path: Path) -> None:
    prompt = SoftPrompt.random(tiny_base, 5)
    calibrated = calibrate(tiny_base, prompt, TASK, ROWS)
    again = calibrate(tiny_base, calibrated, TASK, ROWS)
    assert again.card.calibration == calibrated.card.calibration
    loaded = SoftPrompt.load(calibrated.save(tmp_path / "prompt"), tiny_base)
    assert torch.equal(probabilities(tiny_base, loaded), probabilities(tiny_base, calibrated))
    # A prompt that starts from it has other priors.
    assert SoftPrompt.from_prompt(loaded).card.calibration is None
    run = train(tiny_base, loaded, LEARNED, train=learned_rows(40), recipe=recipe(max_steps=1))
    assert run.prompt.card.calibration is None
    assert prune(tiny_base, calibrated, TASK, ROWS, 3).prompt.card.calibration is None


def test_an_unlabelled_file_will_do_and_long_files_are_sampled(tiny_base: Base, tmp_path: Path) -> None:
    prompt = SoftPrompt.random(tiny_base, 3)
    file = tmp_path / "texts.csv"
    file.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    assert calibrate(tiny_base, prompt, TASK, file).card.calibration == pytest.approx(
        calibrate(tiny_base, prompt, TASK, ROWS).card.calibration
    )
    done: list[int] = []
    calibrate(tiny_base, prompt, TASK, [Row({"text": "x"})] * 900, progress=done.append)
    assert sum(done) == 225


def test_training_measures_it_where_the_recipe_asks(tiny_base: Base, tmp_path: Path) -> None:
    plain = learn(tiny_base)
    run = learn(tiny_base, tmp_path / "run", recipe=recipe(calibrate=True))
    assert run.prompt.sha256 == plain.prompt.sha256
    assert plain.prompt.card.calibration is None
    expected = calibrate(tiny_base, plain.prompt, LEARNED, learned_rows(40))
    assert run.prompt.card.calibration == expected.card.calibration
    # What is reported is what the saved prompt does.
    assert run.path is not None
    saved = SoftPrompt.load(run.path, tiny_base)
    again = evaluate(tiny_base, saved, LEARNED, learned_rows(12, 40))
    assert run.validation is not None
    assert again.log_loss == run.validation.log_loss
    assert plain.validation is not None
    assert again.log_loss != plain.validation.log_loss


def test_an_ensembles_members_answer_as_they_do_alone(tiny_base: Base) -> None:
    prompts = [SoftPrompt.random(tiny_base, 4, seed=seed) for seed in range(2)]
    prompts[1] = calibrate(tiny_base, prompts[1], TASK, ROWS)
    found = Ensemble(prompts).member_probabilities(tiny_base, TASK, ROWS)
    for prompt, of_member in zip(prompts, found, strict=True):
        assert torch.allclose(of_member, probabilities(tiny_base, prompt), rtol=1e-4)


def test_unusable_input_is_refused(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 3)
    free = Task(template="{text}:", target=" {answer}")
    with pytest.raises(SoftPromptError, match="generates free text"):
        calibrate(tiny_base, prompt, free, ROWS)
    with pytest.raises(SoftPromptError, match="needs texts"):
        calibrate(tiny_base, prompt, TASK, [])
    with pytest.raises(WrongBaseError):
        calibrate(make_base(seed=1), prompt, TASK, ROWS)
    with pytest.raises(SoftPromptError, match=r"recipe\.calibrate is for tasks with labels"):
        train(tiny_base, prompt, free, train=[Row({"text": "x"}, target=" y")], recipe=recipe(calibrate=True))
    other = Task(template="Is it {text}?\n", labels=["yes", "no"])
    calibrated = calibrate(tiny_base, prompt, TASK, ROWS)
    with pytest.raises(
        SoftPromptError, match=r"calibrated for the labels yes, yellow, no, a longer label, not for yes"
    ):
        predict(tiny_base, calibrated, other, ["x"])
