"""The families of bases: how a base is recognised as one of them, and who reads and computes it.

A new family is a class in `models/families`, and a line in the table here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig


@dataclass(frozen=True)
class FamilyKind:
    """A family, as a configuration shows it.

    Attributes:
        where: its subclass of `models.family.Family`, which is imported where it is used.
        loader: the class of Transformers that reads such a base.
        task_type: PEFT's name for what it does in words.
        is_one: whether a configuration is of the family. The first family that says so has it.
        apart: whether text and target are read apart, each with the special tokens that the tokenizer puts around it.
        words: whether it says words: scores them and generates.
        states: whether it gives a state for each token of a text.
    """

    where: str
    loader: str
    task_type: str
    is_one: Callable[[PretrainedConfig], bool]
    apart: bool = False
    words: bool = True
    states: bool = True


FAMILIES = {
    "seq2seq": FamilyKind(
        "softprompt.models.families.seq2seq:Seq2Seq",
        "AutoModelForSeq2SeqLM",
        "SEQ_2_SEQ_LM",
        lambda config: bool(getattr(config, "is_encoder_decoder", False)),
        apart=True,
        states=False,
    ),
    "encoder": FamilyKind(
        "softprompt.models.families.encoder:Encoder",
        "AutoModelForSequenceClassification",
        "FEATURE_EXTRACTION",
        lambda config: type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False),
        apart=True,
        words=False,
    ),
    "causal": FamilyKind(
        "softprompt.models.families.causal:Causal", "AutoModelForCausalLM", "CAUSAL_LM", lambda config: True
    ),
}


def family_kind(config: PretrainedConfig) -> FamilyKind:
    """The family of a base with this configuration."""
    return next(kind for kind in FAMILIES.values() if kind.is_one(config))
