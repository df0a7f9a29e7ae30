"""Spans equal PEFT's QUESTION_ANS; windows, runs, and data that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    LlamaForQuestionAnswering,
)

import softprompt as sp
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.answers.span import Span
from softprompt.tasks.encode import Encoder
from softprompt.tasks.metrics import span_metrics
from softprompt.tasks.rows import load_rows
from tests.conftest import make_base
from tests.models.encoders import ENCODERS, base_of, whole

TASK = sp.Task(template="{question} {context}", target="{answer}", answer="span")
# Each text with the first and the last token of its span.
TEXTS = [([0, 5, 6, 7, 8, 0], (2, 4)), ([0, 9, 10, 0], (1, 1)), ([0, 11, 12, 13, 14, 15, 16, 0], (5, 6))]


def pair(family: str) -> tuple[Any, sp.Base]:
    """Transformers' class for questions, and the base that has the same weights."""
    torch.manual_seed(0)
    if family == "llama":
        base = make_base()
        questions: Any = LlamaForQuestionAnswering(base.model.config).eval()
        questions.base_model.load_state_dict(base.model.base_model.state_dict())
        return questions, base
    questions = whole(family, AutoModelForQuestionAnswering, 2)
    sequences: Any = whole(family, AutoModelForSequenceClassification)
    names = {key for key in sequences.state_dict() if not key.startswith("classifier.")}
    sequences.load_state_dict({k: v for k, v in questions.state_dict().items() if k in names}, strict=False)
    return questions, base_of(sequences, family)


def prompt_of(base: sp.Base, length: int = 4) -> sp.SoftPrompt:
    start = sp.SoftPrompt.from_vocabulary(base, length).with_head(base, 2, "QUESTION_ANS")
    return replace(start, head=torch.randn(2, base.hidden_size + 1, generator=torch.Generator().manual_seed(2)))


def padded(side: str) -> dict[str, torch.Tensor]:
    width = max(len(text) for text, _ in TEXTS)
    ids, mask, labels = (torch.full((len(TEXTS), width), fill) for fill in (1, 0, -100))
    for row, (text, (first, last)) in enumerate(TEXTS):
        start = 0 if side == "right" else width - len(text)
        ids[row, start : start + len(text)] = torch.tensor(text)
        mask[row, start : start + len(text)] = 1
        labels[row, start + first] = last - first
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_tokens", [None, 7])
@pytest.mark.parametrize("family", [*ENCODERS, "llama"])
def test_scores_loss_and_gradient_are_pefts(family: str, max_tokens: int | None, side: str, tmp_path: Path) -> None:
    model, base = pair(family)
    prompt = prompt_of(base)
    prompt.save(tmp_path / "ours")
    peft: Any = PeftModel.from_pretrained(model, str(tmp_path / "ours")).eval()
    peft.prompt_encoder["default"].embedding.weight.requires_grad_()
    ours = PromptedModel(base, [prompt], max_tokens=max_tokens)
    output = ours(**padded(side))
    output.loss.backward()
    losses = []
    for text, (first, last) in TEXTS:
        found = peft(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)))
        # PEFT scores virtual tokens too: they are no choices.
        of_text = torch.cat([found.start_logits[:, 4:], found.end_logits[:, 4:]])
        losses.append(cross_entropy(of_text, torch.tensor([first, last])))
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.row_loss, torch.stack(losses).detach(), rtol=1e-4, atol=1e-5)
    grad = peft.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(ours.prompts[0].grad, grad, rtol=1e-3, atol=1e-5)
    again = sp.SoftPrompt.load(tmp_path / "ours", base)
    assert again.task_type == "QUESTION_ANS"
    assert torch.equal(again.head, prompt.head)  # type: ignore[arg-type]


def test_we_load_pefts(tmp_path: Path) -> None:
    model, base = pair("bert")
    prompt_of(base).save(tmp_path / "ours")
    peft: Any = PeftModel.from_pretrained(model, str(tmp_path / "ours"))
    peft.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)  # or it asks the hub
    loaded = sp.SoftPrompt.load(tmp_path / "theirs", base)
    assert (loaded.task_type, loaded.card.head_module) == ("QUESTION_ANS", "qa_outputs")
    assert torch.equal(loaded.head, prompt_of(base).head)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["none", "two", "beyond"])
def test_what_is_no_span_is_refused(wrong: str) -> None:
    base = pair("bert")[1]
    batch = padded("right")
    batch["labels"][1] = -100
    if wrong == "two":
        batch["labels"][1, 1:3] = 0
    if wrong == "beyond":
        batch["labels"][1, 1] = 4
    with pytest.raises(sp.SoftPromptError, match="each text has one label"):
        PromptedModel(base, [prompt_of(base)])(**batch)


def rows(count: int, start: int = 0, words: int = 3) -> list[dict[str, str]]:
    """Contexts in which the answer is the number."""
    found = []
    for i in range(start, start + count):
        before, after = " ".join(["ab"] * (i % words)), " ".join(["cd"] * words)
        found.append({"question": "n?", "context": f"{before} {100 + i} {after}".strip(), "answer": str(100 + i)})
    return found


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_run(family: str, tmp_path: Path) -> None:
    base = pair(family)[1]
    recipe = sp.Recipe(max_steps=40, batch_size=8, evaluate_every=20, warmup_steps=0, head_learning_rate=0.05)
    start = sp.SoftPrompt.from_vocabulary(base, 3)
    run = sp.train(base, start, TASK, train=rows(60), validation=rows(20, 60), recipe=recipe, output=tmp_path / "run")
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    prompt = sp.SoftPrompt.load(tmp_path / "run/prompt", base)
    asked = sp.Task.from_dict(prompt.card.task)
    assert run.validation is not None
    measured = sp.evaluate(base, prompt, asked, rows(20, 60))
    assert (measured.exact_match, measured.token_f1) == (run.validation.exact_match, run.validation.token_f1)
    inputs = [{key: row[key] for key in ("question", "context")} for row in rows(20, 60)]
    said = [one.output or "" for one in sp.predict(base, prompt, asked, inputs)]
    assert span_metrics(said, [row["answer"] for row in rows(20, 60)])["token_f1"] == measured.token_f1
    assert all(text in row["context"] for text, row in zip(said, rows(20, 60), strict=True))


def test_long_contexts_are_read_in_windows() -> None:
    base = pair("bert")[1]
    context = "ab " * 80 + "777 " + "cd " * 20
    (row,) = load_rows([{"question": "n?", "context": context, "answer": "777"}], TASK)
    encoder = Encoder(base, TASK, virtual_tokens=4)
    assert encoder.max_tokens == 124
    learned = encoder.encode_rows([row])
    assert not any(learned.cut)
    example = learned.example(0)
    place = next(i for i, label in enumerate(example["labels"]) if label != -100)
    ids = example["ids"][place : place + example["labels"][place] + 1]
    assert base.tokenizer.decode(ids).strip() == "777"
    every = encoder.encode_rows([row], whole=True)
    assert not any(every.cut)
    assert every.owners == [0] * len(every.rows)
    windows = [one.columns["context"] for one in every.rows]
    assert windows[0].startswith("ab ab")
    assert windows[-1].endswith("cd cd")
    assert all(len(ids) <= 124 for ids in every.input_ids)
    # Each word is whole in some window.
    assert any("ab 777 cd" in window for window in windows)

    class Scores:
        places, rows, owners = every.places, every.rows, every.owners

        def read_head(self) -> torch.Tensor:
            """High where the number's tokens are."""
            found = []
            for text, places, window in zip(every.input_ids, every.places or (), windows, strict=True):
                seven = base.tokenizer("7")["input_ids"][0]
                marks = torch.tensor([float(text[place] == seven and "777" in window) for place in places])
                first = marks - torch.cat([torch.zeros(1), marks[:-1]])
                last = marks - torch.cat([marks[1:], torch.zeros(1)])
                found.append(torch.stack([first, last], 1))
            return torch.cat(found)

    assert isinstance(encoder.answer, Span)
    assert encoder.answer.read(Scores()) == ["777"]  # type: ignore[arg-type]


def test_unusable_rows_and_tasks() -> None:
    base = pair("bert")[1]
    prompt = sp.SoftPrompt.from_vocabulary(base, 3)
    wrong = [{"question": "n?", "context": "ab cd", "answer": "xy"}]
    with pytest.raises(sp.SoftPromptError, match=r"row 1: the answer 'xy' is not in the context 'ab cd'"):
        sp.train(base, prompt, TASK, train=wrong)
    with pytest.raises(sp.SoftPromptError, match=r"task\.template: for spans it ends with the context's column"):
        Encoder(base, TASK.model_copy(update={"template": "{question} {context}:"}))
    with pytest.raises(sp.SoftPromptError, match="accuracy does not measure span"):
        sp.Task(template="{q} {c}", target="{a}", answer="span", metric="accuracy")


def test_span_metrics() -> None:
    found = span_metrics(["The Cat.", "a dog ran", "x"], ["cat", "dog", "y"])
    assert found == {"n": 3, "exact_match": pytest.approx(1 / 3), "token_f1": pytest.approx((1 + 2 / 3) / 3)}
    with pytest.raises(sp.SoftPromptError, match="no rows"):
        span_metrics([], [])
