"""Bases whose layers Accelerate puts in several places: on a CPU, with a layer that stays on the disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.bases.load import load_base
from softprompt.bases.quantization import KINDS
from softprompt.errors import SoftPromptError
from softprompt.models.probe import find_route
from softprompt.models.state import objection_to_pool
from softprompt.training.recipe import Recipe
from tests.conftest import make_base
from tests.test_cli import TASK, save_base

PARTS = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
ON_DISK: dict[str, Any] = {**dict.fromkeys(PARTS, "cpu"), "model.layers.1": "disk"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(make_base(), tmp_path_factory.mktemp("tiny"))


def test_a_layer_on_the_disk_is_held_once_and_computed_rightly(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = load_base(folder, dtype="float32")
    with caplog.at_level(logging.INFO, "softprompt"):
        base = load_base(folder, dtype="float32", device_map=ON_DISK)
    assert "is dispatched by parts: 5 on cpu, 1 on disk" in caplog.text
    assert base.identity == whole.identity
    held = {name for name, weight in base.model.named_parameters() if not weight.is_meta}
    assert not any("layers.1." in name for name in held)
    assert any("layers.0." in name for name in held)
    assert find_route(base.model).name == "packed"
    assert objection_to_pool(base.model) == ""
    ids = torch.tensor([[5, 60, 7]])
    torch.testing.assert_close(base.model(ids).logits, whole.model(ids).logits)


def test_training_and_answers_are_those_of_the_whole_base(folder: Path) -> None:
    rows = [{"text": f"{word} {i}", "label": label} for i in range(4) for word, label in _WORDS]
    task, recipe = sp.Task(**TASK), Recipe(max_steps=3, batch_size=4, monitor=False)
    found = []
    for device_map in (None, ON_DISK, "auto"):
        base = load_base(folder, dtype="float32", device_map=device_map)
        start = sp.SoftPrompt.from_text(base, "Mood?", 4)
        run = sp.train(base, start, task, train=rows, recipe=recipe)
        answers = sp.predict(base, run.prompt, task, ["bad", "good day"])
        found.append((run.prompt.embeddings, [answer.label for answer in answers]))
    for prompt, labels in found[1:]:
        torch.testing.assert_close(prompt, found[0][0])
        assert labels == found[0][1]


_WORDS = (("good", "positive"), ("bad", "negative"))


def test_word_embeddings_that_are_nowhere(folder: Path) -> None:
    with pytest.raises(SoftPromptError, match="leaves the word embeddings where nothing is computed"):
        load_base(folder, dtype="float32", device_map=ON_DISK | {"model.embed_tokens": "disk"})


@pytest.mark.parametrize("kind", ["torchao-int8", "bnb-4bit"])
def test_quantised_parts_are_not_on_the_disk(kind: str, folder: Path) -> None:
    pytest.importorskip(KINDS[kind].library, reason="`make test-quantization` runs it")
    with pytest.raises(SoftPromptError, match=f"can't be {kind} over this device_map") as caught:
        load_base(folder, dtype="float32", device_map=ON_DISK, quantization=kind)
    assert "\n" not in str(caught.value)
