"""Encoders behind prompts equal Transformers' and PEFT's own computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import softprompt as sp
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import final_states
from tests.models.encoders import ENCODERS, base_of, whole

TEXTS = [[0, 5, 6, 7, 8, 0], [0, 11, 0], [0, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 0], [0, 9, 9, 0]]
CLASSES = [2, 0, 1, 1]


def prompt_of(base: sp.Base, classifier: torch.nn.Linear, length: int = 4, seed: int = 0) -> sp.SoftPrompt:
    """A prompt with the head that a classifier is."""
    start = sp.SoftPrompt.from_vocabulary(base, length, seed=seed) if length else sp.SoftPrompt.none(base, 3)
    head = torch.cat([classifier.weight, classifier.bias[:, None]], 1).detach()
    return replace(start.with_head(base, len(head), "SEQ_CLS"), head=head)


def last_layer(model: Any) -> torch.nn.Linear:
    layer = model.classifier
    return getattr(layer, "out_proj", layer)


def padded(side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, TEXTS))
    ids, mask, labels = (torch.full((len(TEXTS), width), fill) for fill in (1, 0, -100))
    for row, (text, label) in enumerate(zip(TEXTS, CLASSES, strict=True)):
        start = 0 if side == "right" else width - len(text)
        ids[row, start : start + len(text)] = torch.tensor(text)
        mask[row, start : start + len(text)] = 1
        labels[row, start] = label
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def peft_of(model: Any, prompt: sp.SoftPrompt, task_type: str = "SEQ_CLS") -> Any:
    config = PromptTuningConfig(task_type=task_type, num_virtual_tokens=prompt.num_virtual_tokens)
    peft: Any = get_peft_model(model, config).eval()
    peft.prompt_encoder["default"].embedding.weight.data.copy_(prompt.embeddings)
    return peft


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ENCODERS)
def test_loss_and_gradient_are_pefts(family: str, side: str) -> None:
    model: Any = whole(family, AutoModelForSequenceClassification)
    base = base_of(model, family)
    prompt = prompt_of(base, last_layer(model))
    ours = PromptedModel(base, [prompt])
    output = ours(**padded(side))
    output.loss.backward()
    peft = peft_of(model, prompt)
    scores = [peft(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text))).logits[0] for text in TEXTS]
    expected = cross_entropy(torch.stack(scores), torch.tensor(CLASSES))
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    grad = peft.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(ours.prompts[0].grad, grad, rtol=1e-3, atol=1e-6)
    layer = last_layer(peft.base_model)
    layer = getattr(layer, "modules_to_save", {"default": layer})["default"]
    layer = getattr(layer, "out_proj", layer)
    found = ours.heads[0].grad
    torch.testing.assert_close(found[:, :-1], layer.weight.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[:, -1], layer.bias.grad, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in base.model.parameters())


@pytest.mark.parametrize("family", ENCODERS)
def test_padding_and_parts_change_nothing(family: str) -> None:
    base = base_of(whole(family, AutoModelForSequenceClassification), family)
    prompt = prompt_of(base, torch.nn.Linear(base.hidden_size, 3))
    whole_batch = PromptedModel(base, [prompt])(**padded("left"))
    torch.testing.assert_close(PromptedModel(base, [prompt])(**padded("right")).loss, whole_batch.loss)
    parts = PromptedModel(base, [prompt], max_tokens=8)(**padded("right"))
    torch.testing.assert_close(parts.row_loss, whole_batch.row_loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_several_prompts_in_a_batch_equal_one_by_one(family: str) -> None:
    base = base_of(whole(family, AutoModelForSequenceClassification), family)
    prompts = [prompt_of(base, torch.nn.Linear(base.hidden_size, 3), length, length) for length in (3, 6, 0)]
    index = [0, 1, 2, 0]
    together = PromptedModel(base, prompts)(**padded("right"), prompt_index=torch.tensor(index)).row_loss
    for row, k in enumerate(index):
        batch = {key: value[row : row + 1] for key, value in padded("right").items()}
        alone = PromptedModel(base, [prompts[k]])(**batch).row_loss
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [0, 5])
@pytest.mark.parametrize("family", ENCODERS)
def test_peft_loads_ours(family: str, length: int, tmp_path: Path) -> None:
    model: Any = whole(family, AutoModelForSequenceClassification)
    base = base_of(model, family)
    prompt = prompt_of(base, torch.nn.Linear(base.hidden_size, 3), length)
    prompt.save(tmp_path / "ours")
    loaded: Any = PeftModel.from_pretrained(model, str(tmp_path / "ours")).eval()
    states = final_states(PromptedModel(base, [prompt]), TEXTS)
    assert prompt.head is not None
    found = states @ prompt.head[:, :-1].T + prompt.head[:, -1]
    with torch.no_grad():
        expected = torch.cat([loaded(input_ids=torch.tensor([text])).logits for text in TEXTS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ENCODERS)
def test_we_load_pefts(family: str, tmp_path: Path) -> None:
    model: Any = whole(family, AutoModelForSequenceClassification)
    base = base_of(model, family)
    peft = peft_of(model, sp.SoftPrompt.from_vocabulary(base, 5))
    with torch.no_grad():  # as training does
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    peft.save_pretrained(str(tmp_path / "peft"))
    prompt = sp.SoftPrompt.load(tmp_path / "peft", base)
    assert prompt.head is not None
    assert (prompt.task_type, prompt.head.shape) == ("SEQ_CLS", (3, base.hidden_size + 1))
    output = PromptedModel(base, [prompt])(**padded("left"), return_logits=True)
    with torch.no_grad():
        expected = torch.cat([peft(input_ids=torch.tensor([text])).logits for text in TEXTS])
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_loaded_with_or_without_a_classifier(family: str, tmp_path: Path) -> None:
    model: Any = whole(family, AutoModelForSequenceClassification)
    tokenizer = base_of(model).tokenizer
    for folder, one in (("classifier", model), ("masked", whole(family, AutoModelForMaskedLM))):
        one.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    loaded = sp.load_base(tmp_path / "classifier", dtype="float32")
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        expected = base_of(model).model(input_ids=ids).logits
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected)
    torch.manual_seed(1)
    first = sp.load_base(tmp_path / "masked", dtype="float32").identity
    torch.manual_seed(2)
    assert sp.load_base(tmp_path / "masked", dtype="float32").identity == first


def test_roberta_counts_its_positions_from_its_paddings(tmp_path: Path) -> None:
    base = base_of(whole("roberta", AutoModelForSequenceClassification))
    assert base.max_positions == 126
    prompt = prompt_of(base, torch.nn.Linear(base.hidden_size, 3))
    final_states(PromptedModel(base, [prompt]), [[5] * 122])
    with pytest.raises(sp.SoftPromptError, match="the context holds 126"):
        final_states(PromptedModel(base, [prompt]), [[5] * 123])


def rows(count: int, start: int = 0) -> list[sp.Row]:
    """Texts whose first letter tells their label."""
    return [sp.Row({"text": "mw"[i % 2] + str(i * 37)}, i % 2, f" {['yes', 'no'][i % 2]}") for i in range(start, count)]


@pytest.mark.parametrize("family", ENCODERS)
def test_a_run(family: str, tmp_path: Path) -> None:
    base = base_of(whole(family, AutoModelForSequenceClassification), family)
    before = {name: parameter.clone() for name, parameter in base.model.state_dict().items()}
    task = sp.Task(template="{text}", labels=["yes", "no"])
    recipe = sp.Recipe(max_steps=6, batch_size=4, evaluate_every=3, warmup_steps=0)
    start = sp.SoftPrompt.from_vocabulary(base, 3)
    data: Any = {"train": rows(24), "validation": rows(32, 24)}
    run = sp.train(base, start, task, recipe=recipe, output=tmp_path / "run", **data)
    assert run.validation is not None
    prompt = sp.SoftPrompt.load(tmp_path / "run/prompt", base)
    asked = sp.Task.from_dict(prompt.card.task)
    assert (asked.kind, prompt.task_type) == ("head", "SEQ_CLS")
    assert sp.predict(base, prompt, asked, ["m37"]) == sp.predict(base, run.prompt, asked, ["m37"])
    assert sp.evaluate(base, prompt, asked, rows(32, 24)).accuracy == run.validation.accuracy
    assert not torch.equal(prompt.embeddings, start.embeddings)
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


def test_an_encoder_says_no_words() -> None:
    base = base_of(whole("bert", AutoModelForSequenceClassification), "tiny")
    prompt = sp.SoftPrompt.from_vocabulary(base, 3)
    line = r"base 'tiny' \(bert\) says no words: task.answer can be head, .*not {}"
    for task in (sp.Task(template="{text}", target="{x}"), sp.Task(template="{text}", labels=["a", "b"])):
        with pytest.raises(sp.SoftPromptError, match=line.format("words" if task.labels else "text")):
            sp.evaluate(base, None, task, rows(4))
    free = sp.Task(template="{text}", target="{x}")
    with pytest.raises(sp.SoftPromptError, match=line.format("text")):
        sp.train(base, prompt, free, train=rows(8))
