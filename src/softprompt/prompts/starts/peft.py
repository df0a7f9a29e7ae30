"""The start that PEFT's own configuration describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.text import first_line

if TYPE_CHECKING:
    from peft import PromptTuningConfig

from softprompt.prompts.starts.values import check_count, embed, encode, make_generator, tile

NOT_REMADE = "a start by the method 'peft' cannot be repeated from its card"


def make(base: Base, config: PromptTuningConfig, *, seed: int = 0) -> Tensor:
    """What PEFT's `get_peft_model` would start from, `[P, H]`, after `torch.manual_seed(seed)`.

    That differs from the initialisers above: TEXT takes the special tokens that the tokenizer adds,
    SAMPLE_VOCAB draws with replacement from the whole table, RANDOM is N(0, 1). The text is encoded by the
    base's own tokenizer where `tokenizer_name_or_path` names it, else by the tokenizer of that name. As in
    PEFT, `num_layers`, `num_attention_heads`, `revision` and `base_model_name_or_path` have no part in it:
    the base given here counts.

    Raises:
        SoftPromptError: a value of `config` with which PEFT would build something else than `[P, H]` virtual
            tokens for a causal language model, remote code, or a tokenizer that cannot be loaded or does not
            fit the base.
    """
    from peft import PromptTuningConfig

    if not isinstance(config, PromptTuningConfig):
        raise SoftPromptError(f"a peft.PromptTuningConfig is needed, not {type(config).__name__}")
    supported: dict[str, tuple[object, ...]] = {
        "peft_type": ("PROMPT_TUNING",),  # some other methods' configurations are derived from this one's
        "task_type": (None, "CAUSAL_LM"),
        "token_dim": (None, base.hidden_size),
        "num_transformer_submodules": (None, 1),
        "modules_to_save": (None, []),
        "inference_mode": (False,),  # with it PEFT skips the initialisation and waits for a trained prompt
    }
    for key, values in supported.items():
        if (found := getattr(config, key)) not in values:
            raise SoftPromptError(f"PromptTuningConfig: {key} is {found!r}, but must be {values[-1]!r} here")
    num_virtual_tokens = config.num_virtual_tokens
    check_count(base, num_virtual_tokens)
    # PEFT draws this before it looks at the kind of initialisation: SAMPLE_VOCAB's draw comes after it.
    generator = make_generator(seed)
    noise = torch.randn(num_virtual_tokens, base.hidden_size, generator=generator)
    if config.prompt_tuning_init == "RANDOM":
        return noise
    if config.prompt_tuning_init == "SAMPLE_VOCAB":
        return embed(base, torch.randint(0, base.embedding_count, (num_virtual_tokens,), generator=generator))
    if config.prompt_tuning_init != "TEXT":
        raise SoftPromptError(f"PromptTuningConfig: prompt_tuning_init {config.prompt_tuning_init!r} is not known")
    tokenizer, words = _peft_tokenizer(base, config), config.prompt_tuning_init_text
    ids = encode(tokenizer, words, "PromptTuningConfig: prompt_tuning_init_text", special_tokens=True)
    return embed(base, tile(ids, num_virtual_tokens))


def _peft_tokenizer(base: Base, config: PromptTuningConfig) -> Any:
    name, arguments = config.tokenizer_name_or_path, config.tokenizer_kwargs or {}
    if name in (base.identity.name, base.tokenizer.name_or_path) and not arguments:
        return base.tokenizer
    if arguments.get("trust_remote_code"):
        raise SoftPromptError("PromptTuningConfig: tokenizer_kwargs asks for trust_remote_code, which is refused here")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, **arguments)
    except Exception as error:  # whatever a file or a hub throws at it
        raise SoftPromptError(
            f"PromptTuningConfig: tokenizer '{name}' cannot be loaded: {first_line(error)}"
        ) from error
