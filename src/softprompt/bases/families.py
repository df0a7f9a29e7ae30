"""The families of bases: how a base is recognised as one of them, and who reads and computes it.

A new family is a class in `models/families`, and a line in the table here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class FamilyKind:
    """A family, as a configuration shows it.

    Attributes:
        where: its subclass of `models.family.Family`, which is imported where it is used.
        loader: the class of Transformers that reads such a base.
        task_type: PEFT's name for what it does in words.
        is_one: whether a configuration is of the family. The first family that says so has it.
        apart: whether text and target are read apart, by an encoder and a decoder, each with special tokens of its own.
    """

    where: str
    loader: str
    task_type: str
    is_one: Callable[[PretrainedConfig], bool]
    apart: bool = False


FAMILIES = {
    "seq2seq": FamilyKind(
        "softprompt.models.families.seq2seq:Seq2Seq",
        "AutoModelForSeq2SeqLM",
        "SEQ_2_SEQ_LM",
        lambda config: bool(getattr(config, "is_encoder_decoder", False)),
        apart=True,
    ),
    "causal": FamilyKind(
        "softprompt.models.families.causal:Causal", "AutoModelForCausalLM", "CAUSAL_LM", lambda config: True
    ),
}


def family_kind(config: PretrainedConfig) -> FamilyKind:
    """The family of a base with this configuration."""
    return next(kind for kind in FAMILIES.values() if kind.is_one(config))
