"""The decoder inside a causal language model: where it is, what it takes, and how far its positions reach.

Owns what differs between classes and releases of Transformers: which module gives hidden states, what it calls its
cache, and what it computes from token ids beside their embeddings. Knows nothing of prompts, routes or losses.
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.errors import SoftPromptError

NO_TOKEN = -1  # stands among token ids for a vector that is no word
_MAX_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class Reach:
    """How many positions a base computes rightly, virtual tokens included.

    Attributes:
        positions: their number; None where the configuration states none.
        reason: why they are fewer than the configuration's own; "" where they are not.
    """

    positions: int | None
    reason: str = ""


def reach(config: PretrainedConfig) -> Reach:
    """The positions at which what is computed for a token depends on nothing that comes after it.

    Some bases compute otherwise from a certain length on, and then for every row of the batch: longrope
    (https://arxiv.org/abs/2402.13753) turns all positions by other factors once one of them is beyond its original
    length, and top-k indexers (DeepSeek V3.2) leave out tokens once there are more than k.
    """
    config = config.get_text_config()
    stated = next((int(v) for v in (getattr(config, name, None) for name in _MAX_POSITIONS) if v and v > 0), None)
    limits = []
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if part.get("rope_type") == "longrope" and part.get("original_max_position_embeddings"):
            limits.append((int(part["original_max_position_embeddings"]), "its rotary positions change beyond them"))
    if isinstance(top := getattr(config, "index_topk", None), int) and top > 0:
        limits.append((top, "its attention leaves out tokens beyond them"))
    limits = [limit for limit in limits if stated is None or limit[0] < stated]
    return Reach(*min(limits)) if limits else Reach(stated)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, each of which is computed from what the one before gives; none where it names none.

    They are those that Transformers computes again in gradient checkpointing; layers within layers are parts of them.
    """
    every = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    within = {part for layer in every for part in layer.modules() if part is not layer}
    return [layer for layer in every if layer not in within]


@dataclass(frozen=True)
class Decoder:
    """The module of a causal language model that turns vectors into hidden states.

    Attributes:
        module: takes `inputs_embeds` and gives `last_hidden_state`.
        cache_name: what its forward calls its cache: "cache", or "past_key_values" before Transformers 5.24.
        takes_positions: whether its forward takes `position_ids`.
        per_layer: whether each layer also reads an embedding of the token's id (Gemma 3n, Gemma 4 E2B).
    """

    module: Any
    cache_name: str
    takes_positions: bool
    per_layer: bool

    @staticmethod
    def of(model: PreTrainedModel) -> Decoder:
        """The decoder of `model`, found once.

        Raises:
            SoftPromptError: the model has none that can be called by itself.
        """
        if model not in _decoders:
            _decoders[model] = _find(model)
        return _decoders[model]

    def __call__(self, vectors: Tensor, tokens: Tensor, cache: Cache | None = None, **options: Any) -> Tensor:
        """Final hidden states `[B, N, H]`.

        Args:
            vectors: `[B, N, H]` in the base's dtype.
            tokens: `[B, N]` the id that each vector is the embedding of; `NO_TOKEN` where it is no word's.
            cache: keys and values of what stands before.
            options: further arguments of the module's forward, such as `attention_mask`.
        """
        if cache is not None:
            options[self.cache_name] = cache
        hidden: Tensor = self.run(vectors, tokens, use_cache=cache is not None, **options).last_hidden_state
        return hidden

    def run(self, vectors: Tensor, tokens: Tensor, **options: Any) -> Any:
        """All that the module gives, with whatever it keeps; see `__call__`."""
        if self.per_layer:
            # As these bases do with pictures and sounds, a vector that is no word takes the padding token's.
            padding = getattr(self.module.config, "pad_token_id", None) or 0
            known = torch.where(tokens == NO_TOKEN, padding, tokens)
            options["per_layer_inputs"] = self.module.get_per_layer_inputs(known)
        return self.module(inputs_embeds=vectors, **options)


_decoders: weakref.WeakKeyDictionary[PreTrainedModel, Decoder] = weakref.WeakKeyDictionary()


def _find(model: PreTrainedModel) -> Decoder:
    module: Any = model
    # `get_decoder` looks for names: in ModernBERT's decoder it finds the output layer, which is no PreTrainedModel.
    while isinstance(found := module.get_decoder(), PreTrainedModel) and found is not module:
        module = found
    if module is model:
        module = model.base_model
    if module is model:  # Llama 4 and Mllama name another attribute than the one that holds their decoder
        module = getattr(model, "model", model)
    if not isinstance(module, PreTrainedModel) or module is model:
        raise SoftPromptError(f"{type(model).__name__} has no decoder that gives hidden states: it is not supported")
    taken = inspect.signature(module.forward).parameters
    config = module.config
    return Decoder(
        module,
        "cache" if "cache" in taken else "past_key_values",
        "position_ids" in taken,
        "per_layer_inputs" in taken and bool(getattr(config, "hidden_size_per_layer_input", 0)),
    )
