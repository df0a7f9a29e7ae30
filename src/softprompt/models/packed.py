"""The packed row: many texts and their prompts in one row without padding.

In a causal model a prompt's hidden states do not depend on the text after it, so a whole batch is ONE row
`[prompts | text 1 | text 2 | ...]`: each token looks at its own ancestors only (its prompt, then its own past) and each
prompt is computed once, where the plain concatenation of Lester et al. 2021
(https://aclanthology.org/2021.emnlp-main.243) computes it once per text.

Owns the layout: which place of the row stands at which position and sees which others. Knows nothing of models,
tasks or losses; `attention.py` computes with a layout, `prompted.py` asks for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


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
        positions: `[C]` position of each place in its own sequence.
        places: `[N]` where the row's own keys and values go.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    positions: Tensor
    places: Tensor


@dataclass
class Layout:
    """A packed row: N places, their positions, and the blocks in which they attend.

    Attributes:
        positions: `[N]` position of each place in its own sequence (what rotary or learned positions count).
        blocks: the blocks; together their queries are every place once.
        kernel: "matmul" or "sdpa" to compute all blocks with; None lets `attention.choose_kernel` choose.
        kept: where keys and values are kept; None: the blocks' keys are places of the row itself.
    """

    positions: Tensor
    blocks: Sequence[Block]
    kernel: str | None = None
    kept: Kept | None = None
    _plans: dict[tuple[int, int, int | None], list[Plan]] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> Layout:
        """The same layout with its tensors on `device`."""
        blocks = [Block(b.queries.to(device), b.keys.to(device), b.seen.to(device)) for b in self.blocks]
        return Layout(self.positions.to(device), blocks, self.kernel)

    def plans(self, heads: int, key_heads: int, window: int | None) -> list[Plan]:
        """What each layer of this shape needs, worked out once and shared by all layers."""
        key = (heads, key_heads, window)
        if key not in self._plans:
            key_positions = self.positions if self.kept is None else self.kept.positions
            self._plans[key] = [
                Plan.make(b, self.positions, key_positions, heads, key_heads, window) for b in self.blocks
            ]
        return self._plans[key]


@dataclass(frozen=True)
class Plan:
    """One block's gather indices at head granularity: rows of `[N * heads, d]` in the order the products want."""

    query_rows: Tensor  # [R * key_heads * group * L] into [N * heads]
    key_rows: Tensor  # [R * key_heads * M] into [N * key_heads], or into [C * key_heads] of what is kept
    real: Tensor | None  # which of the gathered query rows are not padding; None where all are
    places: Tensor  # query_rows without the padding
    bias: Tensor  # [R, 1, L, M] float32: 0 where seen, the lowest number where not
    shape: tuple[int, int, int, int, int]  # R, key_heads, group, L, M

    @staticmethod
    def make(
        block: Block, positions: Tensor, key_positions: Tensor, heads: int, key_heads: int, window: int | None
    ) -> Plan:
        rows, length = block.queries.shape
        width, group = block.keys.shape[1], heads // key_heads
        device = positions.device
        seen = block.seen & (block.keys >= 0)[:, None, :]
        queries, keys = _own_places(block.queries), _own_places(block.keys)
        if window is not None:
            seen = seen & (positions[queries][:, :, None] - key_positions[keys][:, None, :] < window)
        # A padding query looks at everything, so that its softmax stays finite; its answer is never read.
        seen = seen | (block.queries < 0)[:, :, None]
        head = torch.arange(heads, device=device).view(1, key_heads, group, 1)
        query_rows = (queries.view(rows, 1, 1, length) * heads + head).reshape(-1)
        key_head = torch.arange(key_heads, device=device).view(1, key_heads, 1)
        key_rows = (keys.view(rows, 1, width) * key_heads + key_head).reshape(-1)
        bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, torch.finfo(torch.float32).min)
        real, places = None, query_rows
        if bool((block.queries < 0).any()):
            whole = (block.queries >= 0).view(rows, 1, 1, length).expand(rows, key_heads, group, length)
            real = whole.reshape(-1).nonzero().flatten()
            places = query_rows[real]
        shape = (rows, key_heads, group, length, width)
        return Plan(query_rows, key_rows, real, places, bias[:, None], shape)

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
        The layout on the CPU; see `Layout.to`.
    """
    nodes = 0 if tree is None else len(tree.tokens)
    ancestry = torch.zeros(0, 0, dtype=torch.bool) if tree is None else tree.ancestry()
    depths = ancestry.sum(1) - 1
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
    blocks = []
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
    return Layout(torch.cat(positions), blocks)


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
