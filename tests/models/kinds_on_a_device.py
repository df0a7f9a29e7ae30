"""Every kind of base and answer on the pretended accelerator of `pretend.py`: the numbers are the same.

python -m tests.models.kinds_on_a_device
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from softprompt import Base, SoftPrompt, Task
from softprompt.evaluation.evaluate import predict
from softprompt.models.families.causal import Causal
from softprompt.models.family import family_of
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import load_rows
from softprompt.training.schedule import flatten
from tests.conftest import make_base
from tests.models.encoders import base_of, whole
from tests.models.pretend import Device, Pretended, put, start
from tests.models.test_seq2seq import make as make_seq2seq

WORDS = Task(template="{text}:", labels=["yes", "no"], answer="words")
ROWS: dict[str, tuple[Task, list[dict[str, Any]]]] = {
    "words": (WORDS, [{"text": "one two", "label": "yes"}, {"text": "three", "label": "no"}]),
    "text": (
        Task(template="{text}:", target=" {answer}", max_new_tokens=3),
        [{"text": "one two", "answer": "ab"}, {"text": "three", "answer": "c"}],
    ),
    "head": (
        Task(template="{text}:", labels=["yes", "no"], answer="head"),
        [{"text": "one two", "label": "yes"}, {"text": "three", "label": "no"}],
    ),
    "tags": (
        Task(template="{words}", labels=["O", "B-PER"], answer="tags"),
        [{"words": ["ann", "is"], "label": ["B-PER", "O"]}, {"words": ["so"], "label": ["O"]}],
    ),
    "span": (
        Task(template="{question} {context}", target="{answer}", answer="span"),
        [
            {"question": "who?", "context": "it was ann b", "answer": "ann"},
            {"question": "when?", "context": "in May it was", "answer": "May"},
        ],
    ),
    "embedding": (
        Task(template="{question}", target="{context}", answer="embedding"),
        [{"question": "who?", "context": "ann"}, {"question": "when?", "context": "in May"}],
    ),
}
TYPES = {"head": "SEQ_CLS", "tags": "TOKEN_CLS", "span": "QUESTION_ANS"}
BASES: dict[str, Callable[[], Base]] = {
    "llama": make_base,
    "t5": partial(make_seq2seq, "t5"),
    "bart": partial(make_seq2seq, "bart"),
    **{
        family: lambda family=family: base_of(whole(family, AutoModelForSequenceClassification))  # type: ignore[misc]
        for family in ("bert", "roberta", "modernbert", "deberta")
    },
}
CAN = {"t5": ("words", "text", "head"), "bart": ("words", "text", "head"), "llama": tuple(ROWS)}


def check() -> None:
    for name, make in BASES.items():
        for kind in CAN.get(name, ("head", "tags", "span", "embedding")):
            print(f"{name}, {kind}")
            base = make()
            expected = numbers(base, kind)
            put(base.model)
            found = numbers(base, kind)
            for ours, theirs in zip(found, expected, strict=True):
                inner = ours.inner if isinstance(ours, Pretended) else ours
                torch.testing.assert_close(inner, theirs, rtol=1e-4, atol=1e-5)


def numbers(base: Base, kind: str) -> list[Tensor]:
    """The loss of a step and its gradients, then the answers."""
    task, table = ROWS[kind]
    prompt = SoftPrompt.random(base, 4, seed=1)
    if kind in TYPES:
        prompt = prompt.with_head(base, 2, TYPES[kind])
        assert prompt.head is not None
        nn.init.normal_(prompt.head, generator=torch.Generator().manual_seed(2))
    rows = load_rows(table, task)
    encoded = Encoder(base, task, virtual_tokens=4).encode_rows(rows)
    flat = flatten([encoded.example(row) | {"prompt": 0} for row in range(len(rows))])
    model = PromptedModel(base, [prompt])
    # Transformers' own mask of an encoder asks for its numbers.
    with Device.watched(isinstance(family_of(base.model), Causal)):
        output = model(flat["input_ids"], labels=flat["labels"], lengths=flat["lengths"])
        output.loss.backward()
    answers = predict(base, prompt, task, rows)
    figures = [[*one.probabilities.values()] if one.probabilities else one.embedding or [] for one in answers]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [output.loss.detach(), *gradients, torch.tensor(figures)]


if __name__ == "__main__":
    with start():
        check()
