from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from softprompt import (
    Base,
    Evaluation,
    Row,
    SoftPrompt,
    SoftPromptError,
    Task,
    WrongBaseError,
    evaluate,
    predict,
)
from softprompt.tasks import Encoder
from tests.conftest import make_base

LABELS = ["yes", "yellow", "no", "a longer label"]
TASK = Task(template="Is it {text}?\n", labels=LABELS)
TEXT_TASK = Task(template="{text}:", target=" {answer}", max_new_tokens=5)
TEXTS = ["warm", "a", "rather far from here", "late"]


def plain_probabilities(base: Base, prompt: SoftPrompt | None, text: str) -> torch.Tensor:
    """Each label on its own behind prompt and text, by the base's own forward."""
    encoder = Encoder(base, TASK)
    assert encoder.answer.label_ids is not None
    ids = encoder.encode_text({"text": text})
    scores = []
    for label in encoder.answer.label_ids:
        words = base.embed(torch.tensor(ids + label))
        whole = words if prompt is None else torch.cat([prompt.embeddings, words])
        logits = base.model(inputs_embeds=whole[None]).logits[0].log_softmax(-1)
        start = len(whole) - len(label)
        scores.append(sum(logits[start + i - 1, token] for i, token in enumerate(label)))
    return torch.stack([torch.as_tensor(score) for score in scores]).double().softmax(-1)


@pytest.mark.parametrize("virtual", [0, 5])
def test_probabilities_are_the_labels_likelihoods(tiny_base: Base, virtual: int) -> None:
    prompt = SoftPrompt.random(tiny_base, virtual) if virtual else None
    for text, prediction in zip(TEXTS, predict(tiny_base, prompt, TASK, TEXTS), strict=True):
        assert prediction.probabilities is not None
        given = torch.tensor([prediction.probabilities[label] for label in LABELS], dtype=torch.double)
        expected = plain_probabilities(tiny_base, prompt, text)
        assert torch.allclose(given, expected, rtol=1e-4, atol=1e-7)
        assert abs(float(given.sum()) - 1) < 1e-9
        assert prediction.label == LABELS[int(expected.argmax())]


def test_figures_are_those_of_the_predictions(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 4)
    rows = [Row({"text": text * n}, (i + n) % 4, number=i) for i, text in enumerate(TEXTS) for n in (1, 2, 3)]
    evaluation = evaluate(tiny_base, prompt, TASK, rows)
    predicted = predict(tiny_base, prompt, TASK, [row.columns for row in rows])
    right = [p.label == LABELS[row.label] for p, row in zip(predicted, rows, strict=True) if row.label is not None]
    assert evaluation.n == 12
    assert evaluation.accuracy == sum(right) / 12
    assert evaluation.confusion is not None
    assert sum(map(sum, evaluation.confusion)) == 12
    assert "exact_match" not in evaluation.to_json()


def test_the_best_of_equal_labels_is_the_first(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Evaluation.__module__], "score", lambda *a, **k: torch.zeros(1, 4))
    assert predict(tiny_base, None, TASK, ["x"])[0].label == "yes"


def greedy(base: Base, prompt: SoftPrompt, text: str, count: int) -> str:
    """The likeliest token again and again, each time by a whole forward pass."""
    ids = Encoder(base, TEXT_TASK).encode_text({"text": text})
    new: list[int] = []
    while len(new) < count:
        whole = torch.cat([prompt.embeddings, base.embed(torch.tensor(ids + new))])
        token = int(base.model(inputs_embeds=whole[None]).logits[0, -1].argmax())
        if token == base.tokenizer.eos_token_id:
            break
        new.append(token)
    return str(base.tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_generation_in_a_batch_is_greedy_generation_one_by_one(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 4)
    outputs = [prediction.output for prediction in predict(tiny_base, prompt, TEXT_TASK, TEXTS)]
    assert outputs == [greedy(tiny_base, prompt, text, 5) for text in TEXTS]


def test_free_text_is_measured_against_its_reference(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 4)
    answers = [greedy(tiny_base, prompt, text, 5) for text in TEXTS]
    rows = [Row({"text": t}, target=" " + a) for t, a in zip(TEXTS, answers, strict=True)]
    rows[0] = Row({"text": TEXTS[0]}, target=" something else")
    evaluation = evaluate(tiny_base, prompt, TEXT_TASK, rows)
    assert evaluation.exact_match == 0.75
    assert evaluation.accuracy is None


def test_texts_beyond_the_context_are_cut_and_counted(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 4)
    rows = [Row({"text": "x" * 100_000}, 1), Row({"text": "short"}, 0)]
    assert evaluate(tiny_base, prompt, TASK, rows).truncated == 1


def test_data_can_be_a_file(tiny_base: Base, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\nwarm,yes\nlate,no\n")
    evaluation: Evaluation = evaluate(tiny_base, None, TASK, tmp_path / "test.csv")
    assert evaluation.n == 2


def test_progress_counts_every_row(tiny_base: Base) -> None:
    done: list[int] = []
    predict(tiny_base, None, TASK, TEXTS, progress=done.append)
    assert sum(done) == len(TEXTS)


def test_unusable_input_is_refused(tiny_base: Base) -> None:
    prompt = SoftPrompt.random(tiny_base, 4)
    with pytest.raises(WrongBaseError):
        predict(make_base(seed=1), prompt, TASK, ["x"])
    with pytest.raises(SoftPromptError, match="row 2"):
        predict(tiny_base, prompt, TASK, ["x", " "])
    assert predict(tiny_base, prompt, TASK, []) == []
