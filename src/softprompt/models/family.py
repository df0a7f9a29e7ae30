"""The seam between prompts and families of bases: how a base computes behind prompts.

Owns what is asked of a family, and the way from a model to its own. Knows no family.
"""

from __future__ import annotations

import pkgutil
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from softprompt.bases.families import family_kind
from softprompt.models.packed import Tree

Reads = Literal["state", "class", "pooled"]


@dataclass(frozen=True)
class Batch:
    """Texts without padding, and where in them the base is asked. All of it is on the CPU, where rows are planned.

    Attributes:
        tokens: `[sum of lengths]` the texts' ids, one after the other.
        lengths: tokens of each of the B texts.
        prompt_of_text: which of the K prompts stands before each text.
        rows: `[A]` text of each place asked for.
        columns: `[A]` token of the text whose hidden state is asked for; -1 is the prompt's last virtual token.
        tree: continuations of every text (packed route only); columns count on from the text's length.
        read: of an encoder what is asked for: "state", a token's final hidden state; "class", what Transformers'
            classes for tokens and questions make of that before their last layer; "pooled", what its class for
            sequences makes of the whole text.
        pooling: of each of the K prompts the layer `[H, H + 1]` by which it is pooled, where they have one.
        encoded: of an encoder-decoder where texts' encodings are looked up and left for the next step, by their ids
            behind each of the K prompts; empty: nowhere.
    """

    tokens: Tensor
    lengths: Sequence[int]
    prompt_of_text: Sequence[int]
    rows: Tensor
    columns: Tensor
    tree: Tree | None = None
    read: Reads = "state"
    pooling: Sequence[Tensor] = ()
    encoded: Sequence[dict[tuple[int, ...], Tensor]] = ()


class Family(ABC):
    """How the bases of a family compute behind prompts.

    Attributes:
        routes: the ways to the same hidden states, from the fastest to the plainest, which is the reference.
        ways: those to generate where no pool can be kept, by their names in `models/generation.py`, from the fastest to
            the plainest; all but the last are used only where a probe shows them to be exact.
        looks_ahead: whether a token sees what comes after it.
    """

    routes: ClassVar[tuple[str, ...]]
    ways: ClassVar[tuple[str, ...]]
    looks_ahead: ClassVar[bool] = False

    @abstractmethod
    def check(self, model: PreTrainedModel) -> None:
        """Make sure that a model computes behind vectors that are no words what it computes of token ids.

        Raises:
            SoftPromptError: it does not, or its numbers are not finite.
        """

    @abstractmethod
    def hidden(self, route: str, model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
        """Final hidden states `[A, H]` at the places asked for, by the named route."""

    @abstractmethod
    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The output head on hidden states `[..., H]`: logits `[..., V]`, float32 or wider."""


_families: weakref.WeakKeyDictionary[PreTrainedModel, Family] = weakref.WeakKeyDictionary()


def family_of(model: PreTrainedModel) -> Family:
    """The family that computes `model`."""
    if model not in _families:
        _families[model] = pkgutil.resolve_name(family_kind(model.config).where)()
    return _families[model]


def hidden_states(route: str, model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` by the named route of the model's family."""
    return family_of(model).hidden(route, model, prompts, batch)


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The output head on hidden states `[..., H]`: logits `[..., V]`, float32 or wider."""
    return family_of(model).logits(model, hidden)


def plain(model: PreTrainedModel, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Final hidden states `[A, H]` by the plainest route: the reference."""
    family = family_of(model)
    return family.hidden(family.routes[-1], model, prompts, batch)


def side_by_side(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows `[T, H]` padded at the right to `[n, T, H]`, and the mask `[n, T]` of what is no padding."""
    seen = [row.new_ones(len(row), dtype=torch.long) for row in rows]
    return pad_sequence(list(rows), batch_first=True), pad_sequence(seen, batch_first=True)


def read_by(words: bool, head: str | None) -> Reads:
    """What a head reads, see `Batch`.

    Args:
        words: whether the base says words; else it is an encoder.
        head: PEFT's task type that the head is for; None: there is none.
    """
    if words or head is None:
        return "state"
    return "pooled" if head == "SEQ_CLS" else "class"


def wide(scores: Tensor) -> Tensor:
    """Scores in float32 or wider."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
