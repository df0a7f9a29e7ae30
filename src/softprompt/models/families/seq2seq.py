"""Encoder-decoders (T5, mT5, BART): the prompt stands before the encoder's input, the target is the decoder's.

Lester et al. 2021 tune T5 so. An encoder's token sees the whole text, so that the prompt's states are a text's own and
cannot be shared; a text that stands in a batch several times, as with each of its labels, is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from softprompt.errors import SoftPromptError
from softprompt.models.family import Batch, Family, side_by_side, wide
from softprompt.models.probe import check_finite, logit_distance, probe, tolerance
from softprompt.models.transfer import to_device


class Seq2Seq(Family):
    """See the module. A row's text ends with the first place that is asked for; what stands after it is the target."""

    routes = ("encoder_decoder",)
    ways = ("decoder_cached", "decoder_plain")

    def hidden(self, route: str, model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
        if batch.tree is not None:
            raise ValueError("a tree of continuations needs the packed route")
        tokens = batch.tokens.split(list(batch.lengths))
        ends = list(batch.lengths)
        for row, column in reversed(list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))):
            ends[row] = column + 1
        number: dict[tuple[int, tuple[int, ...]], int] = {}
        of_row = []
        for text, k, end in zip(tokens, batch.prompt_of_text, ends, strict=True):
            of_row.append(number.setdefault((k, tuple(text[:end].tolist())), len(number)))
        states, seen = _encoded(model, prompts, list(number), batch.encoded)
        start = torch.full((1,), start_token(model), dtype=torch.long)
        padded = pad_sequence([torch.cat([start, text[end:]]) for text, end in zip(tokens, ends, strict=True)], True)
        columns = batch.columns - (torch.tensor(ends) - 1)[batch.rows]
        given = [padded, torch.tensor(of_row), batch.rows, columns]
        padded, index, rows, columns = to_device(given, states.device)
        hidden = decode(model, padded, states[index], seen[index]).last_hidden_state
        found: Tensor = hidden[rows, columns]
        return found

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        config: Any = model.config
        if getattr(config, "scale_decoder_outputs", False):  # T5, of its first version
            hidden = hidden * config.d_model**-0.5
        scores = wide(model.get_output_embeddings()(hidden)).to(hidden.device)
        bias = getattr(model, "final_logits_bias", None)  # BART
        return scores if bias is None else scores + bias[0].to(scores)

    def check(self, model: PreTrainedModel) -> None:
        name, (_, batch) = type(model).__name__, probe(model)
        own_ids = batch.tokens[: batch.lengths[0]]
        ids = own_ids.to(model.device)
        text, target = ids[:-3], ids[-3:]
        start = torch.full((1,), start_token(model), dtype=torch.long, device=ids.device)
        with torch.no_grad():
            own = model(
                input_ids=text[None], decoder_input_ids=torch.cat([start, target[:-1]])[None], use_cache=False
            ).logits[0]
        check_finite(model, own)
        columns = torch.arange(3) + len(text) - 1
        # Beside a longer one of another prompt, which would show a padding that is seen.
        bare = model.get_input_embeddings()(ids[:0]).float()
        other = model.get_input_embeddings()(ids[:6]).float().detach()
        both = Batch(
            torch.cat([own_ids[:-1], own_ids]),
            [len(ids) - 1, len(ids)],
            [0, 1],
            torch.tensor([0, 0, 0, 1]),
            torch.cat([columns, columns[-1:] + 1]),
        )
        with torch.no_grad():
            ours = self.logits(model, self.hidden(self.routes[0], model, [bare, other], both))[:3]
        if logit_distance(ours, wide(own)) > tolerance(model):
            raise SoftPromptError(f"{name} computes something else from embeddings than from token ids")


def start_token(model: PreTrainedModel) -> int:
    """What a decoder's input begins with.

    Raises:
        SoftPromptError: the configuration does not say.
    """
    for config in (model.config, model.generation_config, model.config.get_text_config(decoder=True)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(found := getattr(config, name, None), int):
                return found
    raise SoftPromptError(f"{type(model).__name__} does not say what its decoder begins with (decoder_start_token_id)")


def encode(
    model: PreTrainedModel, prompts: Sequence[Tensor], texts: Sequence[tuple[int, tuple[int, ...]]]
) -> tuple[Tensor, Tensor]:
    """The encoder's states `[n, P + T, H]` of texts, each behind the prompt that it names, and the padding mask."""
    encoder: Any = model.get_encoder()
    embed = model.get_input_embeddings()
    ids = to_device([torch.tensor(text, dtype=torch.long) for _, text in texts], model.device)
    rows = [
        torch.cat([prompts[k].to(words.dtype), words]) for (k, _), words in zip(texts, map(embed, ids), strict=True)
    ]
    vectors, seen = side_by_side(rows)
    return encoder(inputs_embeds=vectors, attention_mask=seen).last_hidden_state, seen


def _encoded(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    texts: Sequence[tuple[int, tuple[int, ...]]],
    kept: Sequence[dict[tuple[int, ...], Tensor]],
) -> tuple[Tensor, Tensor]:
    """As `encode`, but for what is kept of each prompt's texts."""
    if not kept:
        return encode(model, prompts, texts)
    if new := [(k, text) for k, text in texts if text not in kept[k]]:
        for (k, text), states in zip(new, encode(model, prompts, new)[0], strict=True):
            kept[k][text] = states[: len(prompts[k]) + len(text)]
    return side_by_side([kept[k][text] for k, text in texts])


def decode(model: PreTrainedModel, ids: Tensor, states: Tensor, seen: Tensor, **options: Any) -> Any:
    """The decoder's output for ids `[n, T]`, padded at the right, which none before it sees."""
    decoder: Any = model.get_decoder()
    options.setdefault("use_cache", False)
    return decoder(input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=seen, **options)
