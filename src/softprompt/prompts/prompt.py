"""The soft prompt: P virtual tokens, a float32 tensor `[P, H]`, where the task has one the head that reads its answers,
`[L, H]`, and the card that says where they come from.

Owns what makes a tensor a valid prompt and ties together the initialisers, the card and the folder. Does not
know how a base uses a prompt, nor how it is trained.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError, WrongBaseError
from softprompt.prompts import files
from softprompt.prompts.card import HEAD_TYPES, Card, digest
from softprompt.prompts.names import CARD, WEIGHTS
from softprompt.prompts.starts import examples as from_examples
from softprompt.prompts.starts import labels as from_labels
from softprompt.prompts.starts import peft as from_peft
from softprompt.prompts.starts import random as from_random
from softprompt.prompts.starts import text as from_text
from softprompt.prompts.starts import transfer as from_transfer
from softprompt.prompts.starts import vocabulary as from_vocabulary

if TYPE_CHECKING:
    from peft import PromptTuningConfig

logger = logging.getLogger(__name__)
_WORDS = 512  # looked at for the norm of a base's words
# Of the words' norm, below which a prompt is another base's, or was made for embeddings that were scaled later. Prompts
# that start from words stay near 1, PEFT's random ones are far above.
_SHORT = 0.2


@dataclass(frozen=True, eq=False, repr=False)
class SoftPrompt:
    """P virtual tokens for one base.

    Args:
        embeddings: floating point `[P, H]`; kept as a detached, contiguous float32 copy on the CPU.
        card: what is known of the prompt; its `sha256` is set from the tensors. Default: an empty card.
        head: floating point `[L, H]`, a row for each label of the card's task, kept likewise: a label's score is its
            row times the final hidden state of the text's last token. Where Transformers' class has a bias, as those of
            encoders and of tokens have, `[L, H + 1]`, the bias last. None: there is no head.
        pooling: floating point `[H, H + 1]`, the layer before the head where PEFT keeps that with it, as for RoBERTa;
            it is the base's, and is not trained.

    Raises:
        SoftPromptError: not a floating point tensor `[P, H]` with P and H of at least 1 (with a head P may be 0), a
            head of another width or of another number of labels than the task has, or a value that is not finite in
            float32.
        WrongBaseError: a width other than that of the card's base.
    """

    embeddings: Tensor
    card: Card = field(default_factory=Card)
    head: Tensor | None = None
    pooling: Tensor | None = None

    def __post_init__(self) -> None:
        embeddings = _checked(self.embeddings, "embeddings", "P", 0 if self.head is not None else 1)
        head = None if self.head is None else _checked(self.head, "head", "L", 2)
        if head is not None and head.shape[1] - embeddings.shape[1] not in (0, 1):
            raise SoftPromptError(f"a head {list(head.shape)} does not fit embeddings {list(embeddings.shape)}")
        labels = (self.card.task or {}).get("labels")
        if head is not None and isinstance(labels, list) and len(labels) != len(head):
            raise SoftPromptError(f"the head has {len(head)} rows, but its card names {len(labels)} labels")
        if self.card.base is not None and self.card.base.hidden_size != embeddings.shape[1]:
            raise WrongBaseError(
                f"embeddings of shape {list(embeddings.shape)} do not fit base {self.card.base}: "
                f"it takes [P, {self.card.base.hidden_size}]"
            )
        object.__setattr__(self, "embeddings", embeddings)
        object.__setattr__(self, "head", head)
        if self.pooling is not None:
            object.__setattr__(self, "pooling", _checked(self.pooling, "pooling layer", "H", 1))
        object.__setattr__(self, "card", self.card.replace(sha256=digest(embeddings, head, self.pooling)))

    def __repr__(self) -> str:
        base = self.card.base.name if self.card.base else None
        return f"SoftPrompt(P={self.num_virtual_tokens}, H={self.hidden_size}, base={base!r})"

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.embeddings.shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.embeddings.shape[1]

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of the tensors as they are now; computed only where they were changed in place."""
        is_as_made = all(not tensor.is_inference() and tensor._version == 0 for tensor in self._tensors)
        return self.card.sha256 if is_as_made else digest(*self._tensors)

    @property
    def trainable_parameters(self) -> int:
        """How many numbers a task has: those of the embeddings and of the head."""
        return sum(tensor.numel() for tensor in (self.embeddings, self.head) if tensor is not None)

    @property
    def task_type(self) -> str:
        """PEFT's name for what the prompt does, such as "CAUSAL_LM", or with a head "SEQ_CLS"."""
        own = self.card.task_type
        return own if self.head is None or own in HEAD_TYPES else "SEQ_CLS"

    @property
    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.embeddings, self.head, self.pooling) if tensor is not None]

    @classmethod
    def from_text(cls, base: Base, text: str, num_virtual_tokens: int = 16, *, spread: bool = False) -> SoftPrompt:
        """Start from a text's embeddings; see `starts.text.make`, also for what it raises."""
        embeddings = from_text.make(base, num_virtual_tokens, text, spread=spread)
        return cls._initialised(base, embeddings, method="text", text=text, spread=spread)

    @classmethod
    def from_examples(cls, base: Base, examples: Sequence[str], num_virtual_tokens: int = 16) -> SoftPrompt:
        """Start from worked examples; see `starts.examples.make`, also for what it raises.

        The card keeps how many there were and not what they say: they may be nobody else's business.
        """
        embeddings = from_examples.make(base, num_virtual_tokens, examples)
        return cls._initialised(base, embeddings, method="examples", examples=len(examples))

    @classmethod
    def from_labels(
        cls,
        base: Base,
        labels: Sequence[str],
        num_virtual_tokens: int = 16,
        *,
        fill_text: str | None = None,
        seed: int = 0,
    ) -> SoftPrompt:
        """Start from the class labels' embeddings; see `starts.labels.make`, also for what it raises."""
        embeddings = from_labels.make(base, num_virtual_tokens, labels, fill_text=fill_text, seed=seed)
        return cls._initialised(base, embeddings, method="labels", labels=list(labels), fill_text=fill_text, seed=seed)

    @classmethod
    def from_vocabulary(
        cls,
        base: Base,
        num_virtual_tokens: int = 16,
        *,
        seed: int = 0,
        most_common: int | None = None,
    ) -> SoftPrompt:
        """Start from tokens drawn at random; see `starts.vocabulary.make`, also for what it raises."""
        embeddings = from_vocabulary.make(base, num_virtual_tokens, seed=seed, most_common=most_common)
        return cls._initialised(base, embeddings, method="vocabulary", seed=seed, most_common=most_common)

    @classmethod
    def random(
        cls,
        base: Base,
        num_virtual_tokens: int = 16,
        *,
        seed: int = 0,
        distribution: Literal["table", "normal"] = "table",
    ) -> SoftPrompt:
        """Start from random values; see `starts.random.make`, also for what it raises."""
        embeddings = from_random.make(base, num_virtual_tokens, seed=seed, distribution=distribution)
        return cls._initialised(base, embeddings, method="random", seed=seed, distribution=distribution)

    @classmethod
    def from_prompt(cls, prompt: SoftPrompt, num_virtual_tokens: int | None = None) -> SoftPrompt:
        """Start from another prompt of the same base, repeated or cut to P (default: as long as it is).

        The new card keeps the base but not the task, recipe and metrics, which were the other prompt's. See
        `starts.transfer.make`, also for what it raises.
        """
        if num_virtual_tokens is None:
            num_virtual_tokens = prompt.num_virtual_tokens
        embeddings = from_transfer.make(prompt.embeddings, num_virtual_tokens)
        return cls(
            embeddings,
            Card(
                base=prompt.card.base,
                task_type=prompt.card.task_type,
                initialisation={"method": "prompt", "sha256": prompt.sha256},
            ),
        )

    @classmethod
    def from_peft_config(cls, base: Base, config: PromptTuningConfig, *, seed: int = 0) -> SoftPrompt:
        """Start exactly where PEFT would; see `starts.peft.make`, also for what it raises."""
        embeddings = from_peft.make(base, config, seed=seed)
        stated = {key: value for key, value in config.to_dict().items() if key in files.STATED_BY_PEFT}
        return cls._initialised(base, embeddings, method="peft", seed=seed, **stated)

    @classmethod
    def none(cls, base: Base, labels: int) -> SoftPrompt:
        """No virtual tokens, and a head of zeros for so many labels, to be fitted: a linear probe."""
        card = Card(base=base.identity, task_type=base.family.task_type, initialisation={"method": "none"})
        start = cls(torch.zeros(0, base.hidden_size), card, torch.zeros(1 + 1, base.hidden_size))
        return start.with_head(base, labels, "SEQ_CLS")

    def with_head(self, base: Base, rows: int, task_type: str) -> SoftPrompt:
        """The prompt with a head of zeros, of so many rows, for one of PEFT's task types."""
        module, biased = base.head_module(task_type)
        in_words = task_type == "SEQ_CLS" and base.family.words
        card = self.card.replace(head_module=module, task_type=base.family.task_type if in_words else task_type)
        pooling = base.pooling if module == "classifier.out_proj" else None
        return replace(self, head=torch.zeros(rows, base.hidden_size + biased), card=card, pooling=pooling)

    @classmethod
    def _initialised(cls, base: Base, embeddings: Tensor, **initialisation: Any) -> SoftPrompt:
        task_type = base.family.task_type
        return cls(embeddings, Card(base=base.identity, task_type=task_type, initialisation=initialisation))

    def check_base(self, base: Base, what: str = "this prompt") -> None:
        """Check that `base` is the one that this prompt was made for; `what` names the prompt in the error.

        Of a prompt whose card names no base, as PEFT leaves it, only the width can be checked; what looks wrong all the
        same is logged, once for each prompt and base.

        Raises:
            WrongBaseError: naming both.
        """
        if self.card.base is not None:
            self.card.base.check_same(base.identity, what)
        elif self.hidden_size != base.hidden_size:
            raise WrongBaseError(
                f"{what} has shape {list(self.embeddings.shape)} and does not fit base {base.identity}: "
                f"it takes [P, {base.hidden_size}]"
            )
        elif self.card.initialisation.get("method") != "peft":
            return
        elif base.identity.fingerprint not in (said := _said.setdefault(self, set())):
            said.add(base.identity.fingerprint)
            for doubt in _doubts(self, base):
                logger.warning("%s %s", what, doubt)

    def for_labels(self, labels: Sequence[str] | None) -> SoftPrompt:
        """The prompt as it answers a task with these labels, in their order; one without a head is returned as it is.

        Raises:
            SoftPromptError: its head was learned for other labels.
        """
        known = (self.card.task or {}).get("labels")
        if self.head is None or labels is None or known == list(labels):
            return self
        if not isinstance(known, list):
            if len(labels) != len(self.head):
                raise SoftPromptError(
                    f"the prompt's head has {len(self.head)} rows, but the task has {len(labels)} labels"
                )
            return self
        if set(known) != set(labels):
            other = sorted(set(labels) ^ {str(label) for label in known})
            raise SoftPromptError(
                f"the prompt's head was learned for other labels: {other[0]!r} is not in both; ask it its own task, or "
                "train it anew"
            )
        card = self.card.replace(task={**(self.card.task or {}), "labels": list(labels)})
        return replace(self, head=self.head[[known.index(label) for label in labels]], card=card)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the prompt's folder at `path` and return it; see `files.save`, also for what it raises."""
        current = replace(self)  # the tensors may have been changed in place since
        return files.save(
            current.embeddings, current.card, path, head=current.head, pooling=current.pooling, force=force
        )

    @classmethod
    def load(cls, path: str | Path, base: Base | None = None) -> SoftPrompt:
        """Read the folder at `path`, one saved by PEFT too, and check it against `base` where that is given.

        Raises:
            WrongBaseError: the prompt was made for another base.
            SoftPromptError: a file that is missing, damaged, unsafe or too new, naming it.
        """
        embeddings, card, head, pooling = files.load(path)
        try:
            prompt = cls(embeddings, card, head, pooling)
        except SoftPromptError as error:
            raise type(error)(f"{Path(path) / WEIGHTS}: {error}") from None
        if card.sha256 not in ("", prompt.card.sha256):
            raise SoftPromptError(
                f"{Path(path) / WEIGHTS} is not the tensor whose sha256 is in {CARD}: copy or save the folder anew"
            )
        if base is not None:
            prompt.check_base(base, f"prompt {path}")
        return prompt


_said: weakref.WeakKeyDictionary[SoftPrompt, set[str]] = weakref.WeakKeyDictionary()  # bases, by fingerprint


def _doubts(prompt: SoftPrompt, base: Base) -> list[str]:
    """What speaks against a prompt of PEFT's being for `base`, which has its width."""
    doubts = []
    stated = prompt.card.initialisation.get("base_model_name_or_path")
    if isinstance(stated, str) and stated and _last(stated) != _last(base.identity.name):
        doubts.append(
            f"says it is for base {stated!r}, and is used with {base.identity.name!r}, of the same width: if these "
            "are not the same model, its answers mean nothing"
        )
    words = base.embed(torch.arange(0, base.embedding_count, max(1, base.embedding_count // _WORDS))).norm(dim=1)
    if words.is_meta:  # the vLLM engine has let go of the base's own
        return doubts
    share = float(prompt.embeddings.norm(dim=1).median() / words[words > 0].median())
    if share < _SHORT:
        doubts.append(
            f"has virtual tokens whose norm is {share:.2g} times that of the base's words, as prompts have that were "
            "made for Gemma 1 or 2 before Transformers 5.4, which multiplied them by the root of H: if this is one, "
            f"multiply its tensor by {prompt.hidden_size**0.5:.4g}, else train it anew"
        )
    return doubts


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()


def _checked(tensor: Tensor, what: str, rows: str, least: int) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise SoftPromptError(f"{what} must be a tensor [{rows}, H], not {type(tensor).__name__}")
    if tensor.ndim != 2 or tensor.shape[0] < least or not tensor.shape[1]:
        raise SoftPromptError(
            f"{what} have shape {list(tensor.shape)}: they must be [{rows}, H] with "
            f"{f'{rows} and H of 1' if least == 1 else f'{rows} of {least} and H of 1'} or more"
        )
    if not tensor.is_floating_point():
        raise SoftPromptError(f"{what} hold {tensor.dtype}: they must be floating point")
    copy = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    bad = (~copy.isfinite().all(dim=1)).nonzero()
    if len(bad):
        row = "virtual token" if what == "embeddings" else f"row of the {what}"
        raise SoftPromptError(f"{row} {int(bad[0])} holds NaN or infinite values in float32")
    return copy
