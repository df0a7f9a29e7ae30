"""The card: what a prompt's file says of itself.

Owns the fields of `card.json`, their validation and their versions. Does not know folders, weights or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, FiniteFloat, JsonValue, ValidationError

from softprompt.bases.identity import BaseIdentity, Described
from softprompt.errors import SoftPromptError
from softprompt.text import validation_line

if TYPE_CHECKING:  # a card is read without PyTorch, which takes a second to import
    from torch import Tensor

# 1: one tensor and no task_type. 2: a head may be among the tensors.
FORMAT_VERSION = 2
HEAD_TYPES = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # PEFT's task types with a head


def digest(*tensors: Tensor | None) -> str:
    """SHA-256, in hex, of the tensors' values as little-endian float32, row by row, one after the other."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            values = tensor.detach().cpu().float().contiguous().numpy()
            found.update(values.astype("<f4", copy=False).tobytes())
    return found.hexdigest()


def timestamp(moment: datetime) -> str:
    """`moment` as ISO 8601 in UTC, to the second."""
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")


def installed_versions() -> dict[str, str]:
    """The versions of the packages that decide what a prompt's numbers mean."""
    found = {}
    for package in ("peft", "softprompt", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was never installed
            continue
    return found


class Card(Described):
    """What a prompt's file says of itself.

    `SoftPrompt` fills in `sha256`; whoever makes or trains a prompt fills in the rest.
    """

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    # PEFT's name for what the prompt does; of one with a head that reads whole texts, for what the base does in words.
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"] = (
        "CAUSAL_LM"
    )
    head_module: str = "score"  # what Transformers' class calls the layer that the head is
    base: BaseIdentity | None = None
    task: dict[str, JsonValue] | None = None
    data: dict[str, JsonValue] | None = None  # what the tables that it learned from call its columns and labels
    initialisation: dict[str, JsonValue] = Field(default_factory=dict)  # "method" and that method's arguments
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    calibration: dict[str, FiniteFloat] | None = None  # each label's log prior, taken out of every answer
    versions: dict[str, str] = Field(default_factory=installed_versions)
    created: str = Field(default_factory=lambda: timestamp(datetime.now(timezone.utc)))
    sha256: str = ""  # of the float32 tensors' bytes, see `digest`

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SoftPromptError(validation_line(error, "card")) from None

    # pydantic's own mark: where a card is read, it is validated without this __init__.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def replace(self, **fields: Any) -> Card:
        """A validated copy with `fields` changed, such as `card.replace(task=..., metrics=...)`."""
        return Card(**(self.model_dump() | fields))

    def log_priors(self, labels: Sequence[str] | None) -> list[float] | None:
        """What calibration takes out of the labels' log-likelihoods, in their order.

        Args:
            labels: of the task that is asked; None: it generates free text.

        Returns:
            One number for each label; None where the prompt is not calibrated, or there are no labels.

        Raises:
            SoftPromptError: the prompt was calibrated for other labels.
        """
        if self.calibration is None or labels is None:
            return None
        if set(self.calibration) != set(labels):
            raise SoftPromptError(
                f"this prompt is calibrated for the labels {', '.join(self.calibration)}, not for "
                f"{', '.join(labels)}: ask it its own task, or calibrate it again"
            )
        return [self.calibration[label] for label in labels]

    @classmethod
    def parse(cls, content: dict[str, Any], where: str = "card.json") -> Card:
        """The card in the JSON object `content`; `where` names its file in errors.

        Keys that mean nothing are said in a log line.

        Raises:
            SoftPromptError: a newer format version, or a field that is missing or of a wrong type.
        """
        found = content.get("format_version")
        if isinstance(found, int) and found > FORMAT_VERSION:
            raise SoftPromptError(
                f"{where} has format version {found}, but this softprompt reads up to {FORMAT_VERSION}: "
                "upgrade softprompt"
            )
        if found is None:
            raise SoftPromptError(f"{where} has no format_version: it is not the card of a soft prompt")
        known, base = cls.known(content, where), content.get("base")
        if isinstance(base, dict):
            known["base"] = BaseIdentity.known(base, f"{where}: base")
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            raise SoftPromptError(validation_line(error, where)) from None
