"""What a prompt gives away: the words it started from, its members, planted strings."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from softprompt import Base, Recipe, Row, SoftPrompt, SoftPromptError, Task, leakage, plant_canaries, train
from softprompt.inspection.canaries import is_canary
from softprompt.inspection.leakage import row_losses, rows_asked
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.starts.examples import choose
from tests.training.runs import TASK, rows


def test_words_of_examples_are_read_off_and_words_of_a_text_are_not(tiny_base: Base) -> None:
    seen = rows(20)
    texts = choose(tiny_base, [(TASK.render(row.columns) + (row.target or ""), row.label) for row in seen], 16)
    prompt = SoftPrompt.from_examples(tiny_base, texts, 16)
    others = [Row({"text": f"quite {i} other"}, i % 2, " no") for i in range(8)]
    found = leakage(tiny_base, prompt, seen, unseen=others, task=TASK)
    assert found.recovery is not None
    assert found.recovery.by_cosine >= 4
    assert found.recovery.by_distance >= 4
    assert found.recovery.kept is None
    assert all(any(text in row.columns["text"] for row in seen) for text in found.recovery.texts)
    assert found.recovery.by_chance == 0
    scaled = SoftPrompt(prompt.embeddings * 3, prompt.card)  # the norm hides nothing
    again = leakage(tiny_base, scaled, seen, task=TASK).recovery
    assert again is not None
    assert again.by_distance == found.recovery.by_distance
    quiet = leakage(tiny_base, SoftPrompt.from_text(tiny_base, "quite other", 11), seen, task=TASK)
    assert quiet.recovery is not None
    assert (quiet.recovery.by_cosine, quiet.recovery.kept) == (0, 11)
    assert quiet.membership is quiet.canaries is quiet.private is None


@pytest.mark.parametrize("task", [TASK, TASK.answered_by("head"), Task(template="{text}:", target=" {label}")])
def test_a_rows_loss_is_the_training_loss(tiny_base: Base, task: Task) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    if task.kind == "head":
        prompt = SoftPrompt(prompt.embeddings, head=torch.randn(2, 32))
    some = rows(5) if task.labels else [Row(row.columns, None, row.target) for row in rows(5)]
    model = PromptedModel(tiny_base, [prompt])
    alone = [row_losses(model, task, [row])[0] for row in some]
    assert row_losses(model, task, some) == pytest.approx(alone, rel=1e-4)


def test_an_overfitted_prompt_tells_its_members_and_canaries_and_a_fresh_one_does_not(tiny_base: Base) -> None:
    """Labels by chance: what is right on them is known by heart."""
    learned = plant_canaries(rows(16, by_chance=1), TASK, 4, repeats=2)
    assert [is_canary(row, TASK) for row in learned] == [False] * 16 + [True] * 8
    start = SoftPrompt.from_vocabulary(tiny_base, 24)
    recipe = Recipe(max_steps=300, batch_size=24, learning_rate=0.1, monitor=False)
    fitted = train(tiny_base, start, TASK, train=learned, recipe=recipe).prompt
    others = rows(200, 1000, by_chance=2)
    before, after = (
        leakage(tiny_base, prompt, learned, unseen=others, task=TASK, references=255) for prompt in (start, fitted)
    )
    assert before.membership is not None
    assert after.membership is not None
    low, high = before.membership.auc_interval
    assert low <= 0.5 <= high
    assert (before.membership.seen, before.membership.unseen) == (16, 200)
    assert after.membership.auc > 0.8
    assert after.membership.auc_interval[0] > 0.5
    assert after.membership.tpr >= 0.1
    assert before.canaries is not None
    assert after.canaries is not None
    assert len(after.canaries.exposures) == 4
    assert after.canaries.most == 8
    assert before.canaries.p_value > 0.01
    assert after.canaries.p_value < 0.01
    assert np.mean(after.canaries.exposures) > 3
    document = after.to_json()
    assert json.loads(json.dumps(document, allow_nan=False))["canaries"]["most"] == 8
    assert "not a proof" in document["caption"]


def test_the_auc_is_scikit_learns(tiny_base: Base) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    seen, others = rows(10), rows(12, 500)
    found = leakage(tiny_base, prompt, seen, unseen=[*others, *seen[:3]], task=TASK).membership
    losses = row_losses(PromptedModel(tiny_base, [prompt]), TASK, [*seen, *others])
    assert found is not None
    assert found.unseen == 12  # three are among the learned
    assert found.auc == pytest.approx(roc_auc_score([1] * 10 + [0] * 12, -losses))


def test_exposure_is_carlinis(tiny_base: Base) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    found = leakage(tiny_base, prompt, plant_canaries(rows(4), TASK, 6), task=TASK, references=63).canaries
    assert found is not None
    ranks = [64 / 2**bits for bits in found.exposures]
    assert ranks == pytest.approx([round(rank) for rank in ranks])
    assert all(0 <= bits <= found.most == math.log2(64) for bits in found.exposures)


def test_all_rows_that_are_asked_are_told(tiny_base: Base) -> None:
    told: list[int] = []
    seen, others = plant_canaries(rows(6), TASK, 3, repeats=2), rows(5, 500)
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    leakage(tiny_base, prompt, seen, unseen=others, task=TASK, progress=told.append)
    assert sum(told) == rows_asked(TASK, seen, others) == 6 + 5 + 3 + 2 * 511


def test_what_cannot_be_measured_is_refused(tiny_base: Base) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    with pytest.raises(SoftPromptError, match="doesn't say what its task is"):
        leakage(tiny_base, prompt, rows(4))
    with pytest.raises(SoftPromptError, match="at least 2 rows that are not among the learned"):
        leakage(tiny_base, prompt, rows(4), unseen=rows(4), task=TASK)
    with pytest.raises(SoftPromptError, match="references is 0"):
        leakage(tiny_base, prompt, plant_canaries(rows(4), TASK), task=TASK, references=0)
    with pytest.raises(SoftPromptError, match="0 canaries"):
        plant_canaries(rows(4), TASK, 0)
