"""A prompt with a head is PEFT's SEQ_CLS folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import GPT2ForSequenceClassification, LlamaForSequenceClassification, PreTrainedModel

import softprompt as sp
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.rows import rows_from
from tests.conftest import make_base
from tests.models.families import make_model

TASK = sp.Task(template="{text}:", labels=["yes", "no", "maybe"], answer="head")
TEXTS = ["one", "two and three", "a much longer text than the others"]


def prompt_of(base: sp.Base, length: int) -> sp.SoftPrompt:
    start = sp.SoftPrompt.from_vocabulary(base, length) if length else sp.SoftPrompt.none(base, 3)
    card = start.card.replace(task=TASK.model_dump(exclude_none=True))
    return sp.SoftPrompt(start.embeddings, card, torch.randn(3, base.hidden_size))


def classifier_of(base: sp.Base, kind: type[PreTrainedModel]) -> PreTrainedModel:
    config = base.model.config.__class__.from_dict(base.model.config.to_dict() | {"num_labels": 3})
    model = kind(config).eval()
    model.base_model.load_state_dict(base.model.base_model.state_dict())
    return model


def scores(base: sp.Base, prompt: sp.SoftPrompt) -> torch.Tensor:
    return Evaluator(PromptedModel(base, [prompt]), TASK, rows_from(TEXTS, TASK)).likelihoods()


def peft_scores(base: sp.Base, model: torch.nn.Module) -> torch.Tensor:
    rows = [base.tokenizer(f"{text}:", return_tensors="pt") for text in TEXTS]
    with torch.no_grad():
        return torch.cat([model(input_ids=row["input_ids"]).logits for row in rows]).log_softmax(-1)


@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize(
    ("family", "kind"), [("llama", LlamaForSequenceClassification), ("gpt2", GPT2ForSequenceClassification)]
)
def test_peft_loads_ours(family: str, kind: type[PreTrainedModel], length: int, tmp_path: Path) -> None:
    base = sp.Base(make_model(family, vocab_size=258), make_base().tokenizer, family)
    prompt = prompt_of(base, length)
    prompt.save(tmp_path / "prompt")
    loaded = PeftModel.from_pretrained(classifier_of(base, kind), str(tmp_path / "prompt"))
    torch.testing.assert_close(peft_scores(base, loaded), scores(base, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", LlamaForSequenceClassification), ("gpt2", GPT2ForSequenceClassification)]
)
def test_we_load_pefts(family: str, kind: type[PreTrainedModel], tmp_path: Path) -> None:
    base = sp.Base(make_model(family, vocab_size=258), make_base().tokenizer, family)
    model = get_peft_model(
        classifier_of(base, kind), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    ).eval()
    model.save_pretrained(str(tmp_path / "peft"))
    prompt = sp.SoftPrompt.load(tmp_path / "peft", base)
    assert prompt.head is not None
    assert (prompt.head.shape, prompt.num_virtual_tokens) == ((3, base.hidden_size), 5)
    torch.testing.assert_close(scores(base, prompt), peft_scores(base, model), rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(tiny_base: sp.Base, tmp_path: Path) -> None:
    prompt = prompt_of(tiny_base, 4)
    loaded = sp.SoftPrompt.load(prompt.save(tmp_path / "prompt"), tiny_base)
    assert loaded.head is not None
    assert torch.equal(loaded.head, prompt.head)  # type: ignore[arg-type]
    assert torch.equal(loaded.embeddings, prompt.embeddings)
    assert loaded.sha256 == prompt.sha256
    other = sp.SoftPrompt(prompt.embeddings, prompt.card, prompt.head + 1)  # type: ignore[operator]
    assert other.sha256 != prompt.sha256


def test_a_head_of_another_width(tiny_base: sp.Base, tmp_path: Path) -> None:
    wide = sp.SoftPrompt(torch.ones(2, 48), head=torch.ones(3, 48))
    wide.save(tmp_path / "wide")
    with pytest.raises(sp.WrongBaseError, match=r"\[2, 48\] and does not fit base"):
        sp.SoftPrompt.load(tmp_path / "wide", tiny_base)
