"""LoRA and full fine-tuning of encoder-decoders and encoders: their losses are Transformers' own; and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import softprompt as sp
from softprompt.comparison.methods.fine_tuning import _Asked, _asked, pad_rows
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import load_rows
from tests.comparison.test_compare import base_folder, jobs, project, run, table
from tests.models.encoders import base_of, whole
from tests.models.test_seq2seq import make as make_seq2seq

__all__ = ["base_folder", "jobs", "project"]  # fixtures

TASK = sp.Task(template="{text}:", labels=["negative", "positive"])


def batch_of(base: sp.Base, task: sp.Task, folder: Path) -> tuple[dict[str, torch.Tensor], list[sp.Row], Any]:
    (folder / "rows.csv").write_text(table(5))
    rows = load_rows(folder / "rows.csv", task)
    encoded = Encoder(base, task).encode_rows(rows)
    return pad_rows([encoded.example(row) for row in range(len(rows))]), rows, encoded


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_s_loss_is_transformers_own(family: str, tmp_path: Path) -> None:
    """The target is the decoder's: the encoder never sees it."""
    base, task = make_seq2seq(family), TASK.answered_by("words")
    asked = _asked(base, task)
    base.model.requires_grad_(True)
    batch, _, encoded = batch_of(base, task, tmp_path)
    loss = _Asked(base.model, asked)(**batch)["loss"]
    ours = torch.autograd.grad(loss, base.model.get_input_embeddings().weight)[0]
    texts = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in encoded.input_ids], True)
    seen = nn.utils.rnn.pad_sequence([torch.ones(len(ids)) for ids in encoded.input_ids], True)
    targets = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in encoded.target_ids], True, -100)
    own = base.model(input_ids=texts, attention_mask=seen.long(), labels=targets).loss
    theirs = torch.autograd.grad(own, base.model.get_input_embeddings().weight)[0]
    torch.testing.assert_close(loss, own)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_an_encoder_s_loss_is_transformers_own(family: str, tmp_path: Path) -> None:
    classifier: Any = whole(family, AutoModelForSequenceClassification, labels=2)
    base, task = base_of(classifier, family), TASK.answered_by("head")
    asked = _asked(base, task)
    base.model.requires_grad_(True)
    with torch.no_grad():
        asked.heads[0].copy_(torch.cat([classifier.classifier.weight, classifier.classifier.bias[:, None]], 1))
    batch, rows, _ = batch_of(base, task, tmp_path)
    loss = _Asked(base.model, asked)(**batch)["loss"]
    labels = torch.tensor([row.label for row in rows])
    own = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    torch.testing.assert_close(loss, own)
    words = classifier.get_input_embeddings().weight.requires_grad_(True)
    ours = torch.autograd.grad(loss, base.model.get_input_embeddings().weight)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(own, words)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_the_methods_are_compared(family: str, project: Path) -> None:
    base = make_seq2seq("t5") if family == "t5" else base_of(whole("bert", AutoModelForSequenceClassification))
    base.model.save_pretrained(project / "base")
    base.tokenizer.save_pretrained(project / "base")
    found = run(project, overrides=[f"base={project / 'base'}"])
    status = {row.method.name: row.status for row in found.rows}
    learned = ("probe", "prompt", "lora", "full")
    assert all(status[name] == "done" for name in learned), found.rows
    if family == "t5":
        assert status["zero-shot"] == status["few-shot"] == "done"
        return
    for row in found.rows:
        if row.method.name in ("zero-shot", "few-shot"):
            assert (row.status, "says no words" in str(row)) == ("failed", True)
