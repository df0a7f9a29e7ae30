"""A tiny random model of any causal class of Transformers, from the class's own default configuration.

Owns the sizes, and what some configurations ask beside them.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY, WIDTH, LAYERS, CONTEXT = 61, 32, 2, 128

_SAME: dict[Any, tuple[str, ...]] = {
    VOCABULARY: ("vocab_size", "vocab_size_per_layer_input"),
    WIDTH: ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "embedding_size", "word_embed_proj_dim", "emb_dim"),
    LAYERS: ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
    4: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads"),
        *("num_experts", "num_local_experts", "n_routed_experts", "rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim"),
        *("state_size", "mamba_d_state", "mamba_n_heads"),
    ),
    2: ("num_key_value_heads", "num_experts_per_tok", "mamba_expand"),
    1: ("n_shared_experts", "n_group", "topk_group", "eos_token_id"),
    0: ("bos_token_id", "pad_token_id"),
    48: ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"),
    16: ("moe_intermediate_size", "shared_expert_intermediate_size", "mamba_headdim", "mamba_d_head"),
    8: ("head_dim", "kv_lora_rank", "q_lora_rank", "v_head_dim", "hidden_size_per_layer_input"),
    CONTEXT: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
}
_SIZES = {name: value for value, names in _SAME.items() for name in names}

# Latent attention keeps a key for each head; its rotary part is a head of its own.
_LATENT: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 4}
OWN_SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note"),
            *("dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "sarvam_mla", "youtu"),
        ),
        _LATENT,
    ),
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["full_attention"] * 4},
    "gemma4_text": {"num_kv_shared_layers": 0, "global_head_dim": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_groups": 1},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2, "n_mamba_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "kimi_linear": {
        **_LATENT,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "linear_head_dim": 8,
    },
    "lfm2_moe": {"num_hidden_layers": 2, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
}


def tiny_config(kind: str) -> PreTrainedConfig:
    """The configuration of a model type, shrunk."""
    return _shrink(CONFIG_MAPPING[kind], OWN_SIZES.get(kind, {}))


def tiny_model(config: PreTrainedConfig, largest: int = 40_000_000) -> PreTrainedModel:
    """A random model in eval mode, its matrices wide enough that attention decides the answer.

    Raises:
        ValueError: it is not tiny.
    """
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > largest:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0, 0.2)
    return model


def _shrink(kind: type[PreTrainedConfig], own: dict[str, Any]) -> PreTrainedConfig:
    known = {*inspect.signature(kind.__init__).parameters, *getattr(kind, "__annotations__", {})}
    with suppress(Exception):  # some have no defaults of their own
        known |= set(kind().to_dict())
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        if name == "text_config" and isinstance(part, type) and issubclass(part, PreTrainedConfig):
            sizes[name] = _shrink(part, OWN_SIZES.get(getattr(part, "model_type", ""), {})).to_dict()
        elif name in ("vision_config", "audio_config"):
            sizes[name] = None
    return kind(**{**sizes, **own})
