"""The three ways to put prompts before texts, from the fastest to the plainest, and the proof that a model allows one.

- `packed`: one row for the whole batch, no padding, each prompt computed once (`packed.py`).
- `shared_prefix`: each prompt's keys and values computed once, then attached to a padded batch of texts.
- `concatenated`: prompt and text joined in every row, padded; what PEFT does, and the reference for the other two.

Each gives the base's final hidden states at chosen places. A route is used for a model only after a probe has shown, on
this very model, the same logits and the same gradient as the concatenation. Knows nothing of losses, labels or tasks.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from softprompt.errors import SoftPromptError
from softprompt.models.attention import attach, detach
from softprompt.models.packed import Tree, build_layout

logger = logging.getLogger(__name__)
RouteName = Literal["packed", "shared_prefix", "concatenated"]
ROUTES: tuple[RouteName, ...] = ("packed", "shared_prefix", "concatenated")


@dataclass(frozen=True)
class Batch:
    """Texts without padding, and where in them the base is asked.

    Attributes:
        tokens: `[sum of lengths]` the texts' ids, one after the other.
        lengths: tokens of each of the B texts.
        prompt_of_text: which of the K prompts stands before each text.
        rows: `[A]` text of each place asked for.
        columns: `[A]` token of the text whose hidden state is asked for; -1 is the prompt's last virtual token.
        tree: continuations of every text (packed route only); columns count on from the text's length.
    """

    tokens: Tensor
    lengths: Sequence[int]
    prompt_of_text: Sequence[int]
    rows: Tensor
    columns: Tensor
    tree: Tree | None = None


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
    layout = build_layout(lengths, prompt_of_text, batch.lengths, batch.tree).to(batch.tokens.device)
    embed = model.get_input_embeddings()
    first, texts = embed(beginning), embed(_with_tree(batch))
    embedded = torch.cat([*(part for k in used for part in (prompts[k].to(texts.dtype), first)), texts])
    nodes = 0 if batch.tree is None else len(batch.tree.tokens)
    prefix_ends = torch.tensor(lengths).cumsum(0)
    text_starts = prefix_ends[-1] + torch.tensor([0, *batch.lengths]).cumsum(0)[:-1]
    text_starts += nodes * torch.arange(len(batch.lengths))
    rows, columns = batch.rows.cpu(), batch.columns.cpu()
    starts = torch.where(columns < 0, prefix_ends[torch.tensor(prompt_of_text)][rows], text_starts[rows])
    places = starts + columns
    hidden: Tensor = model.base_model(
        inputs_embeds=embedded[None],
        position_ids=layout.positions[None],
        attention_mask=texts.new_zeros(1, 1, 1, 1),  # taken as ready made, so that no mask of N * N is made for nothing
        layout=layout,
        use_cache=False,
    ).last_hidden_state
    return hidden[0].index_select(0, places.to(hidden.device))


def shared_prefix(model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` at the places asked for, one padded batch of texts for each prompt."""
    embed = model.get_input_embeddings()
    ids, mask = _padded(batch)
    states: list[Tensor] = []
    asked: list[Tensor] = []
    for k in sorted(set(batch.prompt_of_text)):
        members = torch.tensor([row for row, prompt in enumerate(batch.prompt_of_text) if prompt == k])
        here = (batch.rows.cpu()[:, None] == members).nonzero()
        places, rows = here[:, 0].to(ids.device), here[:, 1].to(ids.device)
        texts = embed(ids[members.to(ids.device)])
        prompt = prompts[k].to(texts.dtype)[None]
        length = prompt.shape[1]
        cache = DynamicCache(config=model.config) if length else None
        last: list[Tensor] = []  # of the prompt's hidden states, in every row
        if cache is not None:
            prefix = model.base_model(inputs_embeds=prompt, past_key_values=cache, use_cache=True).last_hidden_state
            cache.batch_repeat_interleave(len(members))
            last = [prefix[:, -1:].expand(len(members), 1, -1)]
        seen = torch.cat([mask.new_ones(len(members), length), mask[members.to(ids.device)]], 1)
        hidden = model.base_model(
            inputs_embeds=texts, attention_mask=seen, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        states.append(torch.cat([*last, hidden], 1)[rows, batch.columns[places] + len(last)])
        asked.append(places)
    return torch.cat(states).index_select(0, torch.cat(asked).argsort())


def concatenated(model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` at the places asked for, prompt and text joined and padded at the right."""
    ids, mask = _padded(batch)
    texts = model.get_input_embeddings()(ids)
    longest = max(len(prompts[k]) for k in batch.prompt_of_text)
    width = longest + ids.shape[1]
    filler = texts.new_zeros(longest, texts.shape[-1])
    rows = []
    seen = mask.new_zeros(len(ids), width)
    for row, k in enumerate(batch.prompt_of_text):
        prompt = prompts[k].to(texts.dtype)
        rows.append(torch.cat([prompt, texts[row], filler[len(prompt) :]]))
        seen[row, : len(prompt) + batch.lengths[row]] = 1
    hidden: Tensor = model.base_model(
        inputs_embeds=torch.stack(rows), attention_mask=seen, use_cache=False
    ).last_hidden_state
    before = torch.tensor([len(prompts[k]) for k in batch.prompt_of_text], device=hidden.device)
    return hidden[batch.rows, before[batch.rows] + batch.columns]


_FUNCTIONS = {"packed": packed, "shared_prefix": shared_prefix, "concatenated": concatenated}


def hidden_states(route: RouteName, model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` by the named route."""
    return _FUNCTIONS[route](model, prompts, batch)


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The output head on hidden states `[A, H]`: logits `[A, V]`, float32 or wider, scaled and capped as configured."""
    config = model.config.get_text_config()
    scores: Tensor = model.get_output_embeddings()(hidden)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if (scale := getattr(config, "logit_scale", None)) is not None:
        scores = scores * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        scores = scores / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        scores = torch.tanh(scores / cap) * cap
    return scores


@dataclass(frozen=True)
class Route:
    """The route found for a model, and why not a faster one ("" where it is the fastest)."""

    name: RouteName
    reason: str = ""


_objections: weakref.WeakKeyDictionary[PreTrainedModel, dict[RouteName, str]] = weakref.WeakKeyDictionary()


def find_route(model: PreTrainedModel) -> Route:
    """The fastest route that is exact for `model`.

    Raises:
        SoftPromptError: `model` has no output head, or changes its logits in a way that softprompt does not know.
    """
    reasons = []
    for name in ROUTES:
        if not (reason := objection(model, name)):
            break
        reasons.append(f"{name}: {reason}")
    return Route(name, "; ".join(reasons))


def objection(model: PreTrainedModel, route: RouteName) -> str:
    """Why `route` is not exact for `model`; "" where a probe of a few tokens has shown that it is.

    The probe runs once for each model and route, and logs what it objects to.

    Raises:
        SoftPromptError: as `find_route`.
    """
    known = _objections.setdefault(model, {})
    if "concatenated" not in known:
        _check_head(model)
        known["concatenated"] = ""
    if route not in known:
        known[route] = _compare(model, route)
        if known[route]:
            logger.warning("%s takes a slower route than %s (%s)", type(model).__name__, route, known[route])
    return known[route]


def _probe(model: PreTrainedModel) -> tuple[list[Tensor], Batch]:
    """Two prompts `[2, H]` and `[3, H]` of known tokens, and two texts behind them."""
    count = model.config.get_text_config().vocab_size
    ids = torch.randint(0, count, (8,), generator=torch.Generator().manual_seed(0))
    vectors = model.get_input_embeddings()(ids.to(model.device)).detach().float()
    batch = Batch(
        tokens=ids.to(model.device),
        lengths=[5, 3],
        prompt_of_text=[1, 0],
        rows=torch.tensor([0, 0, 1, 1], device=model.device),
        columns=torch.tensor([-1, 4, 0, 2], device=model.device),
    )
    return [vectors[:2], vectors[2:5]], batch


def _check_head(model: PreTrainedModel) -> None:
    """Compare the output head as `logits` has it with the model's own, by the concatenation."""
    if model.get_output_embeddings() is None:
        raise SoftPromptError(f"{type(model).__name__} has no output head: a causal language model is needed")
    prompts, batch = _probe(model)
    text = model.get_input_embeddings()(batch.tokens[:5])
    with torch.no_grad():
        whole = torch.cat([prompts[1].to(text.dtype), text])
        own = model(inputs_embeds=whole[None], use_cache=False).logits[0, [2, 7]]
        ours = logits(model, concatenated(model, prompts, batch))[:2]
    if _distance(ours, own) > _tolerance(model):
        raise SoftPromptError(f"{type(model).__name__} changes its logits in a way that softprompt does not know")


def _compare(model: PreTrainedModel, route: RouteName) -> str:
    """What keeps `route` from the concatenation's logits and gradient; "" for nothing. Leaves the model as it was."""

    def answer(route: RouteName) -> tuple[Tensor, Tensor]:
        vectors, batch = _probe(model)
        prompts = [v.clone().requires_grad_() for v in vectors]
        with torch.enable_grad():
            scores = logits(model, hidden_states(route, model, prompts, batch))
            grads = torch.autograd.grad(scores.logsumexp(-1).sum(), prompts)
        return scores.detach(), torch.cat(grads)

    try:
        off = max(map(_distance, answer(route), answer("concatenated")))
        reason = "" if off <= _tolerance(model) else f"{off:.1g} away from the concatenation"
    except Exception as error:  # whatever a route meets in a model that it was not made for
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    if reason:
        detach(model)
    return " ".join(reason.split())


def _tolerance(model: PreTrainedModel) -> float:
    return 0.1 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3


def _distance(value: Tensor, expected: Tensor) -> float:
    """Relative distance; infinite for NaN."""
    distance = float((value - expected).norm() / expected.norm().clamp(min=1e-12))
    return distance if distance == distance else float("inf")


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


def _with_tree(batch: Batch) -> Tensor:
    if batch.tree is None:
        return batch.tokens
    nodes = torch.tensor(batch.tree.tokens, dtype=torch.long, device=batch.tokens.device)
    return torch.cat([part for text in batch.tokens.split(list(batch.lengths)) for part in (text, nodes)])


def _padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]`, padded at the right."""
    if batch.tree is not None:
        raise ValueError("a tree of continuations needs the packed route")
    mask = torch.arange(max(batch.lengths)) < torch.tensor(batch.lengths)[:, None]
    mask = mask.to(batch.tokens.device)
    ids = batch.tokens.new_zeros(mask.shape)
    ids[mask] = batch.tokens
    return ids, mask.long()
