from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt import (
    Base,
    Row,
    Run,
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
from softprompt.evaluation.calibration import fit_log_priors
from softprompt.prompts.ensemble import Ensemble, vote
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


def test_the_labels_mean_probabilities_become_their_frequencies(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 5)
    plain = probabilities(tiny_base, prompt)
    calibrated = calibrate(tiny_base, prompt, TASK, ROWS)
    assert calibrated.card.calibration is not None
    assert list(calibrated.card.calibration) == LABELS
    expected = plain / torch.tensor(list(calibrated.card.calibration.values()), dtype=torch.double).exp()
    expected /= expected.sum(1, keepdim=True)
    found = probabilities(tiny_base, calibrated)
    assert torch.allclose(found, expected, rtol=1e-6)
    # Of six rows two have the first label, two the second, one the third and the fourth; one more of each is counted.
    assert found.mean(0).tolist() == pytest.approx([0.3, 0.3, 0.2, 0.2], rel=1e-5)
    assert not torch.allclose(found, plain, atol=0.01)
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
    pruned = prune(tiny_base, calibrated, TASK, ROWS, 3)
    assert pruned.prompt.card.calibration == calibrate(tiny_base, pruned.prompt, TASK, ROWS).card.calibration
    assert pruned.before.log_loss == evaluate(tiny_base, calibrated, TASK, ROWS).log_loss
    assert pruned.after.log_loss == evaluate(tiny_base, pruned.prompt, TASK, ROWS).log_loss
    assert prune(tiny_base, prompt, TASK, ROWS, 3).prompt.card.calibration is None


def test_a_labels_prior_may_be_out_of_all_proportion() -> None:
    likelihoods = torch.tensor([[-900.0, -1.0, 0.0], [-901.0, 0.0, -3.0], [-2000.0, -2.0, -1.0]])
    wanted = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    priors = torch.tensor(fit_log_priors(likelihoods, wanted), dtype=torch.double)
    assert torch.allclose((likelihoods.double() - priors).softmax(1).mean(0), wanted, rtol=1e-5)
    calm = fit_log_priors(wanted.log().expand(4, 3), wanted)
    assert calm == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_file_will_do_and_long_ones_are_sampled(tiny_base: Base, tmp_path: Path) -> None:
    prompt = SoftPrompt.random(tiny_base, 3)
    file = tmp_path / "texts.csv"
    lines = [f"{row.columns['text']},{LABELS[row.label or 0]}\n" for row in ROWS]
    file.write_text("text,label\n" + "".join(lines))
    assert calibrate(tiny_base, prompt, TASK, file).card.calibration == pytest.approx(
        calibrate(tiny_base, prompt, TASK, ROWS).card.calibration
    )
    done: list[int] = []
    calibrate(tiny_base, prompt, TASK, [Row({"text": "x"}, 0)] * 900, progress=done.append)
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


def test_by_itself_it_is_done_for_many_labels_where_the_validation_gets_better(tiny_base: Base) -> None:
    three = Task(template="{text}:", labels=["yes", "no", "maybe"], answer="words")
    prompt = SoftPrompt.from_vocabulary(tiny_base, 4)
    kept = set()
    for label in range(3):  # what takes from one label gives to another
        checks = [Row({"text": text}, label) for text in TEXTS]

        def learned(calibrate: object, task: Task = three, checks: list[Row] | None = checks) -> Run:
            settings = recipe(max_steps=4, evaluate_every=4, calibrate=calibrate)
            rows = [Row({"text": str(i)}, i % 2, " " + (task.labels or [])[i % 2]) for i in range(30)]
            return train(tiny_base, prompt, task, train=rows, validation=checks, recipe=settings)

        plain, asked, found = (learned(calibrate) for calibrate in (False, True, "auto"))
        assert plain.validation
        assert asked.validation
        assert found.validation
        helps = asked.validation.better_than(plain.validation, "accuracy")
        expected = asked if helps else plain
        assert expected.validation
        assert found.prompt.card.calibration == expected.prompt.card.calibration
        assert found.validation.log_loss == expected.validation.log_loss
        kept.add(helps)
    assert kept == {False, True}
    assert learned("auto", checks=None).prompt.card.calibration is None
    assert learned("auto", LEARNED, learned_rows(8)).prompt.card.calibration is None


def test_an_ensembles_members_are_calibrated_each_by_itself(tiny_base: Base) -> None:
    prompts = [SoftPrompt.random(tiny_base, 4, seed=seed) for seed in range(2)]
    plain = probabilities(tiny_base, Ensemble(prompts))
    prompts[1] = calibrate(tiny_base, prompts[1], TASK, ROWS)
    found = probabilities(tiny_base, Ensemble(prompts))
    assert torch.allclose(found, vote(torch.stack([probabilities(tiny_base, prompt) for prompt in prompts])), rtol=1e-4)
    assert not torch.allclose(found, plain, rtol=1e-2)


def test_unusable_input_is_refused(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 3)
    free = Task(template="{text}:", target=" {answer}")
    with pytest.raises(SoftPromptError, match="generates free text"):
        calibrate(tiny_base, prompt, free, ROWS)
    for unlabelled, says in (([], "needs labelled rows"), ([Row({"text": "x"})], "its label is None: give an index")):
        with pytest.raises(SoftPromptError, match=says):
            calibrate(tiny_base, prompt, TASK, unlabelled)
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
