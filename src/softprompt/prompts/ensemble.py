"""Several prompts for one task that vote.

Lester, Al-Rfou, Constant 2021, section 5.3 (https://aclanthology.org/2021.emnlp-main.243): K prompts make an ensemble
of K models that costs the storage of K prompts and one base.

Owns the vote, the ensemble's folder, in which each member is a prompt's folder, and the mark on the members' cards.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.card import Card
from softprompt.prompts.prompt import SoftPrompt


@dataclass(frozen=True)
class Ensemble:
    """K prompts for one task, which `evaluate` and `predict` take for one: they vote on the label.

    Attributes:
        prompts: the members, at least one. Each is a prompt like any other.
    """

    prompts: Sequence[SoftPrompt]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SoftPromptError("an ensemble needs at least one prompt")

    @property
    def card(self) -> Card:
        """The first member's, for what they have in common: the base, the task, the recipe."""
        return self.prompts[0].card

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of the members'."""
        return hashlib.sha256("".join(prompt.sha256 for prompt in self.prompts).encode()).hexdigest()

    @property
    def num_virtual_tokens(self) -> int:
        """P of the longest member."""
        return max(prompt.num_virtual_tokens for prompt in self.prompts)

    def check_base(self, base: Base) -> None:
        """Check that every member was made for `base`.

        Raises:
            WrongBaseError: one wasn't.
        """
        for prompt in self.prompts:
            prompt.check_base(base)

    def marked(self) -> list[SoftPrompt]:
        """The members with `{"id": ..., "member": k, "of": K}` as `metrics["ensemble"]` on their cards."""
        marks = [{"id": self.sha256[:16], "member": k, "of": len(self.prompts)} for k in range(len(self.prompts))]
        return [
            replace(prompt, card=prompt.card.replace(metrics={**prompt.card.metrics, "ensemble": one}))
            for prompt, one in zip(self.prompts, marks, strict=True)
        ]

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write each member's folder, `0`, `1` and so on, into `folder`.

        Args:
            folder: is made.
            force: replace members that are there.

        Raises:
            SoftPromptError: a member is there already (without `force`), or the disk refuses.
        """
        folder = Path(folder)
        for k, prompt in enumerate(self.marked()):
            prompt.save(folder / str(k), force=force and (folder / str(k)).exists())
        for old in _members(folder)[len(self.prompts) :]:
            shutil.rmtree(old)
        return folder

    @classmethod
    def load(cls, folder: str | Path, base: Base | None = None) -> Ensemble:
        """Read the members in `folder`, in order, and check them against `base` where that is given.

        Raises:
            SoftPromptError: there is none, one is missing, damaged, or of another ensemble.
            WrongBaseError: one was made for another base.
        """
        try:
            members = _members(Path(folder))
        except OSError as error:
            raise SoftPromptError(f"{folder}: cannot be read: {error.strerror}") from None
        if not members or [member.name for member in members] != [str(k) for k in range(len(members))]:
            raise SoftPromptError(f"{folder} is not an ensemble: its members are the prompts' folders 0, 1 and so on")
        prompts = [SoftPrompt.load(member, base) for member in members]
        marks = [mark(prompt.card) for prompt in prompts]
        if any(marks) and (len({one.get("id") for one in marks}) > 1 or marks[0]["of"] != len(prompts)):
            raise SoftPromptError(f"the members in {folder} are not those of one ensemble: train or copy it anew")
        return cls(prompts)


def load(folder: str | Path) -> SoftPrompt | Ensemble:
    """What is in a folder: a prompt, or an ensemble of several.

    Raises:
        SoftPromptError: as `SoftPrompt.load` and `Ensemble.load`.
    """
    return Ensemble.load(folder) if is_ensemble(folder) else SoftPrompt.load(folder)


def is_ensemble(folder: str | Path) -> bool:
    """Whether a folder looks like an ensemble's, and not like a prompt's."""
    return (Path(folder) / "0").is_dir()


def mark(card: Card) -> Mapping[str, Any]:
    """What a card says of the ensemble that its prompt is a member of; nothing where it is none."""
    found = card.metrics.get("ensemble")
    if not isinstance(found, dict) or not isinstance(found.get("of"), int):
        return {}
    return found if {"id", "member", "of"} == found.keys() else {}


def vote(probabilities: Tensor) -> Tensor:
    """The members' vote as probabilities, `[K, n, L]` to `[n, L]`.

    Each member has one vote for its likeliest label. The mean of the members' probabilities counts as one vote more, to
    be shared: it never outvotes a member, and decides between labels with as many votes.
    """
    members, _, labels = probabilities.shape
    votes = functional.one_hot(probabilities.argmax(-1), labels).sum(0)
    return (votes + probabilities.mean(0)) / (members + 1)


def _members(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
