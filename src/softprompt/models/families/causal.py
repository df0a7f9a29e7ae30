"""Causal language models: the prompt stands before the text in one sequence, in which a token sees its own past.

Three routes (`models/routes.py`) give the same; the prompt is computed once where a probe shows that it may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.bases.decoder import Decoder
from softprompt.errors import SoftPromptError
from softprompt.models.family import Batch, Family, wide
from softprompt.models.probe import check_finite, logit_distance, probe, tolerance
from softprompt.models.routes import concatenated, packed, shared_prefix

# Gemma's, RecurrentGemma's and xLSTM's names for one thing.
_LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FUNCTIONS = {"packed": packed, "shared_prefix": shared_prefix, "concatenated": concatenated}


class Causal(Family):
    """See the module."""

    routes = ("packed", "shared_prefix", "concatenated")
    ways = ("cached", "one_by_one", "plain")

    def hidden(self, route: str, model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
        return _FUNCTIONS[route](model, prompts, batch)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        config = model.config.get_text_config()
        scores = wide(model.get_output_embeddings()(hidden)).to(hidden.device)
        if (scale := getattr(config, "logit_scale", None)) is not None:
            scores = scores * scale
        if (scaling := getattr(config, "logits_scaling", None)) is not None:
            scores = scores / scaling
        for name in _LOGIT_CAPS:
            if (cap := getattr(config, name, None)) is not None:
                scores = torch.tanh(scores / cap) * cap
        return scores

    def check(self, model: PreTrainedModel) -> None:
        name, logits = type(model).__name__, self.logits
        prompts, batch = probe(model)
        decoder = Decoder.of(model)
        prompt, text = prompts[0], batch.tokens[: batch.lengths[0]]
        bare = Batch(text, [len(text)], [0], torch.zeros_like(text), torch.arange(len(text)))
        text = text.to(model.device)
        words = model.get_input_embeddings()(text)
        with torch.no_grad():
            own = model(input_ids=text[None], use_cache=False).logits[0]
            ours = logits(model, concatenated(model, [prompt[:0]], bare))
        check_finite(model, own)
        if logit_distance(ours, own) > tolerance(model):
            from_embeddings = None
            if not decoder.per_layer:
                with torch.no_grad():
                    from_embeddings = model(inputs_embeds=words[None], use_cache=False).logits[0]
            if from_embeddings is not None and logit_distance(from_embeddings, own) <= tolerance(model):
                raise SoftPromptError(f"{name} changes its logits in a way that softprompt does not know")
            raise SoftPromptError(
                f"{name} computes something else from embeddings than from token ids: it needs the ids"
            )
        if not decoder.per_layer:  # with them, a model's own forward knows no vector that is not a word
            whole = torch.cat([prompt.to(words.dtype), words])[None]
            with torch.no_grad():
                own = model(inputs_embeds=whole, use_cache=False).logits[0, len(prompt) :]
                ours = logits(model, concatenated(model, [prompt], bare))
            if logit_distance(ours, own) > tolerance(model):
                raise SoftPromptError(f"{name} changes its logits in a way that softprompt does not know")
        with torch.no_grad():
            together = logits(model, concatenated(model, prompts, batch))
            alone = torch.cat([logits(model, concatenated(model, prompts, one)) for one in _one_by_one(batch)])
        if logit_distance(together, alone) > tolerance(model):
            raise SoftPromptError(f"{name} computes a row otherwise beside a longer one: it is not supported")
        if self._looks_ahead(model, words.detach(), text):
            raise SoftPromptError(f"{name} lets a token see what comes after it: it is not a causal language model")

    def _looks_ahead(self, model: PreTrainedModel, words: Tensor, tokens: Tensor) -> bool:
        """Whether the middle token's logits have a gradient at the tokens after it."""
        middle = len(words) // 2
        vectors = words.clone().requires_grad_()
        with torch.enable_grad():
            hidden = Decoder.of(model)(vectors[None] * 1, tokens[None])  # CTRL scales what it is given in place
            (grad,) = torch.autograd.grad(self.logits(model, hidden[0, middle]).logsumexp(-1), vectors)
        size = grad.float().norm(dim=-1)
        return bool((size[middle + 1 :] > 1e-6 * size.max()).any())


def _one_by_one(batch: Batch) -> Iterator[Batch]:
    """Each text as a batch of its own."""
    for row, text in enumerate(batch.tokens.split(list(batch.lengths))):
        columns = batch.columns[batch.rows == row]
        yield Batch(text, [len(text)], [batch.prompt_of_text[row]], torch.zeros_like(columns), columns)
