"""Causal language models: the prompt stands before the text in one sequence, in which a token sees its own past.

Three routes (`models/routes.py`) give the same; the prompt is computed once where a probe shows that it may be.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        prompts, batch = probe(model)
        texts = batch.tokens.split(list(batch.lengths))
        text, last, none = texts[0], texts[-1], len(prompts)
        prompts.append(prompts[0][:0])
        bare = Batch(text, [len(text)], [none], torch.zeros_like(text), torch.arange(len(text)))
        behind = Batch(last, [len(last)], [batch.prompt_of_text[-1]], torch.zeros_like(last), torch.arange(len(last)))
        # Both are padded beside the rows between them: padding that is seen would show.
        together = Batch(
            torch.cat([text, batch.tokens]),
            [len(text), *batch.lengths],
            [none, *batch.prompt_of_text],
            torch.cat([bare.rows, behind.rows + len(texts)]),
            torch.cat([bare.columns, behind.columns]),
        )
        embedding, words = model.get_input_embeddings(), text.to(model.device)
        with torch.no_grad():
            own = model(input_ids=words[None], use_cache=False).logits[0]
            check_finite(model, own)
            ours = self.logits(model, concatenated(model, prompts, together)).split([len(text), len(last)])
        self._check_row(model, ours[0], own, prompts, bare)
        if not Decoder.of(model).per_layer:  # with them, a model's own forward knows no vector that is not a word
            prompt = prompts[batch.prompt_of_text[-1]]
            with torch.no_grad():
                vectors = embedding(last.to(model.device))
                whole = torch.cat([prompt.to(vectors.dtype), vectors])
                own = model(inputs_embeds=whole[None], use_cache=False).logits[0, len(prompt) :]
            self._check_row(model, ours[1], own, prompts, behind)
        if self._looks_ahead(model, embedding(words).detach(), words):
            raise SoftPromptError(
                f"{type(model).__name__} lets a token see what comes after it: it is not a causal language model"
            )

    def _check_row(
        self, model: PreTrainedModel, ours: Tensor, own: Tensor, prompts: Sequence[Tensor], row: Batch
    ) -> None:
        """Make sure that a row, computed beside others, has the model's own logits; else find out why it has not."""
        if logit_distance(ours, own) <= tolerance(model):
            return
        name = type(model).__name__
        with torch.no_grad():
            alone = self.logits(model, concatenated(model, prompts, row))
            if logit_distance(alone, own) <= tolerance(model):
                raise SoftPromptError(f"{name} computes a row otherwise beside a longer one: it is not supported")
            if Decoder.of(model).per_layer:
                same = False
            elif len(prompts[row.prompt_of_text[0]]):
                same = True
            else:
                words = model.get_input_embeddings()(row.tokens.to(model.device))
                from_words = model(inputs_embeds=words[None], use_cache=False).logits[0]
                same = logit_distance(from_words, own) <= tolerance(model)
        if same:
            raise SoftPromptError(f"{name} changes its logits in a way that softprompt does not know")
        raise SoftPromptError(f"{name} computes something else from embeddings than from token ids: it needs the ids")

    def _looks_ahead(self, model: PreTrainedModel, words: Tensor, tokens: Tensor) -> bool:
        """Whether the middle token's logits have a gradient at the tokens after it."""
        middle = len(words) // 2
        vectors = words.clone().requires_grad_()
        with torch.enable_grad():
            hidden = Decoder.of(model)(vectors[None] * 1, tokens[None])  # CTRL scales what it is given in place
            (grad,) = torch.autograd.grad(self.logits(model, hidden[0, middle]).logsumexp(-1), vectors)
        size = grad.float().norm(dim=-1)
        return bool((size[middle + 1 :] > 1e-6 * size.max()).any())
