"""Labels for words equal PEFT's TOKEN_CLS, on encoders and causal bases; runs, and data that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from seqeval.metrics import f1_score
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaForTokenClassification,
)

import softprompt as sp
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import load_rows
from tests.conftest import make_base
from tests.models.encoders import ENCODERS, base_of, whole
from tests.models.test_encoder import peft_of

LABELS = ["O", "B-PER", "I-PER"]
TASK = sp.Task(template="{words}", labels=LABELS, answer="tags")
# Each text with the labels of its tokens, -100 for none.
TEXTS = [([0, 5, 6, 7, 0], [-100, 0, -100, 2, -100]), ([0, 8, 9, 0], [-100, 1, 1, -100])]


def pair(family: str) -> tuple[Any, sp.Base]:
    """Transformers' classifier of tokens, and the base that has the same weights."""
    if family == "llama":
        base = make_base()
        torch.manual_seed(0)
        config = type(base.model.config).from_dict(base.model.config.to_dict() | {"num_labels": 3})
        tokens: Any = LlamaForTokenClassification(config).eval()
        tokens.base_model.load_state_dict(base.model.base_model.state_dict())
        return tokens, base
    tokens = whole(family, AutoModelForTokenClassification)
    sequences: Any = whole(family, AutoModelForSequenceClassification)
    sequences.load_state_dict(tokens.state_dict(), strict=False)
    return tokens, base_of(sequences, family)


def head_of(model: Any) -> torch.nn.Linear:
    layer = getattr(model, "classifier", None) or model.score
    return getattr(layer, "modules_to_save", {"default": layer})["default"]


def prompt_of(base: sp.Base, layer: torch.nn.Linear, length: int = 4) -> sp.SoftPrompt:
    start = sp.SoftPrompt.from_vocabulary(base, length).with_head(base, 3, "TOKEN_CLS")
    return replace(start, head=torch.cat([layer.weight, layer.bias[:, None]], 1).detach())


def padded(side: str) -> dict[str, torch.Tensor]:
    width = max(len(text) for text, _ in TEXTS)
    ids, mask, labels = (torch.full((len(TEXTS), width), fill) for fill in (1, 0, -100))
    for row, (text, known) in enumerate(TEXTS):
        start = 0 if side == "right" else width - len(text)
        ids[row, start : start + len(text)] = torch.tensor(text)
        mask[row, start : start + len(text)] = 1
        labels[row, start : start + len(text)] = torch.tensor(known)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", [*ENCODERS, "llama"])
def test_loss_and_gradient_are_pefts(family: str, side: str) -> None:
    model, base = pair(family)
    prompt = prompt_of(base, head_of(model))
    ours = PromptedModel(base, [prompt])
    output = ours(**padded(side))
    output.loss.backward()
    peft = peft_of(model, prompt, "TOKEN_CLS")
    scores, wanted = [], []
    for text, labels in TEXTS:
        row = peft(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text))).logits[0, 4:]
        at = [i for i, label in enumerate(labels) if label != -100]
        scores.append(row[at])
        wanted += [labels[i] for i in at]
    expected = cross_entropy(torch.cat(scores), torch.tensor(wanted))
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    grad = peft.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(ours.prompts[0].grad, grad, rtol=1e-3, atol=1e-5)
    layer = head_of(peft.base_model)
    grad = ours.heads[0].grad
    assert layer.weight.grad is not None
    assert grad is not None
    torch.testing.assert_close(grad[:, :-1], layer.weight.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(grad[:, -1], layer.bias.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", [*ENCODERS, "llama"])
def test_folders_are_pefts(family: str, tmp_path: Path) -> None:
    model, base = pair(family)
    torch.manual_seed(1)
    prompt = prompt_of(base, torch.nn.Linear(base.hidden_size, 3))
    prompt.save(tmp_path / "ours")
    text = TEXTS[0][0]
    ids, labels = torch.tensor([text]), torch.tensor([[0] * len(text)])
    loaded: Any = PeftModel.from_pretrained(model, str(tmp_path / "ours")).eval()
    with torch.no_grad():
        expected = loaded(input_ids=ids, attention_mask=torch.ones(ids.shape)).logits[0, 4:]
        found = PromptedModel(base, [prompt])(ids, labels=labels, return_logits=True).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)  # or it asks the hub
    (tmp_path / "theirs" / "card.json").unlink(missing_ok=True)
    again = sp.SoftPrompt.load(tmp_path / "theirs", base)
    assert again.task_type == "TOKEN_CLS"
    assert torch.equal(again.head, prompt.head)  # type: ignore[arg-type]


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Words of which those that begin with m and what follows them are a name."""
    found = []
    for i in range(start, start + count):
        words = ["the" if i % 2 else "a", f"m{i * 7}", f"k{i}", "went", f"to{i % 3}"]
        found.append({"words": words, "label": ["O", "B-PER", "I-PER", "O", "O"]})
    return found


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_run(family: str, tmp_path: Path) -> None:
    base = pair(family)[1]
    for part, some in (("train", rows(40)), ("validation", rows(12, 40))):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, some)))
    recipe = sp.Recipe(max_steps=6, batch_size=4, evaluate_every=3, warmup_steps=0)
    data = {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "validation")}
    start = sp.SoftPrompt.from_vocabulary(base, 3)
    run = sp.train(base, start, TASK, recipe=recipe, output=tmp_path / "run", **data)
    assert run.validation is not None
    assert run.validation.f1 is not None
    assert run.validation.f1 > 0.7  # of the labels drawn at random it would be near 0
    prompt = sp.SoftPrompt.load(tmp_path / "run/prompt", base)
    asked = sp.Task.from_dict(prompt.card.task)
    texts = [" ".join(row["words"]) for row in rows(12, 40)]
    said = [(one.output or "").split() for one in sp.predict(base, prompt, asked, texts)]
    gold = [row["label"] for row in rows(12, 40)]
    assert f1_score(gold, said) == run.validation.f1
    assert sp.evaluate(base, prompt, asked, data["validation"]).f1 == run.validation.f1


def test_a_linear_probe() -> None:
    base = pair("bert")[1]
    run = sp.train(base, sp.SoftPrompt.none(base, 3), TASK, train=rows(40), validation=rows(12, 40))
    assert (run.prompt.task_type, run.prompt.num_virtual_tokens, run.steps) == ("TOKEN_CLS", 0, 0)
    assert run.validation is not None
    assert run.validation.accuracy is not None
    assert run.validation.accuracy > 0.7


def test_a_word_is_labelled_at_its_first_token() -> None:
    base = pair("bert")[1]
    made = load_rows([{"words": "ab  çd e", "label": "O B-PER I-PER"}], TASK)
    encoded = Encoder(base, TASK).encode_rows(made)
    example = encoded.example(0)
    # One token a byte: "ç" is two of them.
    tokens = base.tokenizer.convert_ids_to_tokens(example["ids"])
    assert [label for label in example["labels"] if label != -100] == [0, 1, 2]
    assert encoded.places is not None
    assert [tokens[place] for place in encoded.places[0]] == ["a", "Ã", "e"]


def test_words_that_were_cut_off_count_as_outside() -> None:
    base = pair("bert")[1]
    prompt = prompt_of(base, torch.nn.Linear(base.hidden_size, 3))
    long = load_rows([{"words": ["word"] * 60, "label": ["B-PER"] * 60}], TASK)
    found = sp.evaluate(base, prompt, TASK, long)
    assert (found.truncated, found.n) == (1, 1)
    (said,) = sp.predict(base, prompt, TASK, long)
    assert 0 < len((said.output or "").split()) < 60


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"words": "a b c", "label": "O O"}, "column 'words' has 3 words, but column 'label' 2 labels"),
        ({"words": "a b", "label": "O B-LOC"}, "label 'B-LOC' is not one of the task's 3 labels"),
        ({"words": ["New York"], "label": ["O"]}, "has 'New York' in its list, which is no word without spaces"),
        ({"words": [], "label": []}, "column 'words' is empty"),
    ],
)
def test_unusable_rows(row: dict[str, Any], line: str) -> None:
    with pytest.raises(sp.SoftPromptError, match=line):
        load_rows([row], TASK)


def test_unusable_tasks() -> None:
    base = pair("bert")[1]
    with pytest.raises(sp.SoftPromptError, match=r"task\.template: for tags it is one column of words"):
        Encoder(base, TASK.model_copy(update={"template": "Tag: {words}"}))
    kinds = sp.Task(template="{words}", labels=["NOUN", "VERB"], answer="tags")
    with pytest.raises(sp.SoftPromptError, match=r"task\.metric: f1 is of entities"):
        Encoder(base, kinds)
    with pytest.raises(sp.SoftPromptError, match="macro_f1 does not measure tags"):
        sp.Task(template="{words}", labels=LABELS, answer="tags", metric="macro_f1")
    none = sp.SoftPrompt.none(base, 3)
    head = replace(none, head=torch.ones_like(none.head))  # type: ignore[arg-type]
    with pytest.raises(sp.SoftPromptError, match="the prompt's head is for SEQ_CLS, the task for TOKEN_CLS"):
        sp.train(base, head, TASK, train=rows(8))
