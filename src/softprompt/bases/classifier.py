"""Transformers' classifiers: where their last layer is, which a head takes the place of, and an encoder without it.

Owns these names, and what stands in for a pooling layer that a checkpoint has not. Knows nothing of prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.modeling_layers import GenericForTokenClassification

from softprompt.errors import SoftPromptError

logger = logging.getLogger(__name__)
# Where Transformers' classifiers have their last layer, by PEFT's names for it too.
_PLACES = ("classifier.out_proj", "classifier", "score", "out_proj")


def classifier_of(model: PreTrainedModel) -> str:
    """The name of the last layer of a classifier.

    Raises:
        SoftPromptError: it has none of those that are known.
    """
    for place in _PLACES:
        outer, _, name = place.rpartition(".")
        found = getattr(getattr(model, outer, None) if outer else model, name, None)
        if isinstance(found, nn.Linear | nn.Identity):
            return place
    raise SoftPromptError(f"{type(model).__name__} ends in none of {', '.join(_PLACES)}: its classifier is not known")


def head_module(model: PreTrainedModel, task_type: str, *, words: bool) -> tuple[str, bool]:
    """Where Transformers' class for one of PEFT's task types keeps its last layer, and whether that has a bias.

    Args:
        model: a base.
        task_type: SEQ_CLS, TOKEN_CLS or QUESTION_ANS.
        words: whether the base says words; else it is an encoder.
    """
    if task_type == "SEQ_CLS":
        return ("score", False) if words else (classifier_of(model), True)
    between = not words and hasattr(model, "head")  # ModernBERT's class for questions names its last layer otherwise
    if task_type == "QUESTION_ANS":
        return "classifier" if between else "qa_outputs", True
    kind: Any = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(model.config), GenericForTokenClassification)
    return "score" if issubclass(kind, GenericForTokenClassification) else "classifier", True


def remove_classifier(model: PreTrainedModel, missing: Iterable[str] = ()) -> list[str]:
    """Change a model so that its "logits" are the states `[B, H]` that its last layer would have read.

    Args:
        model: from `AutoModelForSequenceClassification`.
        missing: parameters that the checkpoint lacks. Those of a pooling layer, which Transformers has drawn at random,
            become those of the identity, so that the base is the same each time; a log line says so.

    Returns:
        The parameters that are missing and that nothing can stand in for.

    Raises:
        SoftPromptError: its last layer is not known.
    """
    place = classifier_of(model)
    outer, _, name = place.rpartition(".")
    body = f"{model.base_model_prefix}."
    lost = {key for key in missing if not key.startswith(f"{place}.")}
    pooling = {key for key in lost if not key.startswith(body) or key.startswith(f"{body}pooler.")}
    layers = sorted({key.rpartition(".")[0] for key in pooling})
    for layer in layers:
        _make_identity(model.get_submodule(layer))
    if layers:
        logger.info("the base has no pooling layer: the identity stands in for %s", ", ".join(layers))
    setattr(model.get_submodule(outer), name, nn.Identity())
    return sorted(lost - pooling)


def lost_positions(model: PreTrainedModel) -> int:
    """How many of the positions that a configuration states are never used: RoBERTa counts on from its padding's."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _make_identity(layer: Any) -> None:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is not None and weight.ndim == 2:
        nn.init.eye_(weight)
    elif weight is not None:
        nn.init.ones_(weight)
    if bias is not None:
        nn.init.zeros_(bias)
