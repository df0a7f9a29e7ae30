"""Embeddings behind prompts, and the loss over pairs of texts, equal the plain computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, AutoModelForSequenceClassification

import softprompt as sp
from softprompt.models.embedding import SCALE
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import embeddings
from tests.conftest import make_base
from tests.models.encoders import ENCODERS, base_of, whole

PAIRS = [([5, 6, 7], [8, 9]), ([11], [12, 13, 14, 15]), ([16, 17], [8, 9]), ([18, 19], [20])]
TASK = sp.Task(template="{question}", target="{passage}", answer="embedding")


def base(family: str) -> sp.Base:
    return make_base() if family == "llama" else base_of(whole(family, AutoModelForSequenceClassification), family)


def prompt_of(base: sp.Base, length: int = 3, seed: int = 0) -> sp.SoftPrompt:
    start = sp.SoftPrompt.from_vocabulary(base, length, seed=seed)
    return replace(start, card=start.card.replace(task_type="FEATURE_EXTRACTION"))


def padded(pairs: list[tuple[list[int], list[int]]], side: str) -> dict[str, Tensor]:
    width = max(len(first) + len(second) for first, second in pairs)
    ids, mask, labels = (torch.full((len(pairs), width), fill) for fill in (1, 0, -100))
    for row, (first, second) in enumerate(pairs):
        size = len(first) + len(second)
        start = 0 if side == "right" else width - size
        ids[row, start : start + size] = torch.tensor(first + second)
        mask[row, start : start + size] = 1
        labels[row, start + len(first)] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def plain(base: sp.Base, prompt: Tensor, text: list[int]) -> Tensor:
    row = torch.cat([prompt, base.embed(torch.tensor(text))])[None]
    hidden = base.model.base_model(inputs_embeds=row, attention_mask=torch.ones(row.shape[:2])).last_hidden_state
    return normalize(hidden[0, len(prompt) :].mean(0), dim=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_tokens", [None, 6])
@pytest.mark.parametrize("family", [*ENCODERS, "llama"])
def test_loss_and_gradient(family: str, max_tokens: int | None, side: str) -> None:
    tiny = base(family)
    prompt = prompt_of(tiny)
    model = PromptedModel(tiny, [prompt], max_tokens=max_tokens)
    output = model(**padded(PAIRS, side))
    output.loss.backward()
    leaf = prompt.embeddings.clone().requires_grad_()
    first, second = (torch.stack([plain(tiny, leaf, pair[i]) for pair in PAIRS]) for i in (0, 1))
    scores = SCALE * first @ second.T
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[0, 2] = hidden[2, 0] = True  # the same second text
    expected = cross_entropy(scores.masked_fill(hidden, float("-inf")), torch.arange(4))
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.prompts[0].grad, leaf.grad, rtol=1e-3, atol=1e-5)


def test_pairs_of_another_prompt_are_not_compared() -> None:
    tiny = base("bert")
    prompts = [prompt_of(tiny, 3, 1), prompt_of(tiny, 5, 2)]
    together = PromptedModel(tiny, prompts)(**padded(PAIRS, "right"), prompt_index=torch.tensor([0, 1, 1, 0])).row_loss
    for k, rows in enumerate([[0, 3], [1, 2]]):
        alone = PromptedModel(tiny, [prompts[k]])(**padded([PAIRS[row] for row in rows], "right")).row_loss
        torch.testing.assert_close(together[rows], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["none", "two", "first"])
def test_what_is_no_pair_is_refused(wrong: str) -> None:
    batch = padded(PAIRS, "right")
    batch["labels"][1] = -100
    if wrong == "two":
        batch["labels"][1, 1:3] = 0
    if wrong == "first":
        batch["labels"][1, 0] = 0
    tiny = base("bert")
    with pytest.raises(sp.SoftPromptError, match=r"pair .* one label"):
        PromptedModel(tiny, [prompt_of(tiny)])(**batch)


def test_peft_loads_ours(tmp_path: Path) -> None:
    tiny = base("bert")
    prompt = prompt_of(tiny)
    prompt.save(tmp_path / "ours")
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny.model.config).eval()
    model.load_state_dict(tiny.model.base_model.state_dict())
    peft: Any = PeftModel.from_pretrained(model, str(tmp_path / "ours"))
    assert peft.peft_config["default"].task_type == "FEATURE_EXTRACTION"
    found = embeddings(PromptedModel(tiny, [prompt]), [first for first, _ in PAIRS])
    for row, (text, _) in enumerate(PAIRS):
        with torch.no_grad():
            states = peft(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text))).last_hidden_state
        torch.testing.assert_close(found[row], normalize(states[0, 3:].mean(0), dim=0), rtol=1e-4, atol=1e-5)
    assert sp.SoftPrompt.load(tmp_path / "ours", tiny).task_type == "FEATURE_EXTRACTION"


def rows(count: int, start: int = 0) -> list[sp.Row]:
    return [
        sp.Row({"question": f"{chr(97 + i % 20)}{i}?"}, None, f"it is {chr(97 + i % 20)}")
        for i in range(start, start + count)
    ]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_run(family: str, tmp_path: Path) -> None:
    tiny = base(family)
    recipe = sp.Recipe(max_steps=20, batch_size=8, evaluate_every=10, learning_rate=0.1, warmup_steps=0)
    start = sp.SoftPrompt.from_vocabulary(tiny, 3)
    data: Any = {"train": rows(40), "validation": rows(40, 40)}
    run = sp.train(tiny, start, TASK, recipe=recipe, output=tmp_path / "run", **data)
    before = sp.evaluate(tiny, None, TASK, rows(40, 40))
    assert run.validation is not None
    assert run.validation.mrr is not None
    assert before.mrr is not None
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses[-1] < losses[0]
    prompt = sp.SoftPrompt.load(tmp_path / "run/prompt", tiny)
    assert (prompt.head, prompt.task_type) == (None, "FEATURE_EXTRACTION")
    assert sp.evaluate(tiny, prompt, TASK, rows(40, 40)).mrr == pytest.approx(run.validation.mrr)
    (found,) = sp.predict(tiny, prompt, TASK, ["a1?"])
    assert found.embedding is not None
    assert sum(x * x for x in found.embedding) == pytest.approx(1, abs=1e-5)


def test_a_private_run_is_refused() -> None:
    tiny = base("bert")
    recipe = sp.Recipe(max_steps=2, batch_size=4, private={"epsilon": 8, "delta": 1e-3})  # type: ignore[arg-type]
    with pytest.raises(sp.SoftPromptError, match=r"recipe\.private is not for embeddings"):
        sp.train(tiny, sp.SoftPrompt.random(tiny, 2), TASK, train=rows(20), recipe=recipe)


def test_each_text_of_a_pair_has_the_context_to_itself() -> None:
    tiny = base("llama")
    limit = tiny.room(3)
    assert limit is not None
    long = [([5] * limit, [6] * limit), ([7] * 9, [8] * (limit - 1))]
    model = PromptedModel(tiny, [prompt_of(tiny)])
    assert model(**padded(long, "right")).loss.isfinite()
    with pytest.raises(sp.SoftPromptError, match=rf"row 1 has {limit + 1} tokens behind 3 virtual tokens"):
        model(**padded([long[0], ([7] * 9, [8] * (limit + 1))], "right"))
