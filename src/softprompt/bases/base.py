"""A frozen base: the model with its tokenizer, kept whole from the command to the kernel.

Owns what a base says of itself: its sizes, its context, its words' embeddings, the tokens that end an answer, and how
it is recognised. Does not know where it comes from (`load`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.bases.checkpoint import sample
from softprompt.bases.classifier import head_module, lost_positions
from softprompt.bases.decoder import reach
from softprompt.bases.families import FamilyKind, family_kind
from softprompt.bases.identity import BaseIdentity
from softprompt.bases.quantization import held_bytes

# Of each kind of vocabulary what stood behind it in the serialised form.
_AFTER_VOCABULARY = {"BPE": ("merges",), "WordLevel": ("unk_token",), "WordPiece": ()}
# What tokenizers treat differently: digits, spaces, case, contractions, accents, scripts, symbols.
_PROBE = "The 2024 café's naïve  plan:\n\n\tx = [1, 22, 4096]; // WE'LL don't Straße привет 你好 🙂"


@dataclass(frozen=True, eq=False)
class Base:
    """A language model whose weights never change, with its tokenizer. Made by `load_base`.

    Attributes:
        model: in evaluation mode, no parameter asks for a gradient.
        tokenizer: the model's own, as it came (it may have no padding token).
        name: what `load_base` was given.
        samples: of a base without all its weights, what `sample` makes of each, by the parameter's name.
        sharded: whether its layers are spread over processes (`shards.py`), which then have to compute in step.
        quantization: how the weights of its linear layers are held, such as "torchao-int8"; None: in `dtype`.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    samples: Mapping[str, Tensor] | None = field(default=None, repr=False)
    sharded: bool = False
    quantization: str | None = None

    @property
    def hidden_size(self) -> int:
        """H, the width of a word embedding."""
        return int(self._embedding.weight.shape[1])

    @property
    def embedding_count(self) -> int:
        """Rows in the table of word embeddings: V, or more where the table was padded."""
        return int(self._embedding.weight.shape[0])

    @property
    def vocab_size(self) -> int:
        """V, as the model's configuration states it."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def family(self) -> FamilyKind:
        """What kind of model it is."""
        return family_kind(self.model.config)

    @property
    def max_positions(self) -> int | None:
        """The context's length in tokens, virtual ones included (see `reach`); None where nothing states one."""
        stated = reach(self.model.config).positions
        return stated if stated is None or self.family.words else stated - lost_positions(self.model)

    def room(self, virtual_tokens: int = 0) -> int | None:
        """Positions that a prompt of so many virtual tokens leaves for text and answer; None: any number."""
        return None if self.max_positions is None else self.max_positions - virtual_tokens

    def head_module(self, task_type: str) -> tuple[str, bool]:
        """Where a head for one of PEFT's task types is kept in its folder, and whether it has a bias."""
        return head_module(self.model, task_type, words=self.family.words)

    @property
    def pooling(self) -> Tensor:
        """`[H, H + 1]` weight and bias of the layer before a `classifier.out_proj`, float32."""
        layer: Any = self.model.get_submodule("classifier.dense")
        return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().float()

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer; see the function `end_ids`."""
        return end_ids(self.model, self.tokenizer)

    @property
    def device(self) -> torch.device:
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.weight.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held, wherever they are."""
        return sum(held_bytes(weight) for weight in [*self.model.parameters(), *self._packed()])

    @cached_property
    def identity(self) -> BaseIdentity:
        """How a prompt recognises its base."""
        return BaseIdentity(
            name=self.name,
            architecture=type(self.model).__name__,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            fingerprint=self._fingerprint(),
            quantization=self.quantization,
        )

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """The word embeddings of `ids`, `[...]` to `[..., H]`, as float32 on the base's device.

        They are what the model computes with: the module is called, for in Gemma it scales the table's rows.
        """
        embeddings: Tensor = self._embedding(ids.to(self.device))
        return embeddings.float()

    def _packed(self) -> list[Tensor]:
        """What GPTQ and AWQ hold instead of weights."""
        return list(self.model.buffers()) if self.quantization is not None else []

    @property
    def _embedding(self) -> torch.nn.Embedding:
        return cast("torch.nn.Embedding", self.model.get_input_embeddings())

    def _fingerprint(self) -> str:
        """A SHA-256 in hex over what a prompt depends on: the shape, the tokenizer and a sample of the weights.

        The weights are rounded to bfloat16 first, so that loads in float32 and bfloat16 agree (a float16 load of
        a checkpoint of another dtype may not). The tokenizer counts by its vocabulary, its merges and what it
        does with a probe; the rest of its serialised form changes with padding, truncation and versions.
        """
        tokenizer = self.tokenizer
        vocabulary = (
            _vocabulary(tokenizer.backend_tokenizer)
            if tokenizer.is_fast
            else json.dumps(sorted(tokenizer.get_vocab().items()))
        )
        facts = [
            type(self.model).__name__,
            self.hidden_size,
            self.vocab_size,
            getattr(self.model.config.get_text_config(), "num_hidden_layers", None),
            sorted(tokenizer.get_added_vocab().items()),
            [tokenizer.bos_token_id, tokenizer.eos_token_id],
            tokenizer(_PROBE)["input_ids"],
        ]
        digest = hashlib.sha256((json.dumps(facts) + vocabulary).encode())
        samples = self.samples
        if samples is None:  # tied weights come once
            samples = {name: sample(weight) for name, weight in self.model.named_parameters()}
        values = torch.cat([samples[name] for name in sorted(samples)])
        digest.update(values.view(torch.int16).numpy().astype("<i2").tobytes())
        return digest.hexdigest()


def _vocabulary(tokenizer: Tokenizer) -> str:
    """The vocabulary, and the merges where it has any, as one string that no release of `tokenizers` may change.

    It is the end of the serialised form of 0.22, whatever the order of keys and the form of merges are now.
    """
    text = tokenizer.to_str()
    model = json.loads(text)["model"]
    if model["type"] not in _AFTER_VOCABULARY:  # Unigram: how its scores are written is the library's own
        return text.partition('"vocab":')[2]
    parts: dict[str, Any] = {"vocab": dict(sorted(model["vocab"].items(), key=lambda item: item[1]))}
    for key in _AFTER_VOCABULARY[model["type"]]:
        parts[key] = model[key]
    if "merges" in parts:
        parts["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in parts["merges"]]
    written = (f'"{key}":{json.dumps(part, ensure_ascii=False, separators=(",", ":"))}' for key, part in parts.items())
    return ",".join(written).removeprefix('"vocab":') + "}}"


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's end of text, and those of the model's generation config.

    Chat models end a turn by another token than a text (Gemma, Llama 3, Phi-3). What a target ends with in training is
    the tokenizer's alone.
    """
    return _known_ids(model, tokenizer.eos_token_id, _stated(model, "eos_token_id"))


def suppressed_ids(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that never come in an answer: `suppress_tokens` of the model's generation config.

    They and the end tokens are all of that file that counts here, in `predict` and on the server alike.
    """
    return _known_ids(model, _stated(model, "suppress_tokens"))


def _stated(model: PreTrainedModel, name: str) -> Any:
    """What the model's generation config has for a name, where there is one: an encoder has none."""
    return getattr(getattr(model, "generation_config", None), name, None)


def _known_ids(model: PreTrainedModel, *stated: int | Sequence[int] | None) -> frozenset[int]:
    """Those of the ids that are in the vocabulary; -1 and the like stand for none."""
    count = model.config.get_text_config().vocab_size
    ids = [token for one in stated if one is not None for token in ([one] if isinstance(one, int) else one)]
    return frozenset(token for token in ids if 0 <= token < count)
