"""Encoders (BERT, RoBERTa, ModernBERT, DeBERTa): the prompt stands before the text, and every token sees all others.

So a prompt's states are a text's own and cannot be shared. What is read is as in Transformers' classes for sequences,
tokens and questions, each without its last layer, and as PEFT has them behind a prompt: positions count from the
prompt's first token on, and the pooled state is that of the first place, which with a prompt is a virtual token's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from softprompt.bases.classifier import classifier_of
from softprompt.errors import SoftPromptError
from softprompt.models.family import Batch, Family, side_by_side
from softprompt.models.probe import check_finite, logit_distance, probe, tolerance
from softprompt.models.transfer import to_device


class Encoder(Family):
    """See the module."""

    routes = ("encoder",)
    ways = ()
    looks_ahead = True

    def hidden(self, route: str, model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
        if batch.tree is not None:
            raise ValueError("a tree of continuations needs the packed route")
        before = torch.tensor([len(prompts[k]) for k in batch.prompt_of_text])
        given = [batch.tokens, batch.rows, before[batch.rows] + batch.columns]
        tokens, asked, places = to_device(given, model.device)
        words = model.get_input_embeddings()(tokens).split(list(batch.lengths))
        of_text = zip(words, batch.prompt_of_text, strict=True)
        rows = [torch.cat([prompts[k].to(text.dtype), text]) for text, k in of_text]
        vectors, seen = side_by_side(rows)
        if batch.read == "pooled" and batch.pooling:
            hidden = model.base_model(inputs_embeds=vectors, attention_mask=seen).last_hidden_state
            poolings = [batch.pooling[k] for k in batch.prompt_of_text]
            states = [_pool(model, one[None], layer) for one, layer in zip(hidden, poolings, strict=True)]
            return torch.cat(states)[asked]
        if batch.read == "pooled":
            whole: Any = model
            pooled: Tensor = whole(inputs_embeds=vectors, attention_mask=seen).logits
            return pooled[asked]
        hidden = model.base_model(inputs_embeds=vectors, attention_mask=seen).last_hidden_state
        found: Tensor = hidden[asked, places]
        between: Any = getattr(model, "head", None) if batch.read == "class" else None  # ModernBERT
        return found if between is None else between(found)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        raise SoftPromptError(f"{type(model).__name__} is an encoder: it neither scores words nor generates")

    def check(self, model: PreTrainedModel) -> None:
        name = type(model).__name__
        outer, _, last = classifier_of(model).rpartition(".")
        if not isinstance(getattr(model.get_submodule(outer), last), nn.Identity):
            raise SoftPromptError(f"{name} still has its classifier: load the encoder with load_base")
        embedding: Any = model.get_input_embeddings()
        width, states = embedding.weight.shape[1], model.config.get_text_config().hidden_size
        if width != states:
            raise SoftPromptError(f"{name} has words {width} wide and states {states} wide: it is not supported")
        prompts, batch = probe(model)
        texts = batch.tokens.split(list(batch.lengths))
        columns = batch.columns.clamp(min=0)
        asked = Batch(batch.tokens, batch.lengths, batch.prompt_of_text, batch.rows, columns)
        none = [prompt[:0] for prompt in prompts]
        with torch.no_grad():
            whole: Any = model
            own = torch.cat([whole(input_ids=text[None]).logits for text in texts])
            check_finite(model, own)
            rows = torch.arange(len(texts), device=own.device)
            pooled = Batch(batch.tokens, batch.lengths, batch.prompt_of_text, rows, rows * 0, read="pooled")
            if logit_distance(self.hidden("encoder", model, none, pooled), own) > tolerance(model):
                raise SoftPromptError(f"{name} computes something else from embeddings than from token ids")
            together = self.hidden("encoder", model, prompts, asked)
            alone = torch.cat(
                [
                    self.hidden("encoder", model, [prompts[k]], Batch(text, [len(text)], [0], at * 0, at))
                    for row, (text, k) in enumerate(zip(texts, batch.prompt_of_text, strict=True))
                    for at in [columns[batch.rows == row]]
                ]
            )
        if logit_distance(together, alone) > tolerance(model):
            raise SoftPromptError(f"{name} computes a row otherwise beside a longer one: it is not supported")


def _pool(model: Any, hidden: Tensor, layer: Tensor) -> Tensor:
    """What a classifier's last layer would read of states `[1, N, H]`, with a prompt's own layer before it."""
    layer = layer.to(hidden)
    found: Tensor = functional_call(
        model.classifier, {"dense.weight": layer[:, :-1], "dense.bias": layer[:, -1]}, (hidden,)
    )
    return found
