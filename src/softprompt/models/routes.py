"""The three ways to put prompts before the texts of a causal model, from the fastest to the plainest.

- `packed`: one row for the whole batch, no padding, each prompt computed once (`packed.py`).
- `shared_prefix`: each prompt's keys and values computed once, then attached to a padded batch of texts.
- `concatenated`: prompt and text joined in every row, padded; what PEFT does, and the reference for the other two.

Each gives the base's final hidden states at chosen places; `probe.py` finds the fastest that is exact for a model.
Knows nothing of losses, labels or tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from softprompt.bases.decoder import NO_TOKEN, Decoder
from softprompt.models.attention import attach
from softprompt.models.family import Batch
from softprompt.models.packed import build_layout
from softprompt.models.transfer import to_device


def packed(model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` at the places asked for, by one packed row.

    What all texts begin with, such as the first words of a template, is computed once after each prompt too.
    """
    used = sorted(set(batch.prompt_of_text))
    renumbered = {k: i for i, k in enumerate(used)}
    beginning, batch = _share_beginning(batch)
    lengths = [len(prompts[k]) + len(beginning) for k in used]
    prompt_of_text = [renumbered[k] for k in batch.prompt_of_text]
    attach(model)
    embed = model.get_input_embeddings()
    device = _device(model)
    layout = build_layout(lengths, prompt_of_text, batch.lengths, batch.tree)
    layout.device = device
    tokens = _with_tree(batch)
    nodes = 0 if batch.tree is None else len(batch.tree.tokens)
    prefix_ends = torch.tensor(lengths).cumsum(0)
    text_starts = prefix_ends[-1] + torch.tensor([0, *batch.lengths]).cumsum(0)[:-1]
    text_starts += nodes * torch.arange(len(batch.lengths))
    starts = torch.where(
        batch.columns < 0, prefix_ends[torch.tensor(prompt_of_text)][batch.rows], text_starts[batch.rows]
    )
    # All that is planned goes over together; from here on nothing is asked of the device.
    beginning, tokens, positions, places = to_device(
        [beginning, tokens, layout.positions, starts + batch.columns], device
    )
    first, texts = embed(beginning), embed(tokens)
    embedded = torch.cat([*(part for k in used for part in (prompts[k].to(texts.dtype), first)), texts])
    words = torch.cat([*(part for k in used for part in (_no_tokens(prompts[k], beginning), beginning)), tokens])
    hidden = Decoder.of(model)(
        embedded[None],
        words[None],
        position_ids=positions[None],
        attention_mask=texts.new_zeros(1, 1, 1, 1),  # taken as ready made, so that no mask of N * N is made for nothing
        layout=layout,
    )
    return hidden[0].index_select(0, places.to(hidden.device))


def shared_prefix(model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` at the places asked for, one padded batch of texts for each prompt."""
    embed, decoder = model.get_input_embeddings(), Decoder.of(model)
    ids, mask = _padded(batch, model)
    states: list[Tensor] = []
    asked: list[Tensor] = []
    for k in sorted(set(batch.prompt_of_text)):
        members = torch.tensor([row for row, prompt in enumerate(batch.prompt_of_text) if prompt == k])
        here = (batch.rows[:, None] == members).nonzero()
        places, rows, columns, members = to_device(
            [here[:, 0], here[:, 1], batch.columns[here[:, 0]], members], ids.device
        )
        words = ids[members]
        texts = embed(words)
        prompt = prompts[k].to(texts.dtype)[None]
        length = prompt.shape[1]
        cache = DynamicCache(config=model.config) if length else None
        last: list[Tensor] = []  # of the prompt's hidden states, in every row
        if cache is not None:
            prefix = decoder(prompt, _no_tokens(prompts[k], ids)[None], cache)
            cache.batch_repeat_interleave(len(members))
            last = [prefix[:, -1:].expand(len(members), 1, -1)]
        seen = torch.cat([mask.new_ones(len(members), length), mask[members]], 1)
        hidden = decoder(texts, words, cache, attention_mask=seen)
        states.append(torch.cat([*last, hidden], 1)[rows, columns + len(last)])
        asked.append(places)
    return torch.cat(states).index_select(0, torch.cat(asked).argsort())


def concatenated(model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` at the places asked for, prompt and text joined and padded at the right."""
    ids, mask = _padded(batch, model)
    texts = model.get_input_embeddings()(ids)
    longest = max(len(prompts[k]) for k in batch.prompt_of_text)
    width = longest + ids.shape[1]
    filler = texts.new_zeros(longest, texts.shape[-1])
    rows, words = [], ids.new_full((len(ids), width), NO_TOKEN)
    seen = mask.new_zeros(len(ids), width)
    for row, k in enumerate(batch.prompt_of_text):
        prompt = prompts[k].to(texts.dtype)
        rows.append(torch.cat([prompt, texts[row], filler[len(prompt) :]]))
        words[row, len(prompt) : len(prompt) + ids.shape[1]] = ids[row]
        seen[row, : len(prompt) + batch.lengths[row]] = 1
    hidden = Decoder.of(model)(torch.stack(rows), words, attention_mask=seen)
    before = torch.tensor([len(prompts[k]) for k in batch.prompt_of_text])
    asked, columns = to_device([batch.rows, before[batch.rows] + batch.columns], hidden.device)
    return hidden[asked, columns]


def _share_beginning(batch: Batch) -> tuple[Tensor, Batch]:
    """The tokens that all texts begin with (those that have none and no tree aside), and the texts without them.

    Columns count on from the end of the beginning, so that those within it, and the last virtual token, are negative.
    """
    texts = [text for text in batch.tokens.split(list(batch.lengths)) if len(text) or batch.tree is not None]
    if len(texts) < 2:
        return batch.tokens[:0], batch
    shortest = min(map(len, texts))
    heads = torch.stack([text[:shortest] for text in texts])
    shared = int((heads == heads[0]).all(0).long().cumprod(0).sum())
    rest = replace(
        batch,
        tokens=torch.cat([text[shared:] for text in texts]),
        lengths=[max(length - shared, 0) for length in batch.lengths],
        columns=batch.columns - shared,
    )
    return texts[0][:shared], rest


def _device(model: PreTrainedModel) -> torch.device:
    """Where a row begins."""
    device: Any = model.get_input_embeddings().weight.device
    return device  # type: ignore[no-any-return]


def _no_tokens(prompt: Tensor, like: Tensor) -> Tensor:
    """`[P]`, for the virtual tokens among the ids of words."""
    return like.new_full((len(prompt),), NO_TOKEN)


def _with_tree(batch: Batch) -> Tensor:
    if batch.tree is None:
        return batch.tokens
    nodes = torch.tensor(batch.tree.tokens, dtype=torch.long)
    return torch.cat([part for text in batch.tokens.split(list(batch.lengths)) for part in (text, nodes)])


def _padded(batch: Batch, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]`, padded at the right, on the model's device."""
    if batch.tree is not None:
        raise ValueError("a tree of continuations needs the packed route")
    mask = torch.arange(max(batch.lengths)) < torch.tensor(batch.lengths)[:, None]
    ids = batch.tokens.new_zeros(mask.shape)
    ids[mask] = batch.tokens
    ids, mask = to_device([ids, mask.long()], _device(model))
    return ids, mask
