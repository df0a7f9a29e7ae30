"""Answers read by a head: loss, gradient and scores equal those of the plain concatenation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from softprompt import Base, SoftPrompt, SoftPromptError
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import final_states
from softprompt.prompts.card import Card
from tests.conftest import make_base
from tests.models.families import make_model

LABELS = 5


def prompt_of(base: Base, length: int, seed: int = 0) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(length, base.hidden_size, generator=generator)
    return SoftPrompt(embeddings, head=torch.randn(LABELS, base.hidden_size, generator=generator))


def texts_of(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(2, 60, (length,), generator=generator).tolist() for length in lengths]


def padded(texts: list[list[int]], classes: list[int], side: str) -> dict[str, Tensor]:
    width = max(map(len, texts))
    ids, mask, labels = (torch.full((len(texts), width), fill) for fill in (0, 0, -100))
    for row, (text, label) in enumerate(zip(texts, classes, strict=True)):
        start = 0 if side == "right" else width - len(text)
        ids[row, start : start + len(text)] = torch.tensor(text)
        mask[row, start : start + len(text)] = 1
        labels[row, start + len(text) - 1] = label
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def plain_scores(base: Base, prompt: SoftPrompt, text: list[int], embeddings: Tensor, head: Tensor) -> Tensor:
    """By the base's own forward, with hidden states put out."""
    row = torch.cat([embeddings, base.embed(torch.tensor(text))])
    hidden = base.model(inputs_embeds=row[None], output_hidden_states=True).hidden_states[-1]
    return hidden[0, -1] @ head.T


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_tokens", [None, 12])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_loss_and_gradient_are_the_concatenations(family: str, max_tokens: int | None, side: str) -> None:
    base = Base(make_model(family), make_base().tokenizer, family)
    prompts = [prompt_of(base, 3, 1), prompt_of(base, 6, 2)]
    texts, classes, index = texts_of(7), [i % LABELS for i in range(7)], [0, 1, 1, 0, 0, 1, 0]
    model = PromptedModel(base, prompts, max_tokens=max_tokens)
    output = model(**padded(texts, classes, side), prompt_index=torch.tensor(index))
    output.loss.backward()
    leaves = [(p.embeddings.clone().requires_grad_(), p.head.clone().requires_grad_()) for p in prompts]  # type: ignore[union-attr]
    scores = [plain_scores(base, prompts[k], text, *leaves[k]) for text, k in zip(texts, index, strict=True)]
    expected = cross_entropy(torch.stack(scores), torch.tensor(classes))
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    for k, (embeddings, head) in enumerate(leaves):
        torch.testing.assert_close(model.prompts[k].grad, embeddings.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(model.heads[k].grad, head.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_states_are_read_at_the_last_token(tiny_base: Base, length: int) -> None:
    prompt, texts = prompt_of(tiny_base, length), texts_of(9)
    model = PromptedModel(tiny_base, [prompt])
    assert prompt.head is not None
    found = final_states(model, texts) @ prompt.head.T
    expected = [plain_scores(tiny_base, prompt, text, prompt.embeddings, prompt.head) for text in texts]
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-4, atol=1e-4)


def test_one_prompt_of_several_is_the_very_tensors(tiny_base: Base) -> None:
    model = PromptedModel(tiny_base, [prompt_of(tiny_base, 3, 1), prompt_of(tiny_base, 4, 2)])
    alone = model.alone(1)
    assert alone.prompts[0] is model.prompts[1]
    assert alone.heads[0] is model.heads[1]


def test_a_label_that_the_head_has_not(tiny_base: Base) -> None:
    model = PromptedModel(tiny_base, [prompt_of(tiny_base, 3)])
    with pytest.raises(SoftPromptError, match="label 5 at row 0, column 1: the head has 5 rows"):
        model(torch.tensor([[3, 4]]), labels=torch.tensor([[-100, LABELS]]))


def test_with_and_without_a_head(tiny_base: Base) -> None:
    with pytest.raises(SoftPromptError, match="some of the prompts have a head"):
        PromptedModel(tiny_base, [prompt_of(tiny_base, 3), SoftPrompt.from_vocabulary(tiny_base, 2)])


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (torch.zeros(3, 7), r"a head \[3, 7\] does not fit embeddings \[2, 32\]"),
        (torch.zeros(1, 32), r"head have shape \[1, 32\]"),
        (torch.full((3, 32), float("nan")), "row of the head 0 holds NaN"),
        (torch.zeros(4, 32), "the head has 4 rows, but its card names 3 labels"),
        (torch.zeros(3, 32, dtype=torch.long), "head hold torch.int64"),
    ],
)
def test_a_head_that_does_not_fit(head: Tensor, line: str) -> None:
    card = Card(task={"template": "{text}", "labels": ["a", "b", "c"]})
    with pytest.raises(SoftPromptError, match=line):
        SoftPrompt(torch.ones(2, 32), card, head)


def test_no_virtual_tokens_need_a_head() -> None:
    with pytest.raises(SoftPromptError, match=r"shape \[0, 32\]"):
        SoftPrompt(torch.ones(0, 32))
