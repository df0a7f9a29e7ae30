"""Tiny random models of many families, with weights wide enough that attention decides the answer.

Owns the configurations. The two Gemmas 2 and 3 and Mistral look back four places only, so that every prompt and text
of the tests is longer than their window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import transformers as tf
from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY, WIDTH, CONTEXT, WINDOW = 61, 16, 64, 4

_ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_size = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, **_ids}
_usual = {**_size, "intermediate_size": 24, "max_position_embeddings": CONTEXT}
_grouped = {**_usual, "num_attention_heads": 4, "num_key_value_heads": 2}
_wide_heads = {**_grouped, "head_dim": 8}
_gpt = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, **_ids}
_mixed_layers = ["sliding_attention", "full_attention"]
_gemma = {**_wide_heads, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": _mixed_layers}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**_grouped),
    "gpt2": lambda: tf.GPT2Config(**_gpt),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_usual),
    "qwen2": lambda: tf.Qwen2Config(**_grouped),
    "qwen3": lambda: tf.Qwen3Config(**_wide_heads),
    "gemma": lambda: tf.GemmaConfig(**_wide_heads),
    "gemma2": lambda: tf.Gemma2Config(
        # Caps low enough to bite; Transformers' SDPA, its default, would leave the first one out.
        **_gemma,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(**_gemma),
    "mistral": lambda: tf.MistralConfig(**_grouped, sliding_window=WINDOW),
    "phi": lambda: tf.PhiConfig(**_usual),
    "phi3": lambda: tf.Phi3Config(**_grouped),
    "opt": lambda: tf.OPTConfig(**_size, ffn_dim=24, max_position_embeddings=CONTEXT, word_embed_proj_dim=WIDTH),
    "granite": lambda: tf.GraniteConfig(**_grouped, logits_scaling=3.0, embedding_multiplier=2.0),
    "cohere": lambda: tf.CohereConfig(**_grouped, logit_scale=0.5),
    "falcon": lambda: tf.FalconConfig(**_size, alibi=False, max_position_embeddings=CONTEXT),
    "falcon_alibi": lambda: tf.FalconConfig(**_size, alibi=True),
    "bloom": lambda: tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=2, n_head=2, **_ids),
    "gptj": lambda: tf.GPTJConfig(**_gpt, rotary_dim=4),
    "gpt_oss": lambda: tf.GptOssConfig(
        **_wide_heads,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=_mixed_layers,
        experts_implementation="eager",  # the only one in float64
    ),
    "mamba": lambda: tf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, state_size=4, **_ids
    ),
}
# Classes whose own `generate` takes no embeddings, or pads wrongly, or that keep something else than keys and values.
AWKWARD: dict[str, Callable[[], PreTrainedConfig]] = {
    "openai_gpt": lambda: tf.OpenAIGPTConfig(**_gpt),  # keeps nothing
    "ctrl": lambda: tf.CTRLConfig(**_gpt, dff=24),
    "rwkv": lambda: tf.RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, attention_hidden_size=WIDTH, num_hidden_layers=2, **_ids
    ),
    "mamba2": lambda: tf.Mamba2Config(
        **_size | {"num_attention_heads": 0}, num_heads=4, head_dim=8, state_size=4, n_groups=2, chunk_size=4
    ),
    "bamba": lambda: tf.BambaConfig(
        **_grouped, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, mamba_chunk_size=4
    ),
    "zamba": lambda: tf.ZambaConfig(
        **_usual | {"num_hidden_layers": 6},
        num_key_value_heads=2,
        n_mamba_heads=2,
        mamba_d_state=4,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "zamba2": lambda: tf.Zamba2Config(
        **_usual | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        n_mamba_heads=4,
        mamba_d_state=4,
        mamba_ngroups=2,
        chunk_size=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    ),
    "nemotron_h": lambda: tf.NemotronHConfig(
        **_wide_heads,
        layers_block_type=["mamba", "attention"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=4,
        n_groups=2,
        chunk_size=4,
    ),
    "git": lambda: tf.GitConfig(
        **_usual, vision_config={**_size, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
    ),
    "diffllama": lambda: tf.DiffLlamaConfig(**_grouped),
    "deepseek_v2": lambda: tf.DeepseekV2Config(
        **_usual,
        kv_lora_rank=8,
        q_lora_rank=None,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        first_k_dense_replace=1,
    ),
    "gemma3_of_images": lambda: tf.Gemma3Config(
        text_config={**_gemma}, vision_config={**_size, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
    ),
}
PACKED = [
    *("llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"),
    *("mistral", "phi", "phi3", "opt", "granite", "cohere"),
]
SHARED_PREFIX = ["falcon", "falcon_alibi", "bloom", "gpt_oss"]
CONCATENATED = ["mamba"]
# It came to Transformers' attention interface after 5.19.
(PACKED if tf.GPTJForCausalLM._can_set_attn_implementation() else SHARED_PREFIX).append("gptj")


def make_model(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A new random model, frozen, in eval mode, without dropout unless `changes` to its configuration ask for it."""
    config = (CONFIGS | AWKWARD)[family]()
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * 0.2
        parameter.data = noise if parameter.ndim > 1 else parameter.data + noise
    return model.to(dtype).eval().requires_grad_(False)


@lru_cache
def shared_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model for every test that does not change it."""
    return make_model(family, dtype)
