"""The prompts' states: keys and values that are computed once, kept, and attached to the rows of any batch.

One pool of places holds them, together with those of the texts that are being answered: a place is one token's keys and
values in every layer. A row of a mixed batch names the places of its prompt's state and its own, so that prompts of any
length stand next to their texts and nothing is copied or padded. A packed row of `Span`s computes what is new.

Owns the pool, which states are in it, and the pass over what is new. Knows nothing of requests, labels or sampling.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from softprompt.bases.decoder import NO_TOKEN, Decoder
from softprompt.errors import SoftPromptError
from softprompt.models.attention import attach
from softprompt.models.family import logits, plain
from softprompt.models.packed import Block, Kept, Layout, Tree
from softprompt.models.probe import objection, objection_to_logits, probe
from softprompt.models.transfer import to_device

_Shape = tuple[tuple[int, int], tuple[int, int]]  # heads and width of a layer's keys, and of its values


class Virtual(Protocol):
    """Virtual tokens, such as a `SoftPrompt`'s: `[P, H]`, and a digest of them by which their state is found."""

    @property
    def embeddings(self) -> Tensor: ...
    @property
    def sha256(self) -> str: ...
    @property
    def num_virtual_tokens(self) -> int: ...


@dataclass(eq=False)
class State:
    """A prompt's keys and values in the pool.

    Attributes:
        key: SHA-256 of the prompt's embeddings.
        places: `[P]` where they are.
        last: `[H]` the final hidden state of the last virtual token; None until the state has been computed.
        holders: requests that use it; with any, it stays.
    """

    key: str
    places: Tensor
    last: Tensor | None = None
    holders: int = 0


@dataclass
class Span:
    """New tokens of one sequence.

    Attributes:
        inputs: `[n]` token ids, or `[n, H]` vectors.
        past: `[m]` places of the sequence's tokens before them, in order.
        places: `[n + E]` where the new ones are kept.
        tree: continuations of E nodes that branch off the last token.
    """

    inputs: Tensor
    past: Tensor
    places: Tensor
    tree: Tree | None = None


@dataclass
class Counts:
    """What has happened to states so far."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class StatePool:
    """Places for keys and values, and the prompts' states among them.

    States that nobody holds stay until their places are needed; then the least recently used leave first. They are
    found by the content of the prompt, so that no two prompts can share one. One thread at a time may use a pool.

    Args:
        model: the frozen base, in eval mode. Its keys and values are kept in its own dtype, on its own device.
        memory: bytes for keys and values.

    Attributes:
        capacity: places in all.
        bytes_per_place: bytes of one token's keys and values in all layers.
        counts: hits, misses and evictions of states.

    Raises:
        SoftPromptError: the model is not exact by a packed row (see `probe.py`), its states cannot be kept, or the
            memory holds no place.
    """

    _objection = staticmethod(lambda model: objection_to_pool(model))

    def __init__(self, model: PreTrainedModel, memory: int) -> None:
        if reason := self._objection(model):
            raise SoftPromptError(f"{type(model).__name__} cannot keep states for mixed batches: {reason}")
        self.model = model
        shapes = _shapes(model)
        self.bytes_per_place = bytes_per_place(model)
        self.capacity = memory // self.bytes_per_place
        if self.capacity < 1:
            raise SoftPromptError(f"{memory:,} bytes hold no token's state: one takes {self.bytes_per_place:,}")
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        # Empty, so that memory is taken when it is first used. A row reads places that it or its past has filled only.
        self._keys = [like.new_empty(self.capacity, *key) for key, _ in shapes]
        self._values = [like.new_empty(self.capacity, *value) for _, value in shapes]
        self._positions = torch.zeros(self.capacity, dtype=torch.long)
        self._released: list[int] = []
        self._used = 0  # all places from here on were never used
        self._states: OrderedDict[str, State] = OrderedDict()
        self._state_places = 0
        self.counts = Counts()
        attach(model)

    @property
    def resident(self) -> int:
        """States in the pool."""
        return len(self._states)

    @property
    def state_bytes(self) -> int:
        """Bytes of the states in the pool."""
        return self.bytes_per_place * self._state_places

    @property
    def free(self) -> int:
        """Places that nothing stands in."""
        return len(self._released) + self.capacity - self._used

    def allocate(self, count: int) -> Tensor | None:
        """`[count]` free places, for which states that nobody holds may leave; None where there are not enough."""
        if self.free < count:
            idle = [state for state in self._states.values() if not state.holders]
            if self.free + sum(len(state.places) for state in idle) < count:
                return None
            for state in idle:
                self._remove(state)
                self.counts.evictions += 1
                if self.free >= count:
                    break
        start = max(len(self._released) - count, 0)
        places = self._released[start:]
        del self._released[start:]
        before = self._used
        self._used += count - len(places)
        return torch.tensor([*places, *range(before, self._used)], dtype=torch.long)

    def release(self, places: Tensor) -> None:
        """Give places back that `allocate` gave."""
        self._released.extend(places.tolist())

    def hold(self, prompt: Virtual) -> State | None:
        """The prompt's state, which stays until `drop`; None where there is no room for it now.

        A state that is new has to be computed by the caller: `last` is None until then.
        """
        key = prompt.sha256
        state = self._states.get(key)
        if state is None:
            places = self.allocate(prompt.num_virtual_tokens)
            if places is None:
                return None
            state = self._states[key] = State(key, places)
            self._state_places += len(places)
        if state.last is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        self._states.move_to_end(key)
        state.holders += 1
        return state

    def drop(self, state: State) -> None:
        """End one `hold`. A state that was never computed leaves with its last holder."""
        state.holders -= 1
        if not state.holders and state.last is None:
            self._remove(state)

    def _remove(self, state: State) -> None:
        del self._states[state.key]
        self._state_places -= len(state.places)
        self.release(state.places)

    @torch.no_grad()
    def compute(self, spans: Sequence[Span]) -> list[Tensor]:
        """One packed row of all that is new; its keys and values are kept at the spans' places.

        A span may look at places that another one of the same row fills.

        Args:
            spans: at least one; each with at least one token or node.

        Returns:
            For each span `[n + E, H]`, the final hidden states of its tokens and nodes.
        """
        embed, device, dtype = self.model.get_input_embeddings(), self.model.device, self.model.dtype
        rows, embedded, words = [_Row.make(span) for span in spans], [], []
        for span in spans:
            inputs = span.inputs.to(device)
            if inputs.is_floating_point():
                embedded.append(inputs.to(dtype))
                words.append(torch.full((len(inputs),), NO_TOKEN, device=device))
            else:
                embedded.append(embed(inputs))
                words.append(inputs)
            if span.tree is not None:
                words.append(torch.tensor(span.tree.tokens, dtype=torch.long, device=device))
                embedded.append(embed(words[-1]))
        own = torch.cat([span.places for span in spans])
        positions = torch.cat([row.positions for row in rows])
        self._positions.index_copy_(0, own, positions)
        layout = Layout(positions, partial(_blocks, rows), _spans(rows), device)
        places, positions = to_device([own, positions], device)
        layout.kept = Kept(self._keys, self._values, self._positions, places)
        hidden = Decoder.of(self.model)(
            torch.cat(embedded)[None],
            torch.cat(words)[None],
            position_ids=positions[None],
            attention_mask=positions.new_zeros(1, 1, 1, 1, dtype=dtype),  # ready made, so that none of N * N is made
            layout=layout,
        )
        return list(hidden[0].split([row.shape[0] for row in rows]))


@dataclass
class _Row:
    """A span's part of the layout, on the CPU.

    Attributes:
        span: what is new.
        ancestry: `[E, E]` which node of its tree sees which.
    """

    span: Span
    ancestry: Tensor

    @staticmethod
    def make(span: Span) -> _Row:
        return _Row(span, torch.zeros(0, 0, dtype=torch.bool) if span.tree is None else span.tree.ancestry())

    @property
    def shape(self) -> tuple[int, int]:
        """n + E tokens and nodes, and m + n + E places that they may look at."""
        total = len(self.span.inputs) + len(self.ancestry)
        return total, len(self.span.past) + total

    @property
    def positions(self) -> Tensor:
        """`[n + E]` of its tokens and nodes."""
        begin = len(self.span.past) + len(self.span.inputs)
        return torch.cat([torch.arange(len(self.span.past), begin), begin + self.ancestry.sum(1) - 1])

    @property
    def keys(self) -> Tensor:
        """`[m + n + E]` the places that it may look at."""
        return torch.cat([self.span.past, self.span.places])

    @property
    def seen(self) -> Tensor:
        """`[n + E, m + n + E]` which of them each token and node sees."""
        total, width = self.shape
        seen = torch.ones(total, width, dtype=torch.bool).tril(width - total)
        nodes = len(self.ancestry)
        if nodes:
            seen[total - nodes :, width - nodes :] = self.ancestry
        return seen


def _spans(rows: Sequence[_Row]) -> list[tuple[Tensor, int]] | None:
    """The places of each row's keys and the number of its queries; None where a tree branches off."""
    return None if any(len(row.ancestry) for row in rows) else [(row.keys, row.shape[0]) for row in rows]


def _blocks(rows: Sequence[_Row]) -> list[Block]:
    """Rows of like size together, so that little is computed for padding."""
    starts = torch.tensor([0, *(row.shape[0] for row in rows)]).cumsum(0).tolist()
    order = sorted(range(len(rows)), key=lambda i: rows[i].shape, reverse=True)
    groups: list[list[int]] = []
    for i in order:
        length, width = rows[i].shape
        if groups:
            longest, widest = rows[groups[-1][0]].shape
            if 2 * length >= longest and 4 * width >= widest:
                groups[-1].append(i)
                continue
        groups.append([i])
    blocks = []
    for group in groups:
        queries = [torch.arange(starts[i], starts[i + 1]) for i in group]
        keys = pad_sequence([rows[i].keys for i in group], batch_first=True, padding_value=-1)
        seen = torch.zeros(len(group), max(map(len, queries)), keys.shape[1], dtype=torch.bool)
        for at, i in enumerate(group):
            length, width = rows[i].shape
            seen[at, :length, :width] = rows[i].seen
        blocks.append(Block(pad_sequence(queries, batch_first=True, padding_value=-1), keys, seen))
    return blocks


_objections: weakref.WeakKeyDictionary[PreTrainedModel, str] = weakref.WeakKeyDictionary()


def objection_to_pool(model: PreTrainedModel) -> str:
    """Why this model's states cannot be kept, or ""; found out once for each model."""
    if model not in _objections:
        _objections[model] = objection(model, "packed", gradient=False) or _objection_to_keeping(model)
    return _objections[model]


class _Unproven(StatePool):
    """A pool for the probe that finds out whether there can be one."""

    _objection = staticmethod(lambda model: "")


def _objection_to_keeping(model: PreTrainedModel) -> str:
    """What keeps texts that go on from kept states, two behind one prompt, from the concatenation; "" for nothing."""

    def scores() -> Tensor:
        prompts, batch = probe(model)
        texts = batch.tokens.cpu().split(list(batch.lengths))
        lengths = [*map(len, prompts), *batch.lengths]
        places = iter(torch.arange(sum(lengths)).split(lengths))
        pasts = [next(places) for _ in prompts]
        first, then = [Span(p, pasts[0][:0], past) for p, past in zip(prompts, pasts, strict=True)], []
        for text, k, own in zip(texts, batch.prompt_of_text, places, strict=True):
            cut = len(text) // 2
            first.append(Span(text[:cut], pasts[k], own[:cut]))
            then.append(Span(text[cut:], torch.cat([pasts[k], own[:cut]]), own[cut:]))
        pool = _Unproven(model, sum(lengths) * bytes_per_place(model))
        begun = pool.compute(first)
        parts = zip(batch.prompt_of_text, begun[len(prompts) :], pool.compute(then), strict=True)
        hidden = [torch.cat([begun[k][-1:], before, after])[:-1] for k, before, after in parts]
        return logits(model, torch.cat(hidden))

    return objection_to_logits(model, scores, lambda: logits(model, plain(model, *probe(model))))


def bytes_per_place(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values in all layers."""
    return model.dtype.itemsize * sum(heads * width for pair in _shapes(model) for heads, width in pair)


_known_shapes: weakref.WeakKeyDictionary[PreTrainedModel, list[_Shape]] = weakref.WeakKeyDictionary()


def _shapes(model: PreTrainedModel) -> list[_Shape]:
    """Heads and width of the keys and of the values that each layer keeps for one token; found once for each model."""
    if model not in _known_shapes:
        _known_shapes[model] = _find_shapes(model)
    return _known_shapes[model]


@torch.no_grad()
def _find_shapes(model: PreTrainedModel) -> list[_Shape]:
    cache: Any = DynamicCache(config=model.config)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    Decoder.of(model)(model.get_input_embeddings()(token), token, cache)
    return [
        ((layer.keys.shape[1], layer.keys.shape[3]), (layer.values.shape[1], layer.values.shape[3]))
        for layer in cache.layers
    ]
