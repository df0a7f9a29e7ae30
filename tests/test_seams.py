"""A new kind of answer, and a new family of bases: a class and a line in a table each, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

import softprompt as sp
from softprompt.bases import families
from softprompt.bases.families import FamilyKind
from softprompt.models.family import Batch, Family, wide
from softprompt.tasks import answers
from softprompt.tasks.answers.answer import Asked, Labels
from tests.conftest import make_tokenizer

TASK = sp.Task(template="{text}:", labels=["yes", "no"])


def rows(count: int, start: int = 0) -> list[sp.Row]:
    """Texts whose first letter tells their label."""
    labels = TASK.labels or []
    return [
        sp.Row({"text": "mw"[i % 2] + str(i * 37)}, i % 2, f" {labels[i % 2]}", number=i + 1)
        for i in range(start, start + count)
    ]


class Initials(Labels):
    """Of each label the first letter is learned, and scored."""

    @property
    def _initials(self) -> list[list[int]]:
        return self._tokens.following([[(f" {label[0]}", False)] for label in self.labels])

    def targets(self, rows: Sequence[sp.Row]) -> list[list[int]] | None:
        gold = self.gold(rows)
        return [self._initials[label] for label in gold] if len(gold) == len(rows) else None

    def likelihoods(self, asked: Asked) -> Tensor:
        return asked.score(self._initials)


def test_a_kind_of_answer(tiny_base: sp.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = answers.Kind("tests.test_seams:Initials", labels=True, metrics=answers.CLASSIFICATION_METRICS)
    monkeypatch.setitem(answers.KINDS, "initials", kind)
    task = TASK.answered_by("initials")
    recipe = sp.Recipe(max_steps=30, batch_size=8, evaluate_every=10, learning_rate=0.1, warmup_steps=2)
    start = sp.SoftPrompt.from_vocabulary(tiny_base, 4)
    run = sp.train(
        tiny_base, start, task, train=rows(60), validation=rows(20, 60), recipe=recipe, output=tmp_path / "run"
    )
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses[-1] < losses[0]
    prompt = sp.SoftPrompt.load(tmp_path / "run/prompt", tiny_base)
    asked = sp.Task.from_dict(prompt.card.task)
    assert asked.kind == "initials"
    (found,) = sp.predict(tiny_base, prompt, asked, ["m37"])
    assert found.probabilities is not None
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found != sp.predict(tiny_base, prompt, asked.answered_by("words"), ["m37"])[0]


class MeanConfig(PretrainedConfig):
    model_type = "mean"

    def __init__(self, vocab_size: int = 258, hidden_size: int = 32, **settings: Any) -> None:
        super().__init__(**settings)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size


class MeanModel(PreTrainedModel):
    """A base that knows no order: a token's state is the mean of all so far."""

    config_class = MeanConfig

    def __init__(self, config: MeanConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.generation_config = GenerationConfig()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class Means(Family):
    routes = ("means",)
    ways = ("plain",)

    def check(self, model: PreTrainedModel) -> None:
        pass

    def hidden(self, route: str, model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
        states = []
        for text, k in zip(batch.tokens.split(list(batch.lengths)), batch.prompt_of_text, strict=True):
            whole = torch.cat([prompts[k], model.get_input_embeddings()(text)])
            states.append(whole.cumsum(0) / torch.arange(1, len(whole) + 1)[:, None])
        pairs = zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)
        return torch.stack([states[row][len(prompts[batch.prompt_of_text[row]]) + column] for row, column in pairs])

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        return wide(model.get_output_embeddings()(hidden))


@pytest.mark.parametrize("kind", ["words", "head", "text"])
def test_a_family_of_bases(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FamilyKind("tests.test_seams:Means", "none", "CAUSAL_LM", lambda config: config.model_type == "mean")
    monkeypatch.setattr(families, "FAMILIES", {"mean": family, **families.FAMILIES})
    torch.manual_seed(0)
    base = sp.Base(MeanModel(MeanConfig()).eval(), make_tokenizer(), "mean")
    task = sp.Task(template="{text}:", target=" {x}", max_new_tokens=3) if kind == "text" else TASK.answered_by(kind)
    recipe = sp.Recipe(max_steps=6, batch_size=4, evaluate_every=3, warmup_steps=0)
    start = sp.SoftPrompt.from_vocabulary(base, 3)
    data: dict[str, Any] = {"train": rows(24), "validation": rows(8, 24)}
    run = sp.train(base, start, task, recipe=recipe, output=tmp_path / "run", **data)
    assert run.validation is not None
    prompt = sp.SoftPrompt.load(tmp_path / "run/prompt", base)
    assert sp.predict(base, prompt, task, ["m37"]) == sp.predict(base, run.prompt, task, ["m37"])
    assert not torch.equal(prompt.embeddings, start.embeddings)
