"""Tiny random encoders, and what PEFT makes of the same."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    BertConfig,
    DebertaV2Config,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

import softprompt as sp
from softprompt.bases.classifier import remove_classifier
from tests.conftest import make_tokenizer

_SETTINGS = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
ENCODERS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {}),
    "modernbert": (
        ModernBertConfig,
        {"cls_token_id": 0, "sep_token_id": 0, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "deberta": (DebertaV2Config, _RELATIVE),
}


def config_of(family: str, labels: int = 3) -> PretrainedConfig:
    kind, more = ENCODERS[family]
    return kind(**_SETTINGS | more, num_labels=labels)


def whole(family: str, auto: Any, labels: int = 3, seed: int = 0) -> PreTrainedModel:
    """Transformers' classifier of one kind, whole."""
    torch.manual_seed(seed)
    model: PreTrainedModel = auto.from_config(config_of(family, labels)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def base_of(sequence_classifier: PreTrainedModel, name: str = "encoder") -> sp.Base:
    """The base that a classifier of sequences is, without its last layer."""
    model = copy.deepcopy(sequence_classifier)
    remove_classifier(model)
    return sp.Base(model.requires_grad_(False), make_tokenizer(), name)
