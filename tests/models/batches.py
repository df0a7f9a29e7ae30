"""Random batches behind random prompts, and the hypothesis strategy that draws them.

Owns nothing of `softprompt`: what is drawn here goes to it and to the reference alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.models.families import VOCABULARY, WIDTH
from tests.models.reference import Reference, reference


@dataclass(frozen=True)
class Example:
    """A padded batch `[B, T]`, labels, K prompts `[P, H]` in float64 and which of them each row has."""

    prompts: list[Tensor]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    prompt_index: Tensor

    @property
    def batch(self) -> dict[str, Tensor]:
        """The keyword arguments of `PromptedModel.forward`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "prompts"}

    def parameters(self, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
        return [nn.Parameter(p.type(dtype)) for p in self.prompts]  # `to` may be held, see `keep_float64`

    def reference(self, model: nn.Module, dtype: torch.dtype = torch.float64) -> Reference:
        return reference(model, [p.type(dtype) for p in self.prompts], **self.batch)

    def rows(self, rows: Tensor) -> Example:
        """The same with some of the rows only."""
        return replace(self, **{name: value[rows] for name, value in self.batch.items()})


def make_example(
    lengths: Sequence[int],
    prompt_lengths: Sequence[int] = (3,),
    prompt_index: Sequence[int] | None = None,
    sides: Sequence[str] | str = "right",
    label_share: float = 0.5,
    width: int = WIDTH,
    vocabulary: int = VOCABULARY,
    seed: int = 0,
    beginning: int = 0,
) -> Example:
    """Random tokens of the given lengths, each row padded at its side, at least one label in the whole batch.

    The first `beginning` tokens of all rows are the same.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = max(1, *lengths)
    # What stands on padding must not matter, so it is a token like any other.
    ids = torch.randint(0, vocabulary, (len(lengths), columns), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        side = sides if isinstance(sides, str) else sides[row]
        mask[row, columns - length :] = int(side == "left")
        mask[row, :length] |= int(side == "right")
    order = mask.cumsum(1) - 1
    shared = torch.randint(0, vocabulary, (columns,), generator=generator)
    ids = torch.where((mask == 1) & (order < beginning), shared[order.clamp(min=0)], ids)
    chosen = (torch.rand(ids.shape, generator=generator) < label_share) & mask.bool()
    longest = max(range(len(lengths)), key=lambda row: lengths[row])
    chosen[longest] |= (mask[longest].cumsum(0) == lengths[longest]) & mask[longest].bool()
    return Example(
        prompts=[torch.randn(p, width, generator=generator, dtype=torch.float64) / 2 for p in prompt_lengths],
        input_ids=ids,
        attention_mask=mask,
        labels=ids.masked_fill(~chosen, -100),
        prompt_index=torch.tensor([0] * len(lengths) if prompt_index is None else prompt_index),
    )


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """B, T, P, K, the side of the padding, the labels: all of them, small."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any))
    prompt_lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    return make_example(
        lengths,
        prompt_lengths,
        [draw(st.integers(0, len(prompt_lengths) - 1)) for _ in lengths],
        [draw(st.sampled_from(["left", "right"])) for _ in lengths],
        draw(st.sampled_from([0.0, 0.3, 1.0])),
        seed=draw(st.integers(0, 1000)),
        beginning=draw(st.sampled_from([0, 2, 5])),
    )


def distance(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Distance of all the numbers together, relative to the expected ones unless these are all zero."""
    pairs = [
        (v.detach().double().flatten(), e.detach().double().flatten()) for v, e in zip(values, expected, strict=True)
    ]
    value, truth = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float((value - truth).norm()) / (float(truth.norm()) or 1.0)
