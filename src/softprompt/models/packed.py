"""The packed row: many texts and their prompts in one row without padding.

In a causal model a prompt's hidden states do not depend on the text after it, so a whole batch is ONE row
`[prompts | text 1 | text 2 | ...]`: each token looks at its own ancestors only (its prompt, then its own past) and each
prompt is computed once, where the plain concatenation of Lester et al. 2021
(https://aclanthology.org/2021.emnlp-main.243) computes it once per text.

Owns the layout: which place of the row stands at which position and sees which others. Knows nothing of models,
tasks or losses; `attention.py` computes with a layout, `prompted.py` asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from softprompt.models.transfer import to_device


@dataclass(frozen=True)
class Block:
    """Rows that are attended together.

    Attributes:
        queries: `[R, L]` places in the packed row; each place is a query in exactly one block. -1 is padding.
        keys: `[R, M]` places that a row's queries may look at. -1 is padding.
        seen: `[R, L, M]` bool, which query looks at which key.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Kept:
    """Keys and values that outlive a row: the row's own are added to them, and its blocks' keys are places here.

    Attributes:
        keys: of each layer, `[C, key_heads, d]` for C places.
        values: of each layer, `[C, key_heads, e]`.
        positions: `[C]` position of each place in its own sequence, on the CPU.
        places: `[N]` where the row's own keys and values go, on the base's device.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    positions: Tensor
    places: Tensor


@dataclass(frozen=True)
class Sequences:
    """A packed row as sequences one after the other, the queries of each being the last of its keys.

    Attributes:
        keys: `[M]` places of each sequence's keys, in order.
        query_ends: `[S + 1]` int32, 0 and where each sequence's queries end in the row.
        key_ends: `[S + 1]` int32, 0 and where each sequence's keys end in `keys`.
        longest_query: the most queries of a sequence.
        longest_key: the most keys.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int

    @staticmethod
    def make(spans: Sequence[tuple[Tensor, int]], device: torch.device) -> Sequences:
        """Of the places of each sequence's keys and the number of its queries; planned on the CPU, copied once."""
        spans = [(keys, queries) for keys, queries in spans if queries]
        lengths = torch.tensor([[queries, len(keys)] for keys, queries in spans]).T
        ends = torch.nn.functional.pad(lengths.cumsum(1), (1, 0))
        keys, ends = to_device([torch.cat([keys for keys, _ in spans]), ends], device)
        query_ends, key_ends = ends.int()
        return Sequences(keys, query_ends, key_ends, *lengths.amax(1).tolist())


@dataclass
class Layout:
    """A packed row: N places, their positions, and which of them see which. It is planned on the CPU.

    Attributes:
        positions: `[N]` position of each place in its own sequence (what rotary or learned positions count).
        make_blocks: makes the blocks in which the places attend; together their queries are every place once.
        spans: the same where no place branches off: of each sequence, in the order of the row, the places of its keys
            and how many of them, the last, are its queries. None: some do.
        device: where the row is computed.
        kernel: "matmul" or "sdpa" to compute all blocks with; None lets `attention` choose, a varlen kernel too.
        kept: where keys and values are kept; None: keys are places of the row itself.
    """

    positions: Tensor
    make_blocks: Callable[[], Sequence[Block]]
    spans: Sequence[tuple[Tensor, int]] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kernel: str | None = None
    kept: Kept | None = None
    _plans: dict[tuple[int, int, int | None], list[Plan]] = field(default_factory=dict, repr=False)

    @cached_property
    def blocks(self) -> Sequence[Block]:
        """The blocks, on the CPU; not every kernel needs them."""
        return self.make_blocks()

    @cached_property
    def sequences(self) -> Sequences:
        """The spans as a kernel for sequences of unequal lengths takes them, on the row's device."""
        assert self.spans is not None, "a place branches off"
        return Sequences.make(self.spans, self.device)

    def plans(self, heads: int, key_heads: int, window: int | None) -> list[Plan]:
        """What each layer of this shape needs, worked out once and shared by all layers."""
        key = (heads, key_heads, window)
        if key not in self._plans:
            key_positions = self.positions if self.kept is None else self.kept.positions
            self._plans[key] = [
                Plan.make(b, self.positions, key_positions, heads, key_heads, window).to(self.device)
                for b in self.blocks
            ]
        return self._plans[key]


@dataclass(frozen=True)
class Plan:
    """One block's gather indices at head granularity: rows of `[N * heads, d]` in the order the products want."""

    query_rows: Tensor  # [R * key_heads * group * L] into [N * heads]
    key_rows: Tensor  # [R * key_heads * M] into [N * key_heads], or into [C * key_heads] of what is kept
    real: Tensor | None  # which of the gathered query rows are not padding; None where all are
    places: Tensor  # query_rows without the padding
    seen: Tensor  # [R, 1, L, M] bool
    shape: tuple[int, int, int, int, int]  # R, key_heads, group, L, M
    causal: bool  # whether each query sees the M - L keys before all of them, and those up to its own

    @staticmethod
    def make(
        block: Block, positions: Tensor, key_positions: Tensor, heads: int, key_heads: int, window: int | None
    ) -> Plan:
        rows, length = block.queries.shape
        width, group = block.keys.shape[1], heads // key_heads
        seen = block.seen & (block.keys >= 0)[:, None, :]
        queries, keys = _own_places(block.queries), _own_places(block.keys)
        if window is not None:
            seen = seen & (positions[queries][:, :, None] - key_positions[keys][:, None, :] < window)
        padding = (block.queries < 0)[:, :, None]
        causal = width >= length and bool((padding | (seen == seen.new_ones(length, width).tril(width - length))).all())
        # A padding query looks at everything, so that its softmax stays finite; its answer is never read.
        seen = seen | padding
        head = torch.arange(heads).view(1, key_heads, group, 1)
        query_rows = (queries.view(rows, 1, 1, length) * heads + head).reshape(-1)
        key_head = torch.arange(key_heads).view(1, key_heads, 1)
        key_rows = (keys.view(rows, 1, width) * key_heads + key_head).reshape(-1)
        real, places = None, query_rows
        if bool((block.queries < 0).any()):
            whole = (block.queries >= 0).view(rows, 1, 1, length).expand(rows, key_heads, group, length)
            real = whole.reshape(-1).nonzero().flatten()
            places = query_rows[real]
        shape = (rows, key_heads, group, length, width)
        return Plan(query_rows, key_rows, real, places, seen[:, None], shape, causal)

    def to(self, device: torch.device) -> Plan:
        """The same on the device where the block is computed."""
        given = [self.query_rows, self.key_rows, self.places, *([] if self.real is None else [self.real])]
        query_rows, key_rows, places, *real = to_device(given, device)
        (seen,) = to_device([self.seen], device)
        return Plan(query_rows, key_rows, real[0] if real else None, places, seen, self.shape, self.causal)

    @cached_property
    def bias(self) -> Tensor:
        """`[R, 1, L, M]` float32: 0 where seen, the lowest number where not."""
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(self.seen.shape, device=self.seen.device).masked_fill_(~self.seen, lowest)

    def put(self, target: Tensor, rows: Tensor) -> None:
        """Write the block's answers to their places in the packed row, padding aside."""
        target.index_copy_(0, self.places, rows if self.real is None else rows.index_select(0, self.real))

    def take(self, grad: Tensor) -> Tensor:
        """Read the gradients of the block's answers; that of padding is zero."""
        taken = grad.index_select(0, self.query_rows)
        if self.real is None:
            return taken
        return torch.zeros_like(taken).index_copy_(0, self.real, taken.index_select(0, self.real))


@dataclass(frozen=True)
class Tree:
    """Continuations that branch off the end of every text, so that they share the text's computation.

    Attributes:
        tokens: `[E]` the token of each node.
        parents: `[E]` each node's parent, earlier in the list; -1 for the end of the text.
    """

    tokens: Sequence[int]
    parents: Sequence[int]

    def paths(self) -> list[list[int]]:
        """The tokens from each text's end to each of the E nodes, which is the last of them."""
        found: list[list[int]] = []
        for token, parent in zip(self.tokens, self.parents, strict=True):
            found.append([*(found[parent] if parent >= 0 else []), token])
        return found

    def ancestry(self) -> Tensor:
        """`[E, E]` bool: which node sees which (itself and its ancestors)."""
        seen = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def build_layout(
    prompt_lengths: Sequence[int], prompt_of_text: Sequence[int], text_lengths: Sequence[int], tree: Tree | None = None
) -> Layout:
    """Lay out `[prompt 0 | prompt 1 | ... | text 0, its tree nodes | text 1, its tree nodes | ...]`.

    Args:
        prompt_lengths: virtual tokens of each of the K prompts; 0 is allowed.
        prompt_of_text: which prompt each of the B texts sees.
        text_lengths: tokens of each text; 0 is allowed.
        tree: continuations that follow every text.

    Returns:
        The layout, to be computed on the CPU unless its `device` says otherwise.
    """
    ancestry = torch.zeros(0, 0, dtype=torch.bool) if tree is None else tree.ancestry()
    nodes, depths = len(ancestry), ancestry.sum(1) - 1
    starts = [0]
    for length in prompt_lengths:
        starts.append(starts[-1] + length)
    positions = [torch.arange(length) for length in prompt_lengths]
    text_starts = []
    place = starts[-1]
    for prompt, length in zip(prompt_of_text, text_lengths, strict=True):
        text_starts.append(place)
        positions.append(prompt_lengths[prompt] + torch.cat([torch.arange(length), length + depths]))
        place += length + nodes
    prefixes = [torch.arange(start, start + length) for start, length in zip(starts, prompt_lengths, strict=False)]
    spans = [(prefix, len(prefix)) for prefix in prefixes]
    for prompt, start, length in zip(prompt_of_text, text_starts, text_lengths, strict=True):
        spans.append((torch.cat([prefixes[prompt], torch.arange(start, start + length)]), length))
    make_blocks = partial(_blocks, starts, prompt_lengths, prompt_of_text, text_starts, text_lengths, ancestry)
    return Layout(torch.cat(positions), make_blocks, None if nodes else spans)


def _blocks(
    starts: Sequence[int],
    prompt_lengths: Sequence[int],
    prompt_of_text: Sequence[int],
    text_starts: Sequence[int],
    text_lengths: Sequence[int],
    ancestry: Tensor,
) -> list[Block]:
    """One block of the prompts, and blocks of texts of like length, each with the nodes at its end."""
    nodes, blocks = len(ancestry), []
    if starts[-1]:
        places = _places(starts[:-1], prompt_lengths)
        width = places.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        blocks.append(Block(places, places, causal.expand(len(places), width, width)))
    for rows in _buckets([length + nodes for length in text_lengths]):
        lengths = [text_lengths[row] for row in rows]
        own = _places([text_starts[row] for row in rows], [length + nodes for length in lengths])
        chosen = [prompt_of_text[row] for row in rows]
        prefix = _places([starts[k] for k in chosen], [prompt_lengths[k] for k in chosen])
        width = own.shape[1]
        seen = torch.ones(len(rows), width, width, dtype=torch.bool).tril()
        if nodes:
            for i, length in enumerate(lengths):
                seen[i, length : length + nodes, length : length + nodes] = ancestry
        before = torch.ones(len(rows), width, prefix.shape[1], dtype=torch.bool)
        blocks.append(Block(own, torch.cat([prefix, own], 1), torch.cat([before, seen], 2)))
    return blocks


def _own_places(places: Tensor) -> Tensor:
    """`[R, L]` places, with padding replaced by a place of its own row (of a row that is nothing else, by the first).

    What is masked is multiplied by nothing, which only numbers that are finite take: it must not be another text's.
    """
    return torch.where(places < 0, places.amax(1, keepdim=True).clamp(min=0), places)


def _places(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """`[R, longest]` consecutive places from each start, -1 beyond each length."""
    steps = torch.arange(max(lengths, default=0))
    places = torch.tensor(starts, dtype=torch.long)[:, None] + steps
    return places.masked_fill(steps >= torch.tensor(lengths, dtype=torch.long)[:, None], -1)


def _buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Group rows so that none is padded to more than twice its own length; empty rows are left out."""
    order = sorted((row for row in range(len(lengths)) if lengths[row]), key=lambda row: -lengths[row])
    buckets: list[list[int]] = []
    for row in order:
        if buckets and 2 * lengths[row] >= lengths[buckets[-1][0]]:
            buckets[-1].append(row)
        else:
            buckets.append([row])
    return buckets
