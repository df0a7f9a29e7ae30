"""The plain concatenation, written apart from `softprompt`: what every route, kernel and batch has to equal.

Each row is `[its prompt | its text]`, padded at the right; the base model's own forward computes it, the labels are
shifted by one, and the loss is the mean over the label tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel


@dataclass
class Reference:
    """Loss, sum of the losses of each row, gradient of each prompt, and the logits `[A, V]` at the labels."""

    loss: Tensor
    row_loss: Tensor
    grads: list[Tensor]
    logits: Tensor


def reference(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    prompt_index: Tensor,
) -> Reference:
    """A training step on `[prompt | text]`; `prompts` may be empty tensors `[0, H]`."""
    prompts = [p.detach().clone().requires_grad_() for p in prompts]
    vectors, targets, masks = [], [], []
    for ids, present, wanted, k in zip(input_ids, attention_mask.bool(), labels, prompt_index.tolist(), strict=True):
        text = model.get_input_embeddings()(ids[present])
        vectors.append(torch.cat([prompts[k].to(text.dtype), text]))
        targets.append(torch.cat([torch.full((len(prompts[k]),), -100), wanted[present]]))
        masks.append(torch.ones(len(vectors[-1]), dtype=torch.long))
    batch = pad_sequence(vectors, batch_first=True)
    mask = pad_sequence(masks, batch_first=True)
    logits = model(inputs_embeds=batch, attention_mask=mask, use_cache=False).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = pad_sequence(targets, batch_first=True, padding_value=-100)[:, 1:]
    losses = functional.cross_entropy(logits.transpose(1, 2), shifted, reduction="none")
    loss = losses.sum() / (shifted != -100).sum()
    grads = [torch.zeros_like(p) for p in prompts]
    if loss.requires_grad:
        found = torch.autograd.grad(loss, prompts, allow_unused=True)
        grads = [g if new is None else new for g, new in zip(grads, found, strict=True)]
    return Reference(loss.detach(), losses.sum(1).detach(), grads, logits[shifted != -100].detach())


@contextmanager
def keep_float64() -> Iterator[None]:
    """Leave float64 numbers as they are where a model casts them down to float32 in its norms and softmax.

    Families with a root mean square norm round to float32 inside, so that two right answers differ by 1e-7 even in
    float64. Without the rounding the equality shows to 1e-9 that the algorithm is the same.
    """
    to, as_float, softmax = Tensor.to, Tensor.float, functional.softmax

    def held_to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor if tensor.dtype == torch.float64 and args == (torch.float32,) else to(tensor, *args, **kwargs)

    def held_float(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else as_float(tensor)

    def held_softmax(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if tensor.dtype == torch.float64:
            kwargs.pop("dtype", None)
        return softmax(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "to", held_to)
        patch.setattr(Tensor, "float", held_float)
        patch.setattr(functional, "softmax", held_softmax)
        yield
