"""The identity of a base: how a prompt recognises the one that it was made for.

Owns its fields and how two compare. Reads no model, and needs no PyTorch.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from softprompt.errors import WrongBaseError

logger = logging.getLogger(__name__)


class Described(BaseModel):
    """Part of a file that says what something is: immutable, and without keys that mean nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def known(cls, content: dict[str, Any], where: str) -> dict[str, Any]:
        """The keys of a file that mean something. The others are said, once: one of them may be misspelt."""
        if unknown := sorted(set(content) - set(cls.model_fields)):
            _tell_unknown(where, ", ".join(unknown))
        return {key: value for key, value in content.items() if key in cls.model_fields}


@cache
def _tell_unknown(where: str, keys: str) -> None:
    logger.warning("%s: unknown keys are passed over: %s", where, keys)


class BaseIdentity(Described):
    """Which base a prompt belongs to.

    Two identities are the same base when all but their names and quantizations agree: a copy under another name is
    that base, and so is the same base held in fewer bits. One that is stored in fewer bits is another base.
    """

    name: str
    architecture: str  # the model's class, such as "LlamaForCausalLM"
    hidden_size: int = Field(ge=1)  # H
    vocab_size: int = Field(ge=1)  # V
    fingerprint: str = Field(pattern="^[0-9a-f]+$")  # hash over the tokenizer and a sample of the weights
    quantization: str | None = None  # how its weights are held, such as "torchao-int8"; None: not quantised

    def __str__(self) -> str:
        return (
            f"'{self.name}' ({self.architecture}, H={self.hidden_size}, V={self.vocab_size}, "
            f"fingerprint {self.fingerprint[:12]})"
        )

    def check_same(self, other: BaseIdentity, what: str = "this prompt") -> None:
        """Check that `other` is the base that `what` was made for. A log line says once that it is held otherwise.

        Raises:
            WrongBaseError: naming both bases.
        """
        fields = ("architecture", "hidden_size", "vocab_size", "fingerprint")
        if any(getattr(self, field) != getattr(other, field) for field in fields):
            raise WrongBaseError(
                f"{what} was made for base {self} and cannot be used with {other}: load the base it was made for"
            )
        if self.quantization != other.quantization:
            _tell_quantization(self.name, self.quantization or "not quantised", other.quantization or "not quantised")


@cache
def _tell_quantization(base: str, before: str, now: str) -> None:
    logger.info("a prompt was made for base %r %s and meets it %s: figures may differ", base, before, now)
