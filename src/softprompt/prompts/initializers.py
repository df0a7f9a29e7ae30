"""How a soft prompt starts: functions from an embedding table to a float32 tensor `[P, H]`.

Owns the choice of the first values and the limits on P. `vocabulary` and `labels` are the initialisations of Lester et
al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning" (https://aclanthology.org/2021.emnlp-main.243).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from peft import PromptTuningConfig

_CHUNK = 4096  # embeddings looked up at a time, so that a large table is never copied whole


def text(base: Base, num_virtual_tokens: int, text: str, *, spread: bool = False) -> Tensor:
    """The embeddings of `text`, `[P, H]`; the tokenizer adds no special tokens to it.

    A text of fewer than P tokens is repeated from its start. Of a longer one the first P tokens are taken, or
    with `spread` P tokens at even distances from the first to the last.

    Raises:
        SoftPromptError: P out of bounds, or a text that is empty.
    """
    _check_count(base, num_virtual_tokens)
    ids = _encode(base.tokenizer, text, "the text to initialise from")
    if spread and len(ids) > num_virtual_tokens:
        ids = ids[torch.arange(num_virtual_tokens) * (len(ids) - 1) // max(num_virtual_tokens - 1, 1)]
    return _embed(base, _tile(ids, num_virtual_tokens))


def examples(base: Base, num_virtual_tokens: int, examples: Sequence[str]) -> Tensor:
    """The embeddings of worked examples, `[P, H]`: of all of them, one after the other, the last P tokens.

    So the last example stands right before a row's text, as in few-shot learning. Where they have fewer than P tokens
    they are repeated towards the front. Examples beside trained virtual tokens: Sun et al. 2023, "How Does In-Context
    Learning Help Prompt Tuning?" (https://arxiv.org/abs/2302.11521).

    Raises:
        SoftPromptError: P out of bounds, or examples that are empty.
    """
    _check_count(base, num_virtual_tokens)
    ids = _encode(base.tokenizer, "".join(examples), "the examples to initialise from")
    return _embed(base, _tile(ids.flip(0), num_virtual_tokens).flip(0))


def labels(
    base: Base,
    num_virtual_tokens: int,
    labels: Sequence[str],
    *,
    fill_text: str | None = None,
    seed: int = 0,
) -> Tensor:
    """One virtual token for each class label, in order, then filled up to P, `[P, H]`.

    A label's virtual token is the mean of its tokens' embeddings. Each label is encoded exactly as given:
    with the space that it has in the target (" positive") its tokens are those which the base is to produce.
    Of more than P labels the first P are taken. What is left is filled as by `text` from `fill_text`, or
    where that is None as by `vocabulary` with `seed`.

    Raises:
        SoftPromptError: P out of bounds, no labels, or a label or `fill_text` that is empty.
    """
    _check_count(base, num_virtual_tokens)
    if isinstance(labels, str) or not labels:
        raise SoftPromptError(f"initialising from labels needs a list of one label or more, not {labels!r}")
    encoded = [_encode(base.tokenizer, label, f"label {n}") for n, label in enumerate(labels, start=1)]
    rows = [_embed(base, ids).mean(dim=0) for ids in encoded[:num_virtual_tokens]]
    tensor = torch.stack(rows)
    left = num_virtual_tokens - len(rows)
    if left == 0:
        return tensor
    filling = vocabulary(base, left, seed=seed) if fill_text is None else text(base, left, fill_text)
    return torch.cat([tensor, filling])


def vocabulary(base: Base, num_virtual_tokens: int, *, seed: int = 0, most_common: int | None = None) -> Tensor:
    """The embeddings of P different tokens drawn at random, `[P, H]`.

    Special and added tokens and rows of the table that belong to no token are left out. `most_common` draws
    from that many of the most frequent tokens only (Lester et al. use 5,000), taken to be those of the lowest
    ids: an approximation, good where ids follow the order in which byte-pair merges were learnt.

    Raises:
        SoftPromptError: P or `most_common` out of bounds.
    """
    _check_count(base, num_virtual_tokens)
    left_out = {*base.tokenizer.all_special_ids, *base.tokenizer.get_added_vocab().values()}
    usable = sorted(set(base.tokenizer.get_vocab().values()) - left_out)
    usable = [token for token in usable if token < base.embedding_count]
    if most_common is not None:
        if not 1 <= most_common <= len(usable):
            raise SoftPromptError(f"most_common is {most_common}: it must be from 1 to {len(usable)} (usable tokens)")
        usable = usable[:most_common]
    if num_virtual_tokens > len(usable):
        raise SoftPromptError(
            f"{num_virtual_tokens} different virtual tokens cannot be drawn from {len(usable)} tokens: "
            "take fewer virtual tokens or a larger most_common"
        )
    drawn = torch.randperm(len(usable), generator=_generator(seed))[:num_virtual_tokens]
    return _embed(base, torch.tensor(usable)[drawn])


def random(
    base: Base,
    num_virtual_tokens: int,
    *,
    seed: int = 0,
    distribution: Literal["table", "normal"] = "table",
) -> Tensor:
    """Random values, `[P, H]`.

    `distribution="table"` is normal with the mean and the standard deviation that each dimension has in the
    embedding table. `"normal"` is PEFT's N(0, 1), often many times larger than any word's embedding; it is
    for comparison.

    Raises:
        SoftPromptError: P out of bounds, or another distribution.
    """
    _check_count(base, num_virtual_tokens)
    noise = torch.randn(num_virtual_tokens, base.hidden_size, generator=_generator(seed))
    if distribution == "normal":
        return noise
    if distribution != "table":
        raise SoftPromptError(f"distribution is {distribution!r}: it must be 'table' or 'normal'")
    total = squares = torch.zeros(base.hidden_size, dtype=torch.float64)
    for start in range(0, base.embedding_count, _CHUNK):
        ids = torch.arange(start, min(start + _CHUNK, base.embedding_count))
        rows = base.embed(ids).cpu().double()
        total, squares = total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
    mean = total / base.embedding_count
    deviation = (squares / base.embedding_count - mean.square()).clamp(min=0).sqrt()
    return noise * deviation.float() + mean.float()


def transfer(embeddings: Tensor, num_virtual_tokens: int) -> Tensor:
    """Another prompt's `[P', H]` virtual tokens repeated or cut to `[P, H]`.

    Starting from a prompt that was trained on another task is Vu et al. 2022, "SPoT: Better Frozen Model
    Adaptation through Soft Prompt Transfer" (https://arxiv.org/abs/2110.07904).

    Raises:
        SoftPromptError: P below 1.
    """
    _check_positive(num_virtual_tokens)
    return _tile(embeddings.detach(), num_virtual_tokens).float()


def peft(base: Base, config: PromptTuningConfig, *, seed: int = 0) -> Tensor:
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
    _check_count(base, num_virtual_tokens)
    # PEFT draws this before it looks at the kind of initialisation: SAMPLE_VOCAB's draw comes after it.
    generator = _generator(seed)
    noise = torch.randn(num_virtual_tokens, base.hidden_size, generator=generator)
    if config.prompt_tuning_init == "RANDOM":
        return noise
    if config.prompt_tuning_init == "SAMPLE_VOCAB":
        return _embed(base, torch.randint(0, base.embedding_count, (num_virtual_tokens,), generator=generator))
    if config.prompt_tuning_init != "TEXT":
        raise SoftPromptError(f"PromptTuningConfig: prompt_tuning_init {config.prompt_tuning_init!r} is not known")
    tokenizer, words = _peft_tokenizer(base, config), config.prompt_tuning_init_text
    ids = _encode(tokenizer, words, "PromptTuningConfig: prompt_tuning_init_text", special_tokens=True)
    return _embed(base, _tile(ids, num_virtual_tokens))


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
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SoftPromptError(f"PromptTuningConfig: tokenizer '{name}' cannot be loaded: {reason}") from error


def _check_positive(num_virtual_tokens: int) -> None:
    if isinstance(num_virtual_tokens, bool) or not isinstance(num_virtual_tokens, int) or num_virtual_tokens < 1:
        raise SoftPromptError(f"num_virtual_tokens is {num_virtual_tokens!r}: it must be a whole number from 1 on")


def _check_count(base: Base, num_virtual_tokens: int) -> None:
    _check_positive(num_virtual_tokens)
    limit = base.max_positions
    if limit is not None and num_virtual_tokens >= limit:
        raise SoftPromptError(
            f"{num_virtual_tokens} virtual tokens leave no room for text in the {limit} positions of base "
            f"'{base.identity.name}': take fewer than {limit}"
        )


def _encode(tokenizer: Any, text: object, what: str, *, special_tokens: bool = False) -> Tensor:
    if not isinstance(text, str) or not text.strip():
        raise SoftPromptError(f"{what} is empty or not a text: {text!r}")
    ids = tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
    if not ids:
        raise SoftPromptError(f"{what} has no tokens in this tokenizer: {text!r}")
    return torch.tensor(ids)


def _embed(base: Base, ids: Tensor) -> Tensor:
    if (highest := int(ids.max())) >= base.embedding_count:
        raise SoftPromptError(
            f"token id {highest} has no embedding: base '{base.identity.name}' has "
            f"{base.embedding_count} embeddings; the tokenizer is not that base's"
        )
    return base.embed(ids).detach().to("cpu", torch.float32)


def _tile(rows: Tensor, count: int) -> Tensor:
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def _generator(seed: int) -> torch.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise SoftPromptError(f"seed is {seed!r}: it must be a whole number from 0 on")
    return torch.Generator().manual_seed(seed)
