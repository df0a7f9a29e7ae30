from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softprompt import Base, DivergedError, Growth, SoftPrompt, SoftPromptError, Task, grow, train
from softprompt.training import growth
from softprompt.training.growth import LENGTHS
from tests.conftest import make_base
from tests.training.test_run import TASK, StopAt, recipe, rows

CHECKS = rows(12, 40)


def starts(base: Base) -> Callable[[int], SoftPrompt]:
    return lambda count: SoftPrompt.from_vocabulary(base, count)


def grown(base: Base, output: Path | None = None, **changed: Any) -> Growth:
    options: dict[str, Any] = {"train": rows(40), "validation": CHECKS, "recipe": recipe(max_steps=8)}
    return grow(base, starts(base), TASK, **options | {"lengths": (2, 4, 6), "output": output} | changed)


def scored(monkeypatch: pytest.MonkeyPatch, *scores: list[float]) -> None:
    """The rows' scores of the lengths in turn, whatever they learned."""
    left = iter(scores)
    monkeypatch.setattr(growth, "_scores", lambda *_: np.array(next(left)))


def test_it_grows_while_the_gain_is_above_its_noise(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    # Gains of 3 of 4 rows (0.75, noise 0.25), then of 1 of 4 less 1 of 4.
    scored(monkeypatch, [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0])
    found = grown(tiny_base)
    assert [length.num_virtual_tokens for length in found.lengths] == [2, 4, 6]
    assert [length.gain for length in found.lengths] == [None, 0.75, -0.25]
    assert [length.noise for length in found.lengths] == [None, pytest.approx(0.25), pytest.approx(0.25)]
    assert found.run.prompt.num_virtual_tokens == 4
    alone = train(tiny_base, starts(tiny_base)(4), TASK, train=rows(40), validation=CHECKS, recipe=recipe(max_steps=8))
    assert torch.equal(found.run.prompt.embeddings, alone.prompt.embeddings)  # from its own start, with its own steps
    assert [length.steps for length in found.lengths] == [8, 8, 8]
    assert found.lengths[1].score == (alone.validation and alone.validation.accuracy)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([[0, 0, 0, 1], [1, 0, 0, 1]], 2),  # a gain of 0.25 with a noise of 0.25
        ([[0, 0, 0, 0], [0, 0, 0, 0]], 2),  # none at all, without any noise
        ([[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]], 4),
        ([[0, 0, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]], 4),
    ],
)
def test_what_is_not_above_the_noise_ends_it(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, scores: list[list[float]], kept: int
) -> None:
    scored(monkeypatch, *scores)
    found = grown(tiny_base, recipe=recipe(max_steps=1))
    assert found.run.prompt.num_virtual_tokens == kept
    assert len(found.lengths) == len(scores)


def test_scores_are_the_answers_right_or_wrong(tiny_base: Base) -> None:
    found = grown(tiny_base, lengths=(3,), recipe=recipe(max_steps=20, learning_rate=0.1))
    scores = growth._scores(tiny_base, TASK, CHECKS, found.run)
    assert set(scores.tolist()) <= {0.0, 1.0}
    assert found.run.validation is not None
    assert scores.mean() == pytest.approx(found.run.validation.accuracy)
    assert LENGTHS == (8, 16, 32)


def test_the_folder_holds_a_run_for_each_length_and_the_prompt(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, [0, 0], [1, 1], [1, 0])
    found = grown(tiny_base, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"{count}-virtual-tokens" for count in (2, 4, 6)),
        "prompt",
        "run.json",
    }
    assert found.run.path == tmp_path / "out" / "prompt"
    assert found.folder == tmp_path / "out" / "4-virtual-tokens"
    saved = SoftPrompt.load(found.run.path, tiny_base)
    assert saved.sha256 == found.run.prompt.sha256 == SoftPrompt.load(found.folder / "prompt").sha256
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["prompt"] == str(tmp_path / "out" / "prompt")
    assert document["num_virtual_tokens"] == 4
    assert document["trainable_parameters"] == 4 * 32
    assert [length["num_virtual_tokens"] for length in document["lengths"]] == [2, 4, 6]
    with pytest.raises(SoftPromptError, match="choose another output"):
        grown(tiny_base, tmp_path / "out")


def test_resumed_equals_uninterrupted(tiny_base: Base, tmp_path: Path) -> None:
    whole = grown(tiny_base, tmp_path / "whole", lengths=(2, 4))
    seen: list[int] = []

    class Stop(StopAt):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen.append(len(model.prompts[0]))
            self.step = 5 if seen[-1] == 4 else -1

    with pytest.raises(KeyboardInterrupt):
        grown(make_base(), tmp_path / "cut", lengths=(2, 4), callbacks=[Stop(-1)])
    assert seen == [2, 4]
    assert not (tmp_path / "cut" / "prompt").exists()
    resumed = grown(make_base(), tmp_path / "cut", lengths=(2, 4), resume=True)
    assert resumed.run.prompt.sha256 == whole.run.prompt.sha256
    assert [(one.score, one.gain, one.noise) for one in resumed.lengths] == [
        (one.score, one.gain, one.noise) for one in whole.lengths
    ]
    with pytest.raises(SoftPromptError, match="another lengths"):
        grown(tiny_base, tmp_path / "cut", lengths=(2, 6), resume=True)
    with pytest.raises(SoftPromptError, match="no run to resume"):
        grown(tiny_base, tmp_path / "nothing", resume=True)
    forced = grown(tiny_base, tmp_path / "cut", lengths=(3,), force=True)
    assert forced.run.prompt.num_virtual_tokens == 3
    assert not (tmp_path / "cut" / "4-virtual-tokens").exists()


def test_a_later_length_that_diverges_is_not_worth_it(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = growth.learn

    def diverging(base: Base, prompt: SoftPrompt, *others: Any, **settings: Any) -> Any:
        if prompt.num_virtual_tokens == bad:
            raise DivergedError("the loss became NaN")
        return learn(base, prompt, *others, **settings)

    monkeypatch.setattr(growth, "learn", diverging)
    bad = 4
    found = grown(tiny_base, recipe=recipe(max_steps=1))
    assert found.run.prompt.num_virtual_tokens == 2
    assert (found.lengths[1].num_virtual_tokens, found.lengths[1].score) == (4, None)
    bad = 2
    with pytest.raises(DivergedError):
        grown(tiny_base, recipe=recipe(max_steps=1))


def test_unusable_input_is_refused(tiny_base: Base) -> None:
    for lengths in ((), (4, 4), (8, 4)):
        with pytest.raises(SoftPromptError, match="each greater than the one before"):
            grown(tiny_base, lengths=lengths)
    with pytest.raises(SoftPromptError, match="2 rows on, not 1"):
        grown(tiny_base, validation=CHECKS[:1])
    task = Task(template="{text}:", target=" {answer}", metric="bleu")
    with pytest.raises(SoftPromptError, match="bleu"):
        grow(tiny_base, starts(tiny_base), task, train=rows(4), validation=CHECKS)
